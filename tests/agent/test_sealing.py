"""Nobody in a container gets hold of the agent: not of its program, which is a sealed copy in memory, nor of what is on
its way in (CVE-2019-5736's lesson).
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import _agent
from tests.agent.containers import container, is_untouched, monitor_above, reapers_of
from tests.agent.port import SLEEP as PORT_SLEEP
from tests.agent.port import Port, spawn
from tests.agent.probes import link, opened, status_of
from tests.agent.programs.phases import zygote
from tests.support import children_of, eventually_async, name_of

SLEEP = ["sleep", "1000"]
SEALED = "/memfd:linx-agent (deleted)"
F_GET_SEALS = 1034
ALL_SEALS = 0x1 | 0x2 | 0x4 | 0x8
"""No further seals, no shrinking, no growing, no writing (``fcntl(2)``)."""


@pytest.fixture
async def target() -> AsyncIterator[linx.Session]:
    async with container() as session:
        await eventually_async(lambda: name_of(session.host_pid) == "sleep", "its init has settled")
        yield session
        assert is_untouched(session)


def check_sealed(pid: int) -> None:
    assert link(pid, "exe") == SEALED
    with opened(f"/proc/{pid}/exe", os.O_RDONLY) as fd:
        assert fcntl.fcntl(fd, F_GET_SEALS) == ALL_SEALS
        assert os.pread(fd, 1 << 24, 0) == _agent.agent_path().read_bytes(), "it is the agent's program"


# ---- what runs -------------------------------------------------------------------------------------------------------


async def test_the_agent_runs_from_a_sealed_copy() -> None:
    async with linx.spawn(SLEEP) as s:
        monitor = monitor_above(s.host_pid)
        for pid in (zygote(), monitor, s.host_pid):  # what is parked is the agent still
            check_sealed(pid)
        await s.proceed()
        assert link(s.host_pid, "exe") != SEALED


async def test_reapers_too(target: linx.Session) -> None:
    """An ordinary user may not even look, being nobody special outside of the container."""
    async with linx.enter(target, SLEEP) as s:
        check_sealed(monitor_above(s.host_pid))
        for pid in (s.host_pid, *reapers_of(s.host_pid)):
            if os.geteuid() == 0:
                check_sealed(pid)
            else:
                with pytest.raises(PermissionError):
                    link(pid, "exe")


def test_as_a_port_too() -> None:
    with Port() as port:
        port.send(spawn(argv=PORT_SLEEP))
        pid = port.started()
        check_sealed(port.pid)
        check_sealed(pid)


def refusal(call: Any, *arguments: Any) -> int:
    """The errno with which it is refused."""
    with pytest.raises(OSError, match=r".") as raised:
        call(*arguments)
    return raised.value.errno or 0


def test_the_copy_cannot_be_changed() -> None:
    """Neither while it runs, nor by an fd that has been kept until it does no more: that was the trick."""
    program = _agent.agent_path().read_bytes()
    with Port() as port:
        port.send(spawn(argv=PORT_SLEEP))
        port.started()
        assert refusal(os.open, f"/proc/{port.pid}/exe", os.O_RDWR) in (errno.ETXTBSY, errno.EPERM, errno.EACCES)
        assert refusal(os.open, f"/proc/{port.pid}/exe", os.O_WRONLY | os.O_TRUNC) in (errno.ETXTBSY, errno.EPERM)
        kept = os.open(f"/proc/{port.pid}/exe", os.O_PATH)
    try:
        assert not children_of(port.pid), "it has ended"
        with opened(f"/proc/self/fd/{kept}", os.O_RDWR) as fd:
            assert refusal(os.write, fd, b"x") == errno.EPERM
            assert refusal(os.pwrite, fd, b"x", len(program)) == errno.EPERM
            assert refusal(os.ftruncate, fd, 0) == errno.EPERM
            assert refusal(os.ftruncate, fd, len(program) + 1) == errno.EPERM
            assert refusal(mmap.mmap, fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) == errno.EPERM
            assert os.pread(fd, 1 << 24, 0) == program
        assert refusal(os.open, f"/proc/self/fd/{kept}", os.O_WRONLY | os.O_TRUNC) == errno.EPERM
    finally:
        os.close(kept)
    assert _agent.agent_path().read_bytes() == program


# ---- somebody inside -------------------------------------------------------------------------------------------------

INTRUDER = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def errno_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as exc:
        return exc.errno
    return 0
def attach(pid):  # ptrace(PTRACE_SEIZE)
    if libc.ptrace(0x4206, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
found = {"uid": os.geteuid(), "caps": [x for x in open("/proc/self/status") if x.startswith("CapEff")][0].split()[1]}
for pid, inner in (map(int, word.split(":")) for word in sys.argv[1:]):
    found[pid] = {
        "readlink exe": errno_of(os.readlink, f"/proc/{pid}/exe"),
        "exe": errno_of(os.open, f"/proc/{pid}/exe", os.O_RDONLY),
        "exe for writing": errno_of(os.open, f"/proc/{pid}/exe", os.O_RDWR),
        "path of exe": errno_of(os.open, f"/proc/{pid}/exe", os.O_PATH),
        "mem": errno_of(os.open, f"/proc/{pid}/mem", os.O_RDWR),
        **{f"fd {n}": errno_of(os.stat, f"/proc/{pid}/fd/{n}") for n in range(20)},
        "cwd": errno_of(os.readlink, f"/proc/{pid}/cwd"),
        "root": errno_of(os.listdir, f"/proc/{pid}/root/"),
        "environ": errno_of(os.open, f"/proc/{pid}/environ", os.O_RDONLY),
        "maps": errno_of(os.open, f"/proc/{pid}/maps", os.O_RDONLY),
        "namespace": errno_of(os.open, f"/proc/{pid}/ns/net", os.O_RDONLY),
        "ptrace": errno_of(attach, inner),
    }
print(json.dumps(found))
"""


