"""What `enter` refuses, and who says so: the call itself, the library, or the kernel. Each says what it is about."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio._run import run_inside
from tests.agent.containers import KINDS, below, container, is_untouched, parked_container
from tests.agent.probes import as_somebody, opened, proc
from tests.agent.programs.phases import argv_for
from tests.support import stat_of

NOBODY = 99999999
"""A pid beyond any ``kernel.pid_max``."""


class Holder:
    """An object with an fd, as `Session.pidfd` is one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def __repr__(self) -> str:
        return f"<Holder of {self.fd}>"


@contextmanager
def child(reaped: bool = False) -> Iterator[tuple[int, Holder]]:
    """One of our own that has ended: a zombie, or reaped. Its pid and its pidfd."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        os.waitpid(pid, 0)
    try:
        yield pid, Holder(pidfd)
    finally:
        if not reaped:
            os.waitpid(pid, 0)
        os.close(pidfd)


async def refused(target: Any, *, wait_ready: bool = True, **options: Any) -> linx.SetupError:
    """The error with which entering fails; with ``wait_ready=False`` also what the session then has."""
    with pytest.raises(linx.SetupError) as raised:  # noqa: PT012
        async with linx.enter(target, ["true"], wait_ready=wait_ready, **options) as s:
            try:
                await s.wait()
            finally:
                assert s.state == "failed"
                assert not s.ran
                assert (s.info().mode, s.info().outcome) == ("enter", None)
    return raised.value


async def errors_of(target: Any, **options: Any) -> list[linx.SetupError]:
    return [await refused(target, wait_ready=wait_ready, **options) for wait_ready in (True, False)]


# ---- nobody there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [NOBODY, 2**31, 2**80, f"/proc/{NOBODY}", f"/proc/{NOBODY}".encode()])
async def test_a_bogus_pid(target: Any) -> None:
    before = below()
    for error in await errors_of(target):
        assert (error.errno, error.stage) == (errno.ENOENT, "open_ns_user")
        assert isinstance(error, FileNotFoundError)
        assert error.strerror == os.strerror(errno.ENOENT)
        number = target if isinstance(target, int) else NOBODY
        assert error.filename == f"/proc/{number}"
        assert "no such process" in str(error.hint)
        assert pickle.loads(pickle.dumps(error)).filename == error.filename
    assert below() == before


@pytest.mark.parametrize("namespaces", [None, {"net"}, {"pid", "mount"}, set()])
async def test_a_bogus_pid_is_so_whatever_is_joined(namespaces: Any) -> None:
    for error in await errors_of(NOBODY, namespaces=namespaces, join_cgroup=False):
        assert (error.errno, error.stage) == (errno.ENOENT, "open_ns_user")


async def test_a_vanished_one() -> None:
    """Its pid may be another's by now, its pidfd is nobody's for ever."""
    with child(reaped=True) as (pid, pidfd):
        for target, name in ((pid, f"/proc/{pid}"), (f"/proc/{pid}", f"/proc/{pid}"), (pidfd, repr(pidfd))):
            for error in await errors_of(target):
                assert (error.errno, error.stage, error.filename) == (errno.ENOENT, "open_ns_user", name)
                assert isinstance(error, FileNotFoundError)
                assert error.hint in ("there is no such process (any more)", "it has ended")


async def test_a_zombie() -> None:
    """It has no namespaces any more, except for the user namespace, which its credentials keep."""
    with child() as (pid, pidfd):
        for target, name in ((pid, f"/proc/{pid}"), (pidfd, repr(pidfd))):
            for error in await errors_of(target):
                assert (error.errno, error.filename) == (errno.ENOENT, name)
                assert error.stage.startswith("open_ns_")
                assert "no such process" in str(error.hint)


async def test_a_pinned_one_that_goes_before_it_is_entered() -> None:
    """The directory fd keeps to its process: nobody else is entered, whoever has the pid by then."""
    with child() as (pid, _pidfd), opened(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY) as pinned:
        os.kill(pid, signal.SIGKILL)
        for error in await errors_of(f"/proc/self/fd/{pinned}"):
            assert error.errno == errno.ENOENT


async def test_a_session_that_is_not_ready_yet() -> None:
    async with linx.spawn(argv_for("starting"), wait_ready=False) as target:
        assert target.state == "starting"
        entering = linx.enter(target, ["true"])  # it may be ready by the time that this is entered
        with pytest.raises(linx.NotReady) as raised:
            async with entering:
                pytest.fail("there is nothing to enter")
        assert (raised.value.verb, raised.value.state) == ("enter", "starting")


@pytest.mark.parametrize("end", ["exited", "signaled", "aborted", "failed"])
async def test_a_session_that_has_ended(end: str) -> None:
    argv = {"exited": ["true"], "failed": ["/does/not/exist"]}.get(end, ["sleep", "1000"])
    async with linx.spawn(argv) as target:
        if end == "aborted":
            await target.abort()
        elif end == "failed":
            with pytest.raises(linx.SetupError):
                await target.proceed()
        else:
            await target.proceed()
            if end == "signaled":
                target.kill()
            await target.wait()
        assert target.state == end
        for wait_ready in (True, False):
            with pytest.raises(linx.NoProcess) as raised:
                async with linx.enter(target, ["true"], wait_ready=wait_ready):
                    pytest.fail("there is nobody to enter")
            assert (raised.value.verb, raised.value.state) == ("enter", end)
    with pytest.raises(linx.NoProcess):
        async with linx.enter(target, ["true"]):
            pytest.fail("nor later")


# ---- no target at all ------------------------------------------------------------------------------------------------

NO_TARGETS: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, TypeError, "None"),
    "bool": (True, TypeError, "True"),
    "float": (1.5, TypeError, "1.5"),
    "list": ([1], TypeError, "[1]"),
    "class": (Holder, TypeError, "Holder"),
    "zero": (0, ValueError, "0"),
    "negative": (-1, ValueError, "-1"),
    "empty": ("", ValueError, "target"),
    "NUL": ("/proc/1\0", ValueError, r"\x00"),
    "surrogate": ("/proc/\ud800", ValueError, r"\ud800"),
}


@pytest.mark.parametrize("name", NO_TARGETS)
def test_wrong_targets(name: str) -> None:
    """By the call itself, before anything is asked of the kernel."""
    target, kind, says = NO_TARGETS[name]
    with pytest.raises(kind) as raised:
        linx.enter(target, ["true"])
    assert "target" in str(raised.value)
    assert says in str(raised.value)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown namespace": ({"namespaces": ["typo"]}, ValueError, "unknown namespace 'typo'"),
    "file's name": ({"namespaces": {"mnt"}}, ValueError, "unknown namespace 'mnt'"),
    "no namespace": ({"namespaces": [7]}, ValueError, "unknown namespace 7"),
    "one namespace": ({"namespaces": "net"}, TypeError, "'net'"),
    "namespaces a number": ({"namespaces": 7}, TypeError, "7"),
    "cgroup": ({"join_cgroup": 1}, TypeError, "join_cgroup must be True or False, not 1"),
    "cgroup none": ({"join_cgroup": None}, TypeError, "join_cgroup"),
    "hostname": ({"hostname": "other"}, ValueError, "hostname='other'"),
    "hostname and uts": ({"hostname": "other", "namespaces": {"uts"}}, ValueError, "hostname='other'"),
    "stdin": ({"stdin": "text"}, TypeError, "stdin"),
    "uid": ({"uid": -1}, ValueError, "uid"),
    "option": ({"colour": "red"}, TypeError, "colour"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(name: str) -> None:
    options, kind, says = WRONG[name]
    with pytest.raises(kind) as raised:
        linx.enter(NOBODY, ["true"], **options)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("argv", "kind"),
    [([], ValueError), ("true", TypeError), ([""], ValueError), (["a\0b"], ValueError), (7, TypeError)],
)
def test_wrong_argv(argv: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"argv"):
        linx.enter(NOBODY, argv)


def test_a_workload_with_a_hostname_is_refused() -> None:
    workload = linx.Workload(["true"], namespaces={"uts"}, hostname="box")
    with pytest.raises(ValueError, match=r"hostname='box'.*the target's"):
        linx.enter(NOBODY, workload)


@pytest.mark.parametrize("given", [["true"], linx.Workload(["true"])], ids=["argv", "workload"])
@pytest.mark.parametrize("kinds", [{"net"}, {"pid", "mount"}, (), None])
async def test_what_joins_all_has_no_choice(given: Any, kinds: Any) -> None:
    """`Service.run_inside` and `Netns.run`: they say so, and do not leave out what was asked for."""
    with pytest.raises(ValueError, match=r"namespaces=.*joins all of the target's"):
        await run_inside(NOBODY, given, namespaces=kinds)  # type: ignore[call-arg]


async def test_a_workload_that_asks_for_namespaces_is_not_run_inside() -> None:
    with pytest.raises(ValueError, match=r"namespaces=.*'uts'.*joins all of the target's"):
        await run_inside(NOBODY, linx.Workload(["true"], namespaces={"uts"}))


def test_its_signature_says_what_there_is() -> None:
    names = list(inspect.signature(linx.enter).parameters)
    assert names == ["target", "argv_or_workload", "namespaces", "unshare", "join_cgroup", "wait_ready", "options"]


async def test_fds_that_are_no_pidfds(tmp_path: Path) -> None:
    with opened(tmp_path / "file") as fd:
        for wait_ready in (True, False):
            with pytest.raises(ValueError, match=rf"<Holder of {fd}>.* no pidfd"):
                async with linx.enter(Holder(fd), ["true"], wait_ready=wait_ready):
                    pytest.fail("there is nobody to enter")
    with pytest.raises(ValueError, match=r"<Holder of 987654>.*not open"):
        async with linx.enter(Holder(987654), ["true"]):
            pytest.fail("there is nobody to enter")
    with pytest.raises(ValueError, match=r"<Holder of -1>"):
        async with linx.enter(Holder(-1), ["true"]):
            pytest.fail("there is nobody to enter")


async def test_a_fileno_that_raises() -> None:
    file = os.fdopen(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    file.close()
    with pytest.raises(ValueError, match="closed"):
        async with linx.enter(file, ["true"]):
            pytest.fail("there is nobody to enter")


@pytest.mark.parametrize(
    ("path", "number", "kind"),
    [
        ("/proc/self/status", errno.ENOTDIR, NotADirectoryError),
        ("/does/not/exist", errno.ENOENT, FileNotFoundError),
        ("/usr", errno.ENOENT, FileNotFoundError),
        ("/" + "x" * 300, errno.ENAMETOOLONG, OSError),
    ],
)
async def test_paths_that_are_no_process(path: str, number: int, kind: type[OSError]) -> None:
    for error in await errors_of(path):
        assert (error.errno, error.stage, error.filename) == (number, "open_ns_user", path)
        assert isinstance(error, kind)


async def test_a_directory_of_something_else_is_no_process(tmp_path: Path) -> None:
    """Whatever lies there under the right names: files are no namespaces, and nobody waits for a FIFO."""
    (tmp_path / "ns").mkdir()
    for name in os.listdir("/proc/self/ns"):
        os.mkfifo(tmp_path / "ns" / name)
    os.mkfifo(tmp_path / "cgroup")
    with trio.fail_after(30):
        for error in await errors_of(tmp_path, join_cgroup=False):
            assert (error.errno, error.stage) == (errno.EINVAL, "setns_mount")
            assert error.filename == str(tmp_path)


# ---- no permission ---------------------------------------------------------------------------------------------------


def test_an_ordinary_user_enters_nobody_elses() -> None:
    results = as_somebody("""
