"""A zygote's spares: monitors that have served a session, and wait for the next."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio import _agent, _session
from linx_trio._proto import messages as m
from tests.agent.lines import line
from tests.agent.probes import needs_root, proc
from tests.agent.programs.phases import state_of
from tests.agent.rights import Options, rootless
from tests.support import children_of, eventually, eventually_async, exists, monitor_of, name_of

ROOT = os.geteuid() == 0
SOON = 20.0


def spares_of(zygote: int) -> list[int]:
    children = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    return [int(child) for child in children if name_of(int(child)) == _agent.SPARE]


async def monitor_of_one(argv: tuple[str, ...] = ("true",), **options: Any) -> int:
    """Runs it to its end."""
    async with linx.spawn(argv, **options) as s:
        monitor = monitor_of(s.host_pid)
        if s.state == "ready":
            await s.proceed()
        await s.wait()
    return monitor


async def the_spare() -> int:
    """The pid of the spare that the next session will have: the last one to be kept is the first to be taken."""
    return await monitor_of_one()


async def ended(monitor: int) -> None:
    await eventually_async(lambda: not exists(monitor), "the monitor has ended")


async def test_one_session_after_the_other_has_the_same_monitor() -> None:
    spare = await the_spare()
    assert name_of(spare) == _agent.SPARE
    async with linx.spawn(["sleep", "600"]) as s:
        assert monitor_of(s.host_pid) == spare
        assert name_of(spare) == "linx-monitor"
        await s.proceed()
        s.kill()
        assert await s.wait() == linx.Signaled(9)
    assert name_of(spare) == _agent.SPARE
    assert [await monitor_of_one() for _ in range(3)] == [spare] * 3


async def test_two_at_once_have_two_and_both_are_kept() -> None:
    spare = await the_spare()
    async with linx.spawn(["sleep", "600"], auto_proceed=True) as s:
        assert monitor_of(s.host_pid) == spare
        other = await the_spare()
        assert other != spare
        async with linx.spawn(["sleep", "600"]) as second:
            assert monitor_of(second.host_pid) == other
    assert await the_spare() == spare
    await ended(other)  # what it was to guard has never run


async def test_of_many_only_some_are_kept() -> None:
    monitors: list[int] = []
    count = _agent._KEPT_SPARES + 12

    async def one() -> None:
        async with linx.spawn(["true"]) as s:
            monitors.append(monitor_of(s.host_pid))
            await eventually_async(lambda: len(monitors) == count, "all of them are there")
            await s.proceed()
            await s.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    assert len(set(monitors)) == count
    kept = _agent._KEPT_SPARES
    await eventually_async(lambda: sum(map(exists, monitors)) == kept, "the others have ended")
    assert len(_agent.kept_fds()) >= kept + 1


@pytest.mark.parametrize(
    ("argv", "options", "error"),
    [
        (["/no/such/program"], {}, linx.SetupError),
        (["/no/such/program"], {"auto_proceed": True}, linx.SetupError),
        (["true"], {"cwd": "/no/such/directory"}, linx.SetupError),
    ],
)
async def test_what_could_not_run_ends_its_monitor(argv: list[str], options: dict[str, Any], error: Any) -> None:
    spare = await the_spare()
    with pytest.raises(error):
        async with linx.spawn(argv, **options) as s:
            await s.proceed()
    await ended(spare)


async def test_what_was_aborted_ends_its_monitor() -> None:
    spare = await the_spare()
    async with linx.spawn(["true"]) as s:
        await s.abort()
    await ended(spare)


async def test_a_large_request_ends_its_monitor() -> None:
    """And with it the memory that it took."""
    spare = await the_spare()
    assert await monitor_of_one(env={"LARGE": "x" * 100_000}) == spare
    await ended(spare)


async def test_one_that_was_killed_is_not_used() -> None:
    for _ in range(3):
        spare = await the_spare()
        os.kill(spare, signal.SIGKILL)
        await ended(spare)
        assert await monitor_of_one() != spare


async def test_one_that_is_killed_at_the_moment_of_its_use() -> None:
    """Nobody has read the request, so another one gets it."""
    for _ in range(20):
        os.kill(await the_spare(), signal.SIGKILL)
        assert (await linx.run(["true"])).returncode == 0


async def test_one_that_is_dead_and_not_yet_reaped() -> None:
    spare = await the_spare()
    zygote = _agent.current()[-1].pid
    monitors: list[int] = []

    async def run() -> None:
        monitors.append(await monitor_of_one())

    os.kill(zygote, signal.SIGSTOP)
    try:
        os.kill(spare, signal.SIGKILL)
        eventually(lambda: state_of(spare) == "Z", "it is dead")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(zygote, signal.SIGCONT)
    finally:
        os.kill(zygote, signal.SIGCONT)
    assert monitors
    assert monitors[0] != spare


async def test_killed_together_with_its_zygote() -> None:
    spare = await the_spare()
    zygote = _agent.current()[-1].pid
    os.kill(zygote, signal.SIGKILL)
    eventually(lambda: state_of(zygote) in ("", "Z"), "it is dead")
    assert (await linx.run(["true"])).returncode == 0
    assert _agent.current()[-1].pid != zygote
    await ended(spare)


async def test_they_go_when_their_zygote_is_retired() -> None:
    spare = await the_spare()
    zygote = _agent.current()[-1]
    async with linx.spawn(["sleep", "600"], auto_proceed=True) as s:
        assert monitor_of(s.host_pid) == spare
        other = await the_spare()
        _agent.discard(zygote)
        await ended(other)
        assert exists(spare)
    await ended(spare)
    _agent.reap()
    await eventually_async(lambda: not exists(zygote.pid) or state_of(zygote.pid) == "Z", "and so has the zygote")


def test_a_forked_python_has_none() -> None:
    trio.run(the_spare)
    kept = _agent.kept_fds()
    assert len(kept) >= 2
    pid = os.fork()
    if pid == 0:
        open_ones = [fd for fd in kept if os.path.lexists(f"/proc/self/fd/{fd}")]
        os._exit(1 if open_ones or _agent.kept_fds() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


PROGRAM = """
import sys, linx_trio as linx
from linx_trio import _agent, _session
linx.run_sync(["true"])
print(_agent.current()[-1].pid, flush=True)
sys.stdin.read()
"""


def test_it_goes_with_python() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1) as python:
        assert python.stdout is not None
        zygote = int(python.stdout.readline())
        (spare,) = spares_of(zygote)
        python.kill()
    eventually(lambda: not exists(zygote) and not exists(spare), "both have ended")


# ---- as it was -------------------------------------------------------------------------------------------------------

KINDS = {"pid", "mount", "uts", "ipc", "net"} | (set() if ROOT else {"user"})
EVERYTHING: list[tuple[list[str], dict[str, Any]]] = [
    (["sh", "-c", "setsid sleep 600 & exit 3"], {}),
    (["sh", "-c", "kill -SEGV $$"], {}),
    (["sh", "-c", "exec sleep 600"], {"shutdown": linx.Kill(0)}),
    (["true"], {"cwd": "/usr", "umask": 0, "nice": 5, "rlimits": {"nofile": (64, 64), "core": (0, 0)}}),
    (["true"], {"oom_score_adj": 500, "cpu_affinity": {min(os.sched_getaffinity(0))}, "new_session": False}),
    (["true"], {"namespaces": KINDS, "hostname": "elsewhere"}),
    (["true"], {"namespaces": KINDS, "init": True, "sysctls": {"net.ipv4.ip_forward": "1"}}),
    (["true"], {"env": {"SOMEWHAT": "x" * 20_000}}),
    (["true"], {"stdin": linx.PIPE, "stdout": linx.PIPE, "stderr": linx.STDOUT}),
    (["true"], {"user": linx.user.root_map(), "no_new_privs": True, "capabilities": linx.capabilities.keep(())}),
    (["true"], {"stdio": linx.PTY}),
    (["true"], {"user": linx.user.root_map(), "uid": 0, "gid": 0}),
    *([(["true"], {"uid": 65534, "gid": 65534, "groups": [65534]})] if ROOT else []),
]


def kinds_of_fds(directory: Path) -> Iterator[str]:
    for fd in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(fd).split(":[")[0]


def facts_of(monitor: int) -> dict[str, Any]:
    """All that a session could have changed in the process that guards it."""
    proc = Path(f"/proc/{monitor}")
    kept = ("Umask", "Uid", "Gid", "Groups", "Threads", "NoNewPrivs", "Seccomp", "Cpus_allowed_list")
    status = [line for line in (proc / "status").read_text().splitlines() if line.startswith((*kept, "Sig", "Cap"))]
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    return {
        "status": [line for line in status if not line.startswith("SigQ")],
        "nice": fields[16],
        "session": fields[1:4],
        "fds": sorted(kinds_of_fds(proc / "fd")),
        "links": [os.readlink(proc / name) for name in ("cwd", "root", "exe")],
        "namespaces": {link.name: os.readlink(link) for link in (proc / "ns").iterdir()},
        "limits": (proc / "limits").read_text(),
        "oom_score_adj": (proc / "oom_score_adj").read_text(),
        "cgroup": (proc / "cgroup").read_text(),
        "owner": proc.stat().st_uid,  # root's, if it may not be looked into
        "children": (proc / "task" / str(monitor) / "children").read_text(),
        "name": name_of(monitor),
    }


@pytest.mark.parametrize("auto_proceed", [True, False])
async def test_a_monitor_is_afterwards_what_it_was(auto_proceed: bool) -> None:
    spare = await the_spare()
    before = facts_of(spare)
    for argv, options in EVERYTHING:
        async with linx.spawn(argv, auto_proceed=auto_proceed, **options) as s:
            if not auto_proceed:
                await s.proceed()
            if "shutdown" not in options:
                await s.wait()
        eventually(lambda: facts_of(spare) == before, f"it is what it was before {argv} {options}", SOON)
    assert await monitor_of_one() == spare


async def test_its_memory_does_not_grow() -> None:
    def pages() -> int:
        return int(Path(f"/proc/{spare}/statm").read_text().split()[1])

    async def some() -> None:
        for argv, options in EVERYTHING[3:]:  # those that end by themselves, and well
            async with linx.spawn(argv, auto_proceed=True, **options) as s:
                assert await s.wait() == linx.Exited(0)

    spare = await the_spare()
    await some()
    before = pages()
    for _ in range(10):
        await some()
    assert pages() <= before + 4
    assert await monitor_of_one() == spare


# ---- what a workload has done to its parent --------------------------------------------------------------------------

DONE_TO_PARENT = {
    "nice": "os.setpriority(os.PRIO_PROCESS, parent, 7)",
    "a limit": "resource.prlimit(parent, resource.RLIMIT_NOFILE, (64, 64))",
    "scheduling": "os.sched_setscheduler(parent, os.SCHED_BATCH, os.sched_param(0))",
    "affinity": "os.sched_setaffinity(parent, {min(os.sched_getaffinity(0))})",
    "oom_score_adj": "rewrite('oom_score_adj', lambda was: f'{int(was) + 1}')",
    "core dumps": "rewrite('coredump_filter', lambda was: f'{int(was, 16) ^ 1:#x}')",
    "queued signals": "[os.kill(parent, signal.SIGRTMIN + 6) for _ in range(100)]",
    "keyring": "keyctl(1, b'planted'); keyctl(18)",  # KEYCTL_JOIN_SESSION_KEYRING, KEYCTL_SESSION_TO_PARENT
}
DOES = """
import ctypes, os, pathlib, resource, signal
parent = os.getppid()
def keyctl(*arguments):
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    if ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "keyctl")
def rewrite(name, change):
    path = pathlib.Path(f"/proc/{parent}/{name}")
    was = path.read_text()
    path.write_text(change(was))
    assert path.read_text() != was