NO_FDS = frozenset(f"fd {number}" for number in range(3, 20))
"""Those that a workload does not have."""


def check_refused(tries: dict[str, int]) -> None:
    """Which of the numbers are open, somebody with the owner's own uid may see; what they are, he may not."""
    for what, number in tries.items():
        closed = number == errno.ENOENT and what.startswith("fd ")
        assert closed or number in (errno.EACCES, errno.EPERM), (what, tries)
    assert errno.EACCES in {tries[what] for what in tries if what.startswith("fd ")}


async def intrude(target: linx.Session, *pids: int) -> dict[str, Any]:
    """What the container's root is refused. It sees the host's ``/proc``, so the pids are the host's."""
    words = [f"{pid}:{status_of(pid)['NSpid'].split()[-1]}" for pid in pids]
    argv = [sys.executable, "-I", "-c", INTRUDER, *words]
    async with linx.enter(target, argv, stdout=linx.PIPE, env={"PATH": "/usr/bin:/bin"}) as s:
        await s.proceed()
        assert s.stdout is not None
        said = b"".join([bytes(chunk) async for chunk in s.stdout])
        assert await s.wait() == linx.Exited(0)
    found: dict[str, Any] = json.loads(said)
    assert found.pop("uid") == 0
    assert int(found.pop("caps"), 16) & 1 << 19, "root inside has CAP_SYS_PTRACE there"
    return found


async def test_the_containers_root_reaches_nothing_of_the_agent(target: linx.Session) -> None:
    async with linx.enter(target, SLEEP) as parked, linx.enter(target, SLEEP) as running:
        await running.proceed()
        await eventually_async(lambda: name_of(running.host_pid) == "sleep", "it has executed")
        agents = [parked.host_pid, *reapers_of(parked.host_pid), *reapers_of(running.host_pid)]
        found = await intrude(target, running.host_pid, *agents)
        workload = found.pop(str(running.host_pid))
        workload.pop("exe for writing")  # a file of the host: that is for its mode to say
        assert {workload[what] for what in workload if what not in NO_FDS} == {0}, "what may be reached, it does reach"
        assert len(found) == 5
        for tries in found.values():
            check_refused(tries)