result = []
async def enter(**options):
    async with linx.enter(1, ["true"], **options):
        pass
for options in (dict(), dict(join_cgroup=False), dict(namespaces={"user"}), dict(namespaces={"net"})):
    result.append(refusal_of(trio.run, __import__("functools").partial(enter, **options)))
""")
    stages = ["open_ns_user", "open_ns_user", "open_ns_user", "open_ns_net"]
    for told, stage in zip(results, stages, strict=True):
        assert told is not None
        assert (told["errno"], told["stage"]) == (errno.EACCES, stage)
        assert "PermissionError" in told["classes"]
        assert told["filename"] == "/proc/1"
        assert "ptrace(2)" in told["hint"]


NEEDS_USER = """
KINDS = {kinds}
async def main():
    result = {{}}
    async with linx.spawn(["sleep", "1000"], namespaces=KINDS) as target:
        maps = ("setgroups", "deny"), ("uid_map", f"0 {{os.getuid()}} 1"), ("gid_map", f"0 {{os.getgid()}} 1")
        for name, text in maps:
            with open(f"/proc/{{target.host_pid}}/{{name}}", "w") as file:
                file.write(text)
        await target.proceed()
        for kind in set(KINDS) - {{"user"}}:
            try:
                async with linx.enter(target, ["true"], namespaces={{kind}}, wait_ready=False) as s:
                    try:
                        await s.wait()
                    finally:
                        events = [repr(event) async for event in s.events()]
            except linx.SetupError as exc:
                result[kind] = exc.errno, exc.stage, exc.filename, exc.hint, isinstance(exc, PermissionError), events
        async with linx.enter(target, ["true"], namespaces={{"user", "net"}}) as s:
            await s.proceed()
            assert await s.wait() == linx.Exited(0)
        assert target.state == "running"
    return result, repr(target)
