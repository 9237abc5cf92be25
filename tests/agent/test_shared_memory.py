"""A workload that does not park has its parent's memory until it executes, and an ordinary user's pid 1 its monitor's:
nobody may look into it by either.
"""

from __future__ import annotations

import os

import pytest

from tests.agent.probes import as_somebody, needs_root

CAP_NET_ADMIN = 12

SHARES = os.uname().machine in {"x86_64", "aarch64"}  # for others there is no assembly

LOOK = """
import contextlib
import os
from linx_trio.mount import Dir, File, Tmpfs

WORK = [Dir(f"/d{{i}}") for i in range({count})]
seen = []

def owner_of(pid):
    return os.stat(f"/proc/{{pid}}/mem").st_uid  # root's, if it is not dumpable

def stat_of(pid):
    with open(f"/proc/{{pid}}/stat") as file:
        state, parent, *_ = file.read().rsplit(")", 1)[1].split()
    return state, int(parent)

def look(pid):
    parent = stat_of(pid)[1]
    monitor = stat_of(parent)[1]
    while True:
        sample = owner_of(pid), owner_of(parent), owner_of(monitor)
        if stat_of(pid)[0] in "ZX":  # and has no memory
            return
        seen.append(sample)

async def main():
    try:
        async with linx.spawn(
            ["/none"], auto_proceed=True, wait_ready=False, root=Tmpfs("/"), mounts=WORK, init=True,
            namespaces={{"user", "pid", "mount"}}, user=linx.user.root_map(),
        ) as s:
            while s.state == "starting":
                try:
                    s.host_pid
                    break
                except linx.LinxError:
                    await trio.lowlevel.checkpoint()
            with contextlib.suppress(OSError):  # it is gone
                await trio.to_thread.run_sync(look, s.host_pid)
            await s.wait()
    except linx.SetupError as exc:
        assert exc.stage == "execve", exc

trio.run(main)
result = [os.getuid(), seen]
"""


AFTERWARDS = """
import os

def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])

async def main():
    seen = []
    for parked in (False, True):
        async with linx.spawn(
            ["sleep", "600"], auto_proceed=not parked, namespaces={"user", "pid"}, user=linx.user.root_map(), init=True
        ) as s:
            await s.proceed() if parked else None
            pid_1 = parent_of(s.host_pid)
            monitor = parent_of(pid_1)
            owners = [os.stat(f"/proc/{pid}/mem").st_uid for pid in (s.host_pid, pid_1, monitor)]
        seen.append([monitor, *owners, os.stat(f"/proc/{monitor}/mem").st_uid])
    return [os.getuid(), seen]

result = trio.run(main)
"""


def test_neither_the_workload_nor_who_else_has_its_memory_can_be_looked_into() -> None:
    """Nearly all the time it makes a great many directories, its id maps written and its end not near."""
    own, seen = as_somebody(LOOK.format(count=30_000))
    for _ in range(10):
        if len(seen) > 20:
            break
        own, seen = as_somebody(LOOK.format(count=30_000))  # whoever looks may be late, on a busy machine
    hidden = [own not in (owners if SHARES else owners[:-1]) for owners in seen]
    assert sum(hidden) > 0.5 * len(seen)
    assert all(hidden[hidden.index(True) :]), "it stays so"


@pytest.mark.parametrize("capability", [None, pytest.param(CAP_NET_ADMIN, marks=needs_root)])
def test_the_monitor_is_open_to_its_user_when_pid_1_has_not_its_memory(capability: int | None) -> None:
    """That is when it is gone; when the workload parks, of which it must make a copy; and when the monitor may do more
    than anybody else of that user, who may all look into whoever is in the new user namespace.
    """
    own, ((monitor, *going_on), (again, *parked)) = as_somebody(AFTERWARDS, capability=capability)
    assert again == monitor, "the second session had the same one"
    for workload, pid_1, _, afterwards in (going_on, parked):
        assert workload == afterwards == own
        assert pid_1 != own
    assert (going_on[2] != own) is (SHARES and capability is None)
    assert parked[2] == own
