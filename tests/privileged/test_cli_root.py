"""What the command can do for root only."""

from __future__ import annotations

import os
import pwd

from tests.agent.commands import Command, command

__all__ = ["command"]  # a fixture

DAEMON = pwd.getpwnam("daemon")


def groups_of(command: Command, *given: str) -> set[int]:
    status, out, err = command("run", *given, "id", "-G")
    assert (status, err) == (0, "")
    return set(map(int, out.split()))


def test_groups_of_somebody_else(command: Command) -> None:
    """With another uid there are none of the caller's, unless they are asked for."""
    own = os.getgroups()
    os.setgroups([4243])
    try:
        somebody = ("--reuid", "daemon", "--regid", "4242")
        assert groups_of(command, *somebody) == {4242}
        assert groups_of(command, *somebody, "--keep-groups") == {4242, 4243}
        assert groups_of(command, *somebody, "--init-groups") == {4242, *os.getgrouplist(DAEMON.pw_name, 4242)}
        assert groups_of(command, *somebody, "--groups", "4244,4245") == {4242, 4244, 4245}
    finally:
        os.setgroups(own)