"""


@pytest.mark.parametrize("what", DONE_TO_PARENT)
async def test_what_was_done_to_it_is_not_handed_on(what: str) -> None:
    if what == "affinity" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    spare = await the_spare()
    program = [sys.executable, "-c", DOES + DONE_TO_PARENT[what]]
    assert (await linx.run(program)).returncode == 0
    await ended(spare)
    assert await monitor_of_one() != spare


async def test_signals_do_nothing_to_it() -> None:
    spare = await the_spare()
    program = "import os, signal\nfor number in set(range(1, 32)) - {9, 19}: os.kill(os.getppid(), number)"
    assert (await linx.run([sys.executable, "-c", program])).returncode == 0
    assert [await monitor_of_one() for _ in range(2)] == [spare] * 2


SHARED_WITH_MEMORY = ("oom_score_adj", "coredump_filter")


@pytest.mark.parametrize("fresh_user", [True, pytest.param(False, marks=needs_root)])
@pytest.mark.parametrize("what", DONE_TO_PARENT)
async def test_pid_1_of_ours_keeps_it_to_itself(what: str, fresh_user: bool) -> None:
    """It is the parent of what runs with `init`, and nobody else's: the monitor goes on, as it was."""
    spare = await the_spare()
    before = [proc(spare, name) for name in SHARED_WITH_MEMORY]
    program = [sys.executable, "-c", DOES + DONE_TO_PARENT[what]]
    kinds = {"pid", "mount"} | ({"user"} if fresh_user else set())
    user = linx.user.root_map() if fresh_user else None
    # A /proc of its own: in the host's its parent, 1, would be the host's.
    options: dict[str, Any] = {"namespaces": kinds, "init": True, "user": user, "mounts": [linx.mount.Proc("/proc")]}
    completed = await linx.run(program, check=False, stderr=linx.DEVNULL, **options)
    passed_on = -(signal.SIGRTMIN + 6)  # to the workload, if it still runs
    refused = not ROOT and what in {"oom_score_adj", "core dumps"}  # in a user namespace, its /proc/1 is not theirs
    assert completed.returncode in ({0, passed_on} if "signals" in what else {1} if refused else {0})
    assert await monitor_of_one() == spare
    assert [proc(spare, name) for name in SHARED_WITH_MEMORY] == before


