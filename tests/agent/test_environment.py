"""What a workload starts with: exactly what was asked for, the caller's own where nothing was, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from tests.agent.probes import (
    OVER_ANY_LIMIT,
    SOMEBODY,
    as_somebody,
    cat,
    fds_of,
    flags_of,
    forget_zygote,
    has_only,
    identity,
    link,
    needs_root,
    opened,
    public_agent,
    settled,
    status_of,
    working_in,
)
from tests.support import DEADLINE, monitor_of, stat_of

CLONE_NEWNET = 0x40000000
PGRP, SESSION, NICE = 2, 3, 16
"""Places in `stat_of`, see ``proc(5)``."""


def output_of(argv: list[str | Path], **options: Any) -> str:
    out = linx.run_sync(argv, capture_stdout=True, **options).stdout
    assert isinstance(out, bytes)
    return out.decode().rstrip("\n")


def number_in_stat(pid: int, field: int) -> int:
    fields = stat_of(pid)
    assert fields is not None
    return int(fields[field])


# ---- signals, session, process group -----------------------------------------------------------------------------


@contextlib.contextmanager
def disturbed_signals() -> Iterator[None]:
    """Many signals ignored, others blocked, in the thread that spawns."""
    ignored = [signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGTSTP, *range(34, 65)]
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    handlers[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, lambda *_: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {2, 14, 15, 17, 32, 33})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("fresh", [False, True], ids=["old zygote", "new zygote"])
async def test_signals_are_at_their_defaults(fresh: bool) -> None:
    with disturbed_signals():
        if fresh:
            forget_zygote()
        async with cat() as s:
            status = status_of(s.host_pid)
    signals = {name: int(status[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")}
    assert signals == dict.fromkeys(signals, 0)


async def test_a_closed_pipe_kills_as_it_should() -> None:
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN, "as always in Python"
    async with linx.spawn(["yes"], stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdout is not None
        await s.stdout.aclose()
        assert await s.wait() == linx.Signaled(signal.SIGPIPE)


async def test_its_own_session() -> None:
    async with cat() as s, cat() as other:
        assert [number_in_stat(s.host_pid, field) for field in (PGRP, SESSION)] == [s.host_pid] * 2
        assert os.getpgid(monitor_of(s.host_pid)) != s.host_pid
        assert number_in_stat(other.host_pid, SESSION) == other.host_pid


async def test_the_callers_session() -> None:
    async with cat(new_session=False) as s:
        assert number_in_stat(s.host_pid, SESSION) == os.getsid(0)
        assert number_in_stat(s.host_pid, PGRP) == s.host_pid, "but a process group of its own"


@pytest.mark.parametrize("new_session", [True, False])
async def test_kill_0_hits_nobody_else(new_session: bool) -> None:
    async with cat(new_session=new_session) as neighbour:
        script = ["sh", "-c", "sleep 600 & kill -TERM 0; sleep 600"]
        async with linx.spawn(script, new_session=new_session, auto_proceed=True) as s:
            monitor = monitor_of(neighbour.host_pid)
            assert await s.wait() == linx.Signaled(signal.SIGTERM)
        await settled(neighbour)
        assert monitor_of(neighbour.host_pid) == monitor
    assert (await linx.run(["true"])).returncode == 0, "so does the zygote"


# ---- fds ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_at(directory: Path, numbers: list[int]) -> Iterator[dict[int, tuple[int, int]]]:
    """A different file open at each of these numbers; what each is."""
    for number in numbers:
        with contextlib.suppress(OSError):
            os.fstat(number)
            pytest.fail(f"fd {number} is in use")
    with contextlib.ExitStack() as stack:
        for number in numbers:
            with opened(directory / str(number)) as fd:
                os.dup2(fd, number, inheritable=False)
                stack.callback(os.close, number)
        yield {number: identity(number) for number in numbers}


@pytest.mark.parametrize("fresh", [False, True], ids=["old zygote", "new zygote"])
@pytest.mark.parametrize("passed", [[], [50], [50, 51, 52], [900], [57, 900, 61], [*range(60, 160)], [5000, 70, 5001]])
async def test_exactly_the_fds_asked_for(passed: list[int], fresh: bool, tmp_path: Path) -> None:
    stray = [55, 300, 901]
    with files_at(tmp_path, sorted({*passed, *stray})) as files:
        for number in stray:
            os.set_inheritable(number, True)
        if fresh:
            forget_zygote()
        async with cat(pass_fds=passed) as s:
            theirs = fds_of(s.host_pid)
            assert sorted(theirs) == [0, 1, 2, *sorted(passed)]
            assert {number: theirs[number] for number in passed} == {number: files[number] for number in passed}
            assert theirs[2] == identity(2)
            for number in passed:
                assert not flags_of(s.host_pid, number) & os.O_CLOEXEC, "else its own children would not have it"


async def test_the_parked_child_holds_nothing_else(tmp_path: Path) -> None:
    """Above all no copy of the session's socket, or of a pipe's far end: their end of file would not come."""
    with files_at(tmp_path, [57, 900]) as files:
        async with linx.spawn(["sleep", "600"], stdin=linx.PIPE, stdout=linx.PIPE, pass_fds=[57, 900]) as s:
            theirs = fds_of(s.host_pid)
            assert {57: theirs[57], 900: theirs[900]} == files
            assert len(theirs.keys() - {0, 1, 2, 57, 900}) == 1, "besides these, one socket to its monitor"


async def test_any_arrangement_of_fds(tmp_path: Path) -> None:
    """Sources sit on each other's targets, in every way: swapped, in circles, one for several."""
    dice = random.Random(2)
    numbers = [40, 41, 42, 43, 44, 700]
    with files_at(tmp_path, numbers) as files:
        for _ in range(25):
            streams = dice.choices(numbers, k=3)
            passed = dice.sample(numbers, k=dice.randrange(len(numbers)))
            options: Any = dict(zip(("stdin", "stdout", "stderr"), streams, strict=True))
            sources = {**dict(enumerate(streams)), **{number: number for number in passed}}
            asked = {number: files[source] for number, source in sources.items()}
            async with linx.spawn(["sleep", "600"], pass_fds=passed, auto_proceed=True, **options) as s:
                await has_only(s, asked)