result = trio.run(main)
"""


def test_what_is_refused_without_the_user_namespace() -> None:
    """The one that owns the others: only in there is an ordinary user somebody."""
    results, _target = as_somebody(NEEDS_USER.format(kinds=sorted(KINDS)))
    assert sorted(results) == sorted(KINDS - {"user"})
    for kind, (number, stage, filename, hint, is_permission, events) in results.items():
        assert (number, stage, is_permission) == (errno.EPERM, f"setns_{kind}", True)
        assert filename.startswith("<linx_trio.Session 'sleep' running")
        assert "'user'" in hint
        assert events == [f"Failed(errno=1, stage='setns_{kind}')"]


# ---- inside ----------------------------------------------------------------------------------------------------------

INSIDE: dict[str, tuple[list[str], dict[str, Any], int, str, str]] = {
    "program": (["/does/not/exist"], {}, errno.ENOENT, "execve", "/does/not/exist"),
    "cwd": (["true"], {"cwd": "/does/not/exist"}, errno.ENOENT, "chdir", "/does/not/exist"),
    "uid": (["true"], {"uid": 4000000000}, errno.EINVAL, "setuid", "4000000000"),
    "gid": (["true"], {"gid": 4000000000}, errno.EINVAL, "setgid", "4000000000"),
}


@pytest.mark.parametrize("name", INSIDE)
async def test_what_is_refused_inside_is_as_with_spawn(name: str) -> None:
    argv, options, number, stage, thing = INSIDE[name]
    async with container() as target:
        async with linx.enter(target, argv, **options) as s:
            with pytest.raises(linx.SetupError) as raised:
                await s.proceed()
            assert [event async for event in s.events()] == [linx.Ready(s.host_pid), linx.Failed(number, stage)]
        error = raised.value
        assert (error.errno, error.stage, error.filename) == (number, stage, thing)
        assert is_untouched(target)


async def test_a_target_without_ids_yet() -> None:
    """Its maps are not written: there is nobody to become, and what is parked there stays who it is."""
    async with linx.spawn(["true"], namespaces={"user"}) as target:
        async with linx.enter(target, ["sh", "-c", "id -u"], stdout=linx.PIPE) as s:
            await s.proceed()
            assert s.stdout is not None
            assert b"".join([bytes(chunk) async for chunk in s.stdout]).decode() == proc("sys/kernel", "overflowuid")
            assert await s.wait() == linx.Exited(0)
        async with linx.enter(target, ["true"], uid=0) as s:
            with pytest.raises(linx.SetupError) as raised:
                await s.proceed()
        assert (raised.value.errno, raised.value.stage) == (errno.EINVAL, "setuid")
        assert "not mapped" in str(raised.value.hint)


async def test_a_refusal_leaves_the_target_alone() -> None:
    async with parked_container() as target:
        before = below()
        for _ in range(5):
            with pytest.raises(linx.SetupError):
                async with linx.enter(target, ["/does/not/exist"], auto_proceed=True):
                    pytest.fail("it cannot run")
        assert below() == before
        assert target.state == "ready"
        fields = stat_of(target.host_pid)
        assert fields is not None
        await target.proceed()
        assert target.state == "running"