def found_in(pid: int, secret: bytes) -> bool:
    """Anywhere in its memory."""
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if line.split()[1].startswith("r") and not line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                memory.seek(start)
                if secret in memory.read(end - start):
                    return True
    return False


@pytest.mark.parametrize("size", [100, 3_000, 6_000, 20_000])
async def test_nothing_of_a_session_is_remembered(size: int) -> None:
    secret = os.urandom(8).hex()
    async with linx.spawn(["sleep", "600"], env={"SECRET": secret, "MORE": "x" * size}) as s:
        spare = monitor_of(s.host_pid)
        assert found_in(s.host_pid, secret.encode())
        await s.proceed()
    async with linx.spawn(["true"], env={}) as s:
        assert monitor_of(s.host_pid) == spare
        assert not found_in(spare, secret.encode())
        assert not found_in(s.host_pid, secret.encode())


async def test_signals_kept_for_one_session_are_not_the_next_ones() -> None:
    spare = await the_spare()
    async with linx.spawn(["sleep", "600"]) as s:
        for _ in range(50):
            s.signal(signal.SIGUSR1)
        await s.proceed()
        assert await s.wait() == linx.Signaled(signal.SIGUSR1)
    assert await monitor_of_one() == spare


async def test_what_the_kernel_counts_is_each_sessions_own() -> None:
    busy = "end = __import__('time').process_time() + 0.2\nwhile __import__('time').process_time() < end: pass"
    spare = await the_spare()
    async with linx.spawn([sys.executable, "-c", busy], auto_proceed=True) as s:
        assert monitor_of(s.host_pid) == spare
        await s.wait()
    assert s.usage is not None
    assert s.usage.user_time + s.usage.system_time >= 0.2
    async with linx.spawn(["true"], auto_proceed=True) as s:
        await s.wait()
    assert s.usage is not None
    assert s.usage.user_time + s.usage.system_time < 0.2
    assert await monitor_of_one() == spare