async def test_standard_streams_swapped() -> None:
    async with linx.spawn(["sleep", "600"], stdin=1, stdout=2, stderr=0, auto_proceed=True) as s:
        await has_only(s, {0: identity(1), 1: identity(2), 2: identity(0)})


async def test_a_low_limit_of_files_does_not_stop_a_high_number(tmp_path: Path) -> None:
    with files_at(tmp_path, [900]) as files:
        async with cat(pass_fds=[900], rlimits={"nofile": (64, 64)}) as s:
            assert fds_of(s.host_pid)[900] == files[900]


async def test_objects_with_fileno_are_passed(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as file:
        async with cat(pass_fds=[file]) as s:
            assert fds_of(s.host_pid)[file.fileno()] == identity(file.fileno())


# ---- directory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["str", "bytes", "path", "relative", "odd"])
async def test_cwd(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / ("w\udcff ü" if kind == "odd" else "sub")
    directory.mkdir()
    cwd: Any = {"str": str(directory), "bytes": os.fsencode(directory), "relative": "sub"}.get(kind, directory)
    with working_in(tmp_path if kind == "relative" else "/"):
        async with cat(cwd=cwd) as s:
            assert link(s.host_pid, "cwd") == str(directory)


async def test_the_callers_cwd_at_this_spawn(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path.parent, Path("/")):
        with working_in(directory):
            async with cat() as s:
                assert link(s.host_pid, "cwd") == str(directory)
                assert link(monitor_of(s.host_pid), "cwd") == "/", "the agent keeps nothing busy"


@pytest.mark.parametrize("cwd", [None, "/usr"])
async def test_a_caller_whose_directory_is_gone(cwd: str | None, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with working_in(gone):
        gone.rmdir()
        async with cat(cwd=cwd) as s:
            assert link(s.host_pid, "cwd") == (f"{gone} (deleted)" if cwd is None else cwd)


# ---- environment variables ---------------------------------------------------------------------------------------


def read_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


async def environment_of(**options: Any) -> set[bytes]:
    async with cat(**options) as s:
        return set(read_bytes(f"/proc/{s.host_pid}/environ").split(b"\0")) - {b""}


async def test_env(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("one", "two", "\udcff"):
        monkeypatch.setenv("LINX_TEST_VALUE", value)
        assert await environment_of() == {key + b"=" + item for key, item in os.environb.items()}
    assert await environment_of(env={}) == set()
    assert await environment_of(env={"A": "1", "B": "", "Ü": "\udcfe=x"}) == {b"A=1", b"B=", "Ü=".encode() + b"\xfe=x"}
    assert await environment_of(env={b"\xff": b"\xfe"}) == {b"\xff=\xfe"}
    large = {f"V{i}": "x" * 100_000 for i in range(10)}
    assert await environment_of(env=large) == {f"{key}={value}".encode() for key, value in large.items()}


# ---- what is the caller's at this spawn --------------------------------------------------------------------------


async def test_umask() -> None:
    before = os.umask(0o22)
    try:
        for mask in (0o27, 0, 0o777, 0o22):
            os.umask(mask)
            async with cat() as s:
                assert status_of(s.host_pid)["Umask"] == f"{mask:04o}"
            async with cat(umask=0o246) as s:
                assert status_of(s.host_pid)["Umask"] == "0246"
    finally:
        os.umask(before)


def may_be_nicer() -> bool:
    """Whether this process may lower its nice value again, having raised it."""
    return bool(int(status_of(os.getpid())["CapEff"], 16) >> 23 & 1)


@contextlib.contextmanager
def niceness(value: int) -> Iterator[None]:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, value)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


async def test_nice() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for increment in (0, 3, 40):
        async with cat(nice=increment) as s:
            assert number_in_stat(s.host_pid, NICE) == min(own + increment, 19)


@pytest.mark.skipif(not may_be_nicer(), reason="CAP_SYS_NICE is needed to come back from a higher nice value")
@pytest.mark.parametrize("fresh", [False, True], ids=["old zygote", "new zygote"])
async def test_the_callers_nice_at_this_spawn(fresh: bool) -> None:
    for value in (5, -3, 0):
        with niceness(value):
            if fresh:
                forget_zygote()
            for increment in (0, 2, -1):
                async with cat(nice=increment) as s:
                    assert number_in_stat(s.host_pid, NICE) == value + increment


def limits_of(pid: int) -> dict[int, tuple[int, int]]:
    return {number: resource.prlimit(pid, number) for number in range(16)}


@contextlib.contextmanager
def soft_limits(changes: Mapping[int, int]) -> Iterator[None]:
    before = {number: resource.getrlimit(number) for number in changes}
    for number, soft in changes.items():
        resource.setrlimit(number, (soft, before[number][1]))
    try:
        yield
    finally:
        for number, pair in before.items():
            resource.setrlimit(number, pair)


@pytest.mark.parametrize("fresh", [False, True], ids=["old zygote", "new zygote"])
async def test_rlimits_of_the_caller_at_this_spawn(fresh: bool) -> None:
    every: list[dict[int, int]] = [
        {},
        {resource.RLIMIT_NOFILE: 300, resource.RLIMIT_CORE: 0},
        {resource.RLIMIT_NOFILE: 400, resource.RLIMIT_FSIZE: 1 << 40, resource.RLIMIT_STACK: 1 << 20},
        {},
    ]
    for changes in every:
        with soft_limits(changes):
            if fresh:
                forget_zygote()
            async with cat() as s:
                assert limits_of(s.host_pid) == limits_of(os.getpid())


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] in range(1300), reason="not that many files are allowed"
)
def test_a_caller_with_many_files_open() -> None:
    """``select(2)`` ends at 1024."""
    with soft_limits({resource.RLIMIT_NOFILE: 1300}), contextlib.ExitStack() as stack:
        stack.callback(forget_zygote)
        for _ in range(1100):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        forget_zygote()
        assert linx.run_sync(["cat"], stdin=b"x", capture_stdout=True).stdout == b"x"


async def test_rlimits() -> None:
    asked = {"nofile": (64, 128), "core": (0, 0), "fsize": (1 << 20, 1 << 30), "cpu": (1000, 2000)}
    numbers = {"cpu": 0, "fsize": 1, "core": 4, "nofile": 7}
    async with cat(rlimits=asked) as s:
        expected = limits_of(os.getpid()) | {numbers[name]: pair for name, pair in asked.items()}
        assert limits_of(s.host_pid) == expected
    async with cat() as s:
        assert limits_of(s.host_pid) == limits_of(os.getpid()), "the next one has none of it"


async def test_rlimits_hold_for_the_workload() -> None:
    done = await linx.run(["sh", "-c", "ulimit -n; ulimit -Hn"], rlimits={"nofile": (10, 20)}, capture_stdout=True)
    assert done.stdout == b"10\n20\n"


@pytest.mark.parametrize("limits", [{"fsize": (0, 0)}, {"nofile": (4, 4)}, {"fsize": (10, 10), "nofile": (5, 9)}])
async def test_rlimits_do_not_hold_for_what_it_takes_to_make_it(limits: dict[str, tuple[int, int]]) -> None:
    """A sandbox is many files, some of them written."""
    await linx.run(linx.sandboxed(["true"], rlimits=limits))


# ---- PATH --------------------------------------------------------------------------------------------------------


def program(path: Path, says: str, mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {says}\n")
    path.chmod(mode)
    return path


def test_path_is_the_workloads_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        program(tmp_path / name / "prog", f"from-{name}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'a'}:/usr/bin:/bin")
    assert output_of(["prog"]) == "from-a"
    assert output_of(["prog"], env={"PATH": f"{tmp_path / 'b'}:{tmp_path / 'c'}"}) == "from-b"
    monkeypatch.setenv("PATH", f"{tmp_path / 'c'}:/usr/bin:/bin")
    assert output_of(["prog"]) == "from-c"
    assert output_of(["echo", "x"], env={}) == "x", "without PATH the usual directories are searched"


def test_path_skips_what_cannot_be_executed(tmp_path: Path) -> None:
    program(tmp_path / "a" / "prog", "wrong", mode=0o644)
    (tmp_path / "b" / "prog").mkdir(parents=True)
    program(tmp_path / "file", "wrong")
    (tmp_path / "loop").symlink_to("loop")
    program(tmp_path / "z" / "prog", "right")
    before = [*(f"{tmp_path}/{name}" for name in ("missing", "a", "b", "file", "loop")), "/" + "l" * 5000]
    path = ":".join([*before, f"{tmp_path}/z"])
    assert output_of(["prog"], env={"PATH": path}) == "right"
    with pytest.raises(PermissionError) as refused:
        linx.run_sync(["prog"], env={"PATH": ":".join(before)})
    assert isinstance(refused.value, linx.SetupError)
    assert (refused.value.stage, refused.value.filename) == ("execve", "prog")


@pytest.mark.parametrize("path", ["", ":/usr/bin", "/usr/bin:", "/nonexistent::/usr/bin", "."])
def test_an_empty_entry_is_the_workloads_directory(path: str, tmp_path: Path) -> None:
    program(tmp_path / "prog", "from-here")
    assert output_of(["prog"], env={"PATH": path}, cwd=tmp_path) == "from-here"
    with pytest.raises(FileNotFoundError):
        linx.run_sync(["prog"], env={"PATH": path}, cwd="/")


@pytest.mark.parametrize("env", [None, {}, {"PATH": "/nonexistent"}, {"PATH": ""}])
def test_a_missing_program(env: dict[str, str] | None) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        linx.run_sync(["linx-test-no-such-program"], env=env)
    assert isinstance(refused.value, linx.SetupError)
    assert refused.value.filename == "linx-test-no-such-program"
    assert refused.value.hint is not None
    assert "PATH" in refused.value.hint


def test_a_path_with_a_slash_is_not_looked_up(tmp_path: Path) -> None:
    program(tmp_path / "sub" / "prog", "relative")
    assert output_of(["./prog"], cwd=tmp_path / "sub", env={"PATH": "/nonexistent"}) == "relative"
    assert output_of(["sub/prog"], cwd=tmp_path) == "relative"


async def test_argv_is_handed_over_as_it_is() -> None:
    argv: list[str | bytes | Path] = [
        "sh",
        "-c",
        'read x; printf "%s|" "$0" "$@"',
        "",
        "a b",
        "ü",
        b"\xff\n",
        Path("/x"),
        "x" * 100_000,
    ]
    async with linx.spawn(argv, stdin=linx.PIPE, stdout=linx.PIPE, auto_proceed=True) as s:
        cmdline = read_bytes(f"/proc/{s.host_pid}/cmdline")
    assert cmdline == b"".join(os.fsencode(argument) + b"\0" for argument in argv)


# ---- ids and privileges ------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"uid": SOMEBODY, "gid": SOMEBODY}, ""),
        ({"uid": SOMEBODY, "gid": SOMEBODY, "groups": [3, 1, 70000]}, "1 3 70000"),
        ({"uid": SOMEBODY, "gid": SOMEBODY, "groups": []}, ""),
    ],
)
async def test_ids(options: dict[str, Any], groups: str) -> None:
    async with cat(**options) as s:
        status = status_of(s.host_pid)
    assert status["Uid"].split() == status["Gid"].split() == [str(SOMEBODY)] * 4
    assert status["Groups"] == groups
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")} == {0}


