"""A workload that does not park has its parent's memory until it executes, and an ordinary user's pid 1 its monitor's:
nobody may look into it by either.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import linx_trio as linx
from linx_trio.mount import Dir, Tmpfs
from tests.agent.probes import as_somebody, needs_root
from tests.support import monitor_of, stat_of

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


def memory_is_shared(pid: int, other: int) -> bool | None:
    """Whether theirs is one (``kcmp(2)``); `None` where one of them is gone."""
    number, kcmp_vm = {"x86_64": 312, "aarch64": 272}[os.uname().machine], 1
    result = ctypes.CDLL(None).syscall(number, pid, other, kcmp_vm, 0, 0)
    stat = stat_of(pid)
    return None if result < 0 or stat is None or stat[0] in "ZX" else result == 0


@pytest.fixture(params=["0", "1", "2"])
def suid_dumpable(request: pytest.FixtureRequest) -> Iterator[str]:
    setting = Path("/proc/sys/fs/suid_dumpable")
    before = setting.read_text()
    setting.write_text(request.param)
    yield request.param
    setting.write_text(before)


@needs_root
@pytest.mark.skipif(not SHARES, reason="needs a machine on which memory is shared")
async def test_nor_is_it_shared_with_somebody_else_who_can_be_looked_into(suid_dumpable: str) -> None:
    """With ``fs.suid_dumpable=1`` others of that user may look into whoever has become one of them."""
    work = [Tmpfs("/tmp"), *(Dir(f"/tmp/{number}") for number in range(5_000))]
    seen = []
    async with linx.spawn(
        ["true"], uid=65534, mounts=work, namespaces={"mount"}, cwd="/", auto_proceed=True, wait_ready=False
    ) as s:
        while s.state == "starting":
            with contextlib.suppress(linx.LinxError):  # not known yet
                seen.append(memory_is_shared(s.host_pid, monitor_of(s.host_pid)))
            await trio.lowlevel.checkpoint()
    known = [each for each in seen if each is not None]
    assert known
    assert any(known) is (suid_dumpable != "1"), "until it executes"