# ---- the conversation ------------------------------------------------------------------------------------------------


LATE = (m.SHUTDOWN, m.KILL, m.PROCEED, m.ABORT, m.RELEASE, m.signal(9), m.steps([("no_new_privs",)]), m.shutdown(1000))


async def test_what_is_said_too_late_is_not_the_next_sessions() -> None:
    async with line() as to:
        for _ in range(3):
            to.request(b"/bin/sh", b"-c", b"exit 3")
            *_, end, idle = await to.until_idle()
            assert isinstance(end, m.Over)
            assert (end.code, idle) == (3, m.Idle())
            for frame in LATE:
                to.channel.send(frame)


@pytest.mark.parametrize("cut", [False, True])
async def test_what_is_said_with_a_request_is_that_sessions(cut: bool) -> None:
    """A late word does not make the monitor deaf to what comes behind it, in one piece with it or not."""
    async with line() as to:
        to.request(b"/bin/true")
        await to.until_idle()
        frame = m.Spawn((b"/bin/sleep", b"600"), (), auto_proceed=True, steps=()).frame()
        to.channel.send(m.KILL + (frame[:20] if cut else frame))
        if cut:
            to.channel.send(frame[20:])
        to.channel.send(m.signal(15))
        assert list(map(repr, await to.until_idle()))[-2:] == ["Kill(signum=15)", "Idle()"]