@needs_root
async def test_gid_and_groups_alone() -> None:
    async with cat(gid=SOMEBODY, groups=[5]) as s:
        status = status_of(s.host_pid)
    assert (status["Gid"].split(), status["Groups"]) == ([str(SOMEBODY)] * 4, "5")
    assert status["Uid"] == status_of(os.getpid())["Uid"]
    async with cat() as s:
        assert [status_of(s.host_pid)[name] for name in ("Uid", "Gid", "Groups")] == [
            status_of(os.getpid())[name] for name in ("Uid", "Gid", "Groups")
        ]


@needs_root
async def test_groups_of_the_caller() -> None:
    """They are the workload's too, unless it is somebody else: whose groups they are not."""
    before = os.getgroups()
    os.setgroups([4, 5])
    try:
        async with cat() as s:
            assert status_of(s.host_pid)["Groups"] == "4 5"
        async with cat(uid=os.getuid(), gid=SOMEBODY) as s:
            assert status_of(s.host_pid)["Groups"] == "4 5"
        async with cat(uid=SOMEBODY) as s:
            assert status_of(s.host_pid)["Groups"] == ""
    finally:
        os.setgroups(before)


async def test_ones_own_ids() -> None:
    async with cat(uid=os.getuid(), gid=os.getgid()) as s:
        status, own = status_of(s.host_pid), status_of(os.getpid())
    assert [status[name] for name in ("Uid", "Gid", "Groups")] == [own[name] for name in ("Uid", "Gid", "Groups")]