async def test_nor_of_the_one_that_only_joins_a_user_namespace(target: linx.Session) -> None:
    async with linx.enter(target, SLEEP, namespaces={"user", "net"}) as parked:
        found = await intrude(target, parked.host_pid, monitor_above(parked.host_pid))
        for tries in found.values():
            assert tries.pop("ptrace") == errno.ESRCH, "it is not in that PID namespace"
        for tries in found.values():
            check_refused(tries)


EXECUTED = """
import ctypes, os, sys
pid, program = sys.argv[1], os.readlink(f"/proc/{sys.argv[1]}/exe")
kept = os.open(f"/proc/{pid}/exe", os.O_PATH)
print(program, flush=True)
sys.stdin.readline()
try:
    fd = os.open(f"/proc/self/fd/{kept}", os.O_RDWR)
    os.write(fd, b"#!/bin/sh")
except OSError as exc:
    print("refused", exc.errno, flush=True)
else:
    print("overwritten", flush=True)
"""


@pytest.mark.parametrize("how", ["link", "interpreter"])
async def test_a_program_that_is_the_agent_itself(target: linx.Session, how: str, tmp_path: Path) -> None:
    """In the container's image ``/bin/sh`` is a link to ``/proc/self/exe``, or a script names that as its interpreter:
    the agent executes itself, and whoever is inside may look. What he gets hold of is no file of the host's.
    """
    program = tmp_path / "program"
    if how == "link":
        program.symlink_to("/proc/self/exe")
    ours, theirs = socket.socketpair()
    arguments = ["--zygote", str(theirs.fileno())]
    if how == "interpreter":
        program.write_text("#!/proc/self/exe --describe\n")
        program.chmod(0o755)
        arguments = []
    before = _agent.agent_path().read_bytes()
    with ours, theirs:
        if how == "interpreter":
            async with linx.enter(target, [program], stdout=linx.PIPE) as s:
                await s.proceed()
                assert await s.wait() == linx.Exited(64)  # it is the agent, and does not know what to do
        else:
            async with linx.enter(target, [program, *arguments], pass_fds=[theirs]) as s:
                await s.proceed()
                assert ours.recv(1000)  # it says hello: it is the agent
                said, answer = await look_and_kill(target, s)
                assert said == SEALED
                # The zygote still runs from the same copy; and if none did, it would be sealed (see above).
                assert answer in (f"refused {errno.ETXTBSY}", f"refused {errno.EPERM}")
    assert _agent.agent_path().read_bytes() == before


async def look_and_kill(target: linx.Session, victim: linx.Session) -> tuple[str, str]:
    """An intruder keeps the victim's program, has it killed, and writes."""
    argv = [sys.executable, "-I", "-c", EXECUTED, str(victim.host_pid)]
    async with linx.enter(target, argv, stdin=linx.PIPE, stdout=linx.PIPE) as s:
        await s.proceed()
        assert s.stdin is not None
        assert s.stdout is not None
        said = bytes(await s.stdout.receive_some(1000)).decode().strip()
        victim.kill()
        await victim.wait()
        await s.stdin.send_all(b"\n")
        answer = b"".join([bytes(chunk) async for chunk in s.stdout]).decode().strip()
    return said, answer


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_seals_are_what_the_kernel_says() -> None:
    """The numbers above, on a copy of our own."""
    fd = os.memfd_create("linx-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        assert fcntl.fcntl(fd, F_GET_SEALS) == 0
        fcntl.fcntl(fd, 1033, ALL_SEALS)
        assert refusal(os.write, fd, b"x") == errno.EPERM
    finally:
        os.close(fd)