async def test_nobody_has_a_command_to_give_before_the_first_request() -> None:
    async with line() as to:
        to.channel.send(m.PROCEED)
        (refusal,) = await to.until_idle()
        assert isinstance(refusal, m.Refusal)


@pytest.mark.parametrize("junk", [b"\x83a\7", b"", b"\x83w\4spam", b"\x83h\2w\5spawna\1"])
async def test_nonsense_instead_of_the_next_request_ends_it(junk: bytes) -> None:
    async with line() as to:
        to.request(b"/bin/true")
        await to.until_idle()
        to.channel.send(len(junk).to_bytes(4, "big") + junk)
        (refusal,) = await to.until_idle()
        assert isinstance(refusal, m.Refusal)
        assert refusal.stage == "request"


async def test_a_request_behind_another_one_is_nonsense() -> None:
    """One session at a time: who does not wait for `idle` ends both."""
    async with line() as to:
        to.request(b"/bin/sleep", b"600")
        to.request(b"/bin/true")
        assert not {m.Exit, m.Over} & set(map(type, await to.until_idle()))


async def test_one_whom_nobody_has_read_for_long_ends() -> None:
    """It has had more to say than there was room for, so it says nothing more; and must not wait for ever, either."""
    _agent.discard(_agent.current()[-1])  # a zygote with no spares
    async with line(room=2048) as to:
        optional = [m.optional(("chdir", b"/no/such/directory"))] * 1000
        fds = tuple((m.NULL, number) for number in range(3))
        to.channel.send(m.Spawn((b"/bin/true",), (), fds=fds, steps=(*optional, m.CHECKPOINT)).frame())
        to.channel.send(m.PROCEED)
        await eventually_async(lambda: not children_of(to.zygote) and not spares_of(to.zygote), "it has ended")
        assert m.Idle not in map(type, await to.until_idle())


async def test_a_monitor_that_was_condemned_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session has asked the zygote to kill it, who may be slow to do so."""
    monkeypatch.setattr(_session, "CLOSE_SECONDS", 2.0)
    spare = await the_spare()
    zygote = _agent.current()[-1]
    kinds = {"pid"} if ROOT else {"pid", "user"}
    kept = zygote.filenos()

    async def go_on(session: linx.Session) -> None:
        await eventually_async(lambda: session._condemned, "its killing has been ordered")
        os.kill(spare, signal.SIGCONT)

    try:
        workload = linx.Workload(["sleep", "600"], auto_proceed=True, namespaces=kinds, init=True)
        async with trio.open_nursery() as nursery, linx.spawn(workload) as s:
            os.kill(spare, signal.SIGSTOP)
            os.kill(zygote.pid, signal.SIGSTOP)
            nursery.start_soon(go_on, s)
        assert zygote.filenos() < kept
    finally:
        os.kill(zygote.pid, signal.SIGCONT)
    await ended(spare)


@pytest.mark.parametrize("options", [{}, rootless("pid") | {"init": True}], ids=["", "init"])
async def test_nothing_of_where_it_looked_is_remembered(options: Options) -> None:
    """For the program, on the stack that is its own and the next one's."""
    secret = os.urandom(8).hex()
    spare = await the_spare()
    done = await linx.run(["true"], env={"PATH": f"/{'x' * 100}{secret}:/usr/bin:/bin"}, **options)
    assert done.returncode == 0
    assert await the_spare() == spare
    assert not found_in(spare, secret.encode())