@needs_root
async def test_somebody_elses_workload_ends_with_its_block() -> None:
    script = "trap '' TERM; setsid sleep 600 & echo up; read x"
    options: Any = {"uid": SOMEBODY, "gid": SOMEBODY, "cwd": "/", "stdin": linx.PIPE, "stdout": linx.PIPE}
    async with linx.spawn(["sh", "-c", script], auto_proceed=True, **options) as s:
        assert s.stdout is not None
        assert await s.stdout.receive_some() == b"up\n"
    assert s.outcome == linx.Signaled(9)


@pytest.mark.parametrize("wanted", [False, True])
async def test_no_new_privs(wanted: bool) -> None:
    async with cat(no_new_privs=wanted) as s:
        assert status_of(s.host_pid)["NoNewPrivs"] == str(int(wanted))


# ---- optional ----------------------------------------------------------------------------------------------------


async def test_what_may_be_given_up() -> None:
    asked: Any = {"nofile": (OVER_ANY_LIMIT, OVER_ANY_LIMIT), "core": (0, 0)}
    async with cat(rlimits=asked, optional={"rlimits"}) as s:
        assert s.info().degraded == ("rlimits",)
        assert limits_of(s.host_pid)[resource.RLIMIT_NOFILE] == resource.getrlimit(resource.RLIMIT_NOFILE)
        assert limits_of(s.host_pid)[resource.RLIMIT_CORE] == (0, 0), "the rest of it is granted"
    with pytest.raises(linx.SetupError) as refused:
        async with cat(rlimits=asked, optional={"nice"}):
            pytest.fail("nothing else may be given up")
    assert refused.value.stage == "rlimit"


