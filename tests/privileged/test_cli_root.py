"""What the command can do for root only."""

from __future__ import annotations

import os
import pwd

import linx_trio as linx
from linx_trio import _agent, _cli_ps, _keeper
from linx_trio._netns import open_netlink
from tests.agent.commands import Command, command
from tests.privileged.groups import needs_v2
from tests.support import children_of, eventually_async, name_of

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


@needs_v2
async def test_whose_cgroup_it_is() -> None:
    """One that has joined the group of another session is not contained by it."""
    sleep = linx.Workload(["sleep", "1000"])
    async with linx.spawn(sleep, limits=linx.Limits()) as one, linx.enter(one, sleep) as other:
        rows = {row.pid: row.containment for row in _cli_ps.sessions()}
        assert (rows[one.host_pid], rows[other.host_pid]) == (one.containment, other.containment)
        assert (one.containment, other.containment) == ("cgroup", "subreaper")


async def test_what_others_see_of_a_session() -> None:
    """Its namespaces they may not look at. Its pids they may, and these say enough where it is a PID namespace."""
    sleep = linx.Workload(["sleep", "1000"])
    async with (
        linx.spawn(sleep, namespaces={"pid"}, auto_proceed=True) as one,
        linx.spawn(sleep, namespaces={"net"}, auto_proceed=True) as net,
        linx.enter(one, sleep, auto_proceed=True) as deeper,
        linx.enter(net, sleep, auto_proceed=True) as other,
    ):
        os.seteuid(65534)
        try:
            rows = {row.pid: row for row in _cli_ps.sessions()}
        finally:
            os.seteuid(0)
        found = [
            (row.namespaces, row.entered, row.containment)
            for s in (one, net, deeper, other)
            for row in [rows[s.host_pid]]
        ]
        assert found == [
            (None, False, "pidns"),
            (None, None, "subreaper"),
            (None, True, "subreaper"),
            (None, None, "subreaper"),
        ]


async def test_a_keeper_is_no_session() -> None:
    """Nor is a monitor in spare."""
    async with linx.spawn(["sleep", "1000"], namespaces={"net"}) as session:
        with await open_netlink(session) as sock:
            keeper = await _keeper.start("netlink", sock.fileno())
        try:
            zygote = _agent.current()[-1].pid
            await eventually_async(
                lambda: "linx-keeper" in [name_of(pid) for pid in children_of(zygote)], "it says what it is"
            )
            assert [row.pid for row in _cli_ps.sessions() if row.owner == os.getpid()] == [session.host_pid]
        finally:
            keeper.close()