async def test_what_is_granted_is_not_given_up() -> None:
    async with cat(rlimits={"core": (0, 0)}, no_new_privs=True, optional={"rlimits", "no_new_privs", "nice"}) as s:
        assert s.info().degraded == ()
        assert status_of(s.host_pid)["NoNewPrivs"] == "1"


def test_what_an_ordinary_user_gives_up() -> None:
    result = as_somebody("""
async def main():
    async with linx.spawn(["sleep", "600"], nice=-5, groups=[0], optional={"nice", "groups"}) as s:
        before = s.info().degraded
        await s.proceed()
        theirs, ours = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (s.host_pid, 0))
        return before, s.info().degraded, theirs, ours
result = trio.run(main)
""")
    before, after, nice, own = result
    assert before == ["nice"], "known at the checkpoint"
    assert after == ["nice", "groups"], "ids are changed behind it"
    assert nice == own


# ---- a caller who has become somebody else, or is somewhere else -------------------------------------------------


def in_thread(function: Callable[[], Any]) -> Any:
    """`function`, in a thread that ends with it."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(DEADLINE)
    assert results, "the thread has failed"
    return results[0]


def own_net() -> str:
    return os.readlink("/proc/thread-self/ns/net")


@needs_root
def test_a_thread_in_another_namespace_has_its_workloads_there() -> None:
    def elsewhere() -> tuple[str, str, str]:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        first = output_of(["readlink", "/proc/self/ns/net"])
        return own_net(), first, output_of(["readlink", "/proc/self/ns/net"])

    assert output_of(["readlink", "/proc/self/ns/net"]) == own_net()
    there, *theirs = in_thread(elsewhere)
    assert there != own_net()
    assert theirs == [there, there]
    assert output_of(["readlink", "/proc/self/ns/net"]) == own_net()


@needs_root
def test_threads_in_different_namespaces_at_once() -> None:
    """They keep replacing each other's zygote, and still nobody's workload is in the wrong place."""
    libc = ctypes.CDLL(None, use_errno=True)
    wrong: list[tuple[str, str]] = []

    def work(unshare: bool) -> None:
        if unshare:
            assert libc.unshare(CLONE_NEWNET) == 0
        for _ in range(10):
            there = output_of(["readlink", "/proc/self/ns/net"])
            if there != own_net():
                wrong.append((there, own_net()))
        finished.append(unshare)

    finished: list[bool] = []
    threads = [threading.Thread(target=work, args=(unshare,)) for unshare in (True, False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not wrong
    assert len(finished) == 3


@needs_root
def test_a_caller_who_has_changed_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    with public_agent() as agent:
        monkeypatch.setenv("LINX_TRIO_AGENT", str(agent))
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        # No sh: that drops an effective id that is not the real one.
        script: list[str | Path] = ["cat", "/proc/self/status"]
        fields = ("Uid:", "Gid:", "CapEff:")

        def own(text: str) -> list[str]:
            return [line for line in text.splitlines() if line.startswith(fields)]

        with working_in("/"):
            before = own(output_of(script))
            os.setegid(SOMEBODY)
            os.seteuid(SOMEBODY)
            try:
                changed = own(output_of(script))
            finally:
                os.seteuid(0)
                os.setegid(0)
            after = own(output_of(script))
    forget_zygote()
    assert changed[0].split()[2] == changed[1].split()[2] == str(SOMEBODY)
    assert int(changed[2].split()[1], 16) == 0
    assert before == after == own(Path("/proc/self/status").read_text())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one CPU to be on")
async def test_the_callers_cpus() -> None:
    every = os.sched_getaffinity(0)
    for cpus in ({min(every)}, {max(every)}, every):
        os.sched_setaffinity(0, cpus)
        try:
            async with cat() as s:
                assert os.sched_getaffinity(s.host_pid) == cpus
        finally:
            os.sched_setaffinity(0, every)


def test_after_os_fork() -> None:
    """The child starts a zygote of its own; the parent's goes on."""
    linx.run_sync(["true"])
    code = (
        "import os, linx_trio as linx\n"
        "linx.run_sync(['true'])\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    code = linx.run_sync(['sh', '-c', 'exit 5'], check=False).returncode\n"
        "    os._exit(code)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5\n"
        "linx.run_sync(['true'])\n"
    )
    linx.run_sync([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
