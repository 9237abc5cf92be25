"""Every way in which the kernel can say no, or the agent be wrong: one error, which says what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import _agent
from linx_trio._proto import etf
from tests.agent.probes import OVER_ANY_LIMIT, SOMEBODY, as_somebody, forget_zygote, needs_root, opened
from tests.support import eventually

Case = tuple[list[Any], dict[str, Any]]
"""argv and options."""

# ---- programs ----------------------------------------------------------------------------------------------------


def file_of(path: Path, text: str, mode: int) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def too_long(directory: Path) -> Case:
    return ["true", "x" * (1 << 20)], {}


def loop(directory: Path) -> Case:
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    return [directory / "a"], {}


def busy(directory: Path) -> Case:
    """A program that somebody has open for writing: the test, which opens what this asks for."""
    copy = directory / "busy"
    shutil.copy(shutil.which("true") or "/bin/true", copy)
    return [copy], {"open": copy}


def script_without_interpreter(directory: Path) -> Case:
    return [file_of(directory / "script", "#!/nonexistent/interpreter\n", 0o755)], {}


def in_cwd(case: Case) -> Case:
    """A directory makes no difference to who names a program by an absolute path."""
    return case[0], {**case[1], "cwd": "/"}


def below_cwd(directory: Path) -> Case:
    script_without_interpreter(directory)
    return ["./script"], {"cwd": directory}


def in_path(directory: Path) -> Case:
    script_without_interpreter(directory)
    return ["script"], {"env": {"PATH": f"/nonexistent:{directory}"}}


EXECVE: dict[str, tuple[Callable[[Path], Case], int, str | None]] = {
    "missing": (lambda d: ([d / "missing"], {}), errno.ENOENT, None),
    "missing interpreter": (script_without_interpreter, errno.ENOENT, "interpreter"),
    "missing interpreter, elsewhere": (lambda d: in_cwd(script_without_interpreter(d)), errno.ENOENT, "interpreter"),
    "missing interpreter, below": (below_cwd, errno.ENOENT, "interpreter"),
    "missing interpreter, by PATH": (in_path, errno.ENOENT, "script exists"),
    "missing below": (lambda d: (["./missing"], {"cwd": d}), errno.ENOENT, None),
    "not in PATH": (lambda d: (["missing"], {"env": {"PATH": str(d)}}), errno.ENOENT, "PATH"),
    "not executable": (lambda d: ([file_of(d / "x", "#!/bin/sh\n", 0o644)], {}), errno.EACCES, "permission"),
    "a directory": (lambda d: ([d], {}), errno.EACCES, "directory"),
    "no program": (lambda d: ([file_of(d / "x", "just text\n", 0o755)], {}), errno.ENOEXEC, "#!"),
    "empty": (lambda d: ([file_of(d / "x", "", 0o755)], {}), errno.ENOEXEC, "#!"),
    "too long": (too_long, errno.E2BIG, "ARG_MAX"),
    "too long env": (lambda d: (["true"], {"env": {"A": "x" * (1 << 20)}}), errno.E2BIG, "ARG_MAX"),
    "loop": (loop, errno.ELOOP, None),
    "below a file": (lambda d: ([file_of(d / "x", "", 0o755) / "below"], {}), errno.ENOTDIR, None),
    "busy": (busy, errno.ETXTBSY, "writing"),
    "name too long": (lambda d: ([d / ("x" * 300)], {}), errno.ENAMETOOLONG, None),
}

CLASSES: dict[int, type[OSError]] = {
    errno.ENOENT: FileNotFoundError,
    errno.EACCES: PermissionError,
    errno.EPERM: PermissionError,
    errno.ENOTDIR: NotADirectoryError,
}


async def errors_of(argv: list[Any], options: dict[str, Any]) -> list[linx.SetupError]:
    """The same refusal by all the ways that lead to it."""
    errors = []
    async with linx.spawn(argv, wait_ready=False, **options) as s:
        for verb in (s.proceed, s.wait):
            with pytest.raises(linx.SetupError) as raised:
                await verb()
            errors.append(raised.value)
        assert s.state == "failed"
        assert not s.ran
        events = [event async for event in s.events()]
        assert events[-1] == linx.Failed(errors[0].errno or 0, errors[0].stage)
        assert linx.Running() not in events
    with pytest.raises(linx.SetupError) as raised:
        async with linx.spawn(argv, auto_proceed=True, **options):
            pytest.fail("it cannot run")
    errors.append(raised.value)
    with pytest.raises(linx.SetupError) as raised:
        await linx.run(argv, **options)
    errors.append(raised.value)
    return errors


@pytest.mark.parametrize("name", EXECVE)
async def test_execve(name: str, tmp_path: Path) -> None:
    make, number, hint = EXECVE[name]
    argv, options = make(tmp_path)
    with contextlib.ExitStack() as stack:
        if "open" in options:
            stack.enter_context(opened(options.pop("open"), os.O_WRONLY))
        errors = await errors_of(argv, options)
    for error in errors:
        assert (error.errno, error.stage, error.filename) == (number, "execve", os.fsdecode(argv[0]))
        assert error.strerror == os.strerror(number)
        assert isinstance(error, CLASSES.get(number, OSError))
        assert (hint is None) == (error.hint is None)
        assert hint is None or hint in str(error.hint)
        assert os.fsdecode(argv[0]) in str(error)
        assert type(error).__name__ == "SetupError"


async def test_the_seeds_transcript() -> None:
    async with linx.spawn(["/this/does/not/exist"]) as s:
        with pytest.raises(FileNotFoundError):
            await s.proceed()
        assert [event async for event in s.events()] == [linx.Ready(s.host_pid), linx.Failed(2, "execve")]


# ---- set-up ------------------------------------------------------------------------------------------------------


def closed_directory(directory: Path) -> Path:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    return closed


SETUP: dict[str, tuple[Callable[[Path], dict[str, Any]], int, str, str, str | None]] = {
    "no directory": (lambda d: {"cwd": d / "missing"}, errno.ENOENT, "chdir", "missing", None),
    "a file": (lambda d: {"cwd": file_of(d / "x", "", 0o644)}, errno.ENOTDIR, "chdir", "x", None),
    "limit": (
        lambda d: {"rlimits": {"nofile": (OVER_ANY_LIMIT, OVER_ANY_LIMIT)}},
        errno.EPERM,
        "rlimit",
        "nofile",
        "CAP_SYS_RESOURCE",
    ),
}


@pytest.mark.parametrize("name", SETUP)
async def test_setup(name: str, tmp_path: Path) -> None:
    make, number, stage, thing, hint = SETUP[name]
    for error in await errors_of(["true"], make(tmp_path)):
        assert (error.errno, error.stage) == (number, stage)
        assert thing in str(error.filename)
        assert isinstance(error, CLASSES[number])
        assert hint is None or hint in str(error.hint)


@needs_root
async def test_a_directory_that_is_closed_to_the_workload(tmp_path: Path) -> None:
    options = {"cwd": closed_directory(tmp_path), "uid": SOMEBODY, "gid": SOMEBODY}
    for error in await errors_of(["true"], options):
        assert (error.errno, error.stage) == (errno.EACCES, "chdir")
        assert isinstance(error, PermissionError)
        assert error.filename == str(tmp_path / "closed")
        assert "ids" in str(error.hint)


def test_a_limit_below_that_of_the_caller_is_no_refusal() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert linx.run_sync(["true"], rlimits={"nofile": (min(soft, 64), hard)}).returncode == 0


def test_what_an_ordinary_user_is_refused() -> None:
    results = as_somebody("""
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
options = {
    "namespaces": dict(namespaces={"net", "uts"}),
    "uid": dict(uid=0, optional={"groups"}),
    "uid and its groups": dict(uid=0),
    "gid": dict(gid=0),
    "groups": dict(groups=[0]),
    "nice": dict(nice=-1),
    "limit": dict(rlimits={"nofile": (hard + 1, hard + 1)}),
    "cwd": dict(cwd="/proc/1/fd"),
}
result = {name: refusal_of(linx.run_sync, ["true"], **option) for name, option in options.items()}
""")
    expected = {
        "namespaces": (errno.EPERM, "clone", "net, uts", "'user'"),
        "uid": (errno.EPERM, "setuid", "0", "CAP_SETUID"),
        "uid and its groups": (errno.EPERM, "setgroups", "()", "CAP_SETGID"),
        "gid": (errno.EPERM, "setgid", "0", "CAP_SETGID"),
        "groups": (errno.EPERM, "setgroups", "(0,)", "CAP_SETGID"),
        "nice": (errno.EACCES, "nice", "-1", "CAP_SYS_NICE"),
        "limit": (errno.EPERM, "rlimit", "nofile", "CAP_SYS_RESOURCE"),
        "cwd": (errno.EACCES, "chdir", "/proc/1/fd", "ids"),
    }
    for name, (number, stage, thing, hint) in expected.items():
        told = results[name]
        assert told is not None, f"{name} was granted"
        assert (told["errno"], told["stage"]) == (number, stage), name
        assert thing in told["filename"], name
        assert hint in told["hint"], name
        assert "PermissionError" in told["classes"], name


def test_no_more_processes() -> None:
    """First none for the agent itself, then, when there is one, none for a session."""
    first, second, third = as_somebody("""
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
first = refusal_of(linx.run_sync, ["true"])
resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
linx.run_sync(["true"])
zygote = __import__("linx_trio._agent")._agent.current()[-1]
zygote.take_spare().close()
pid = zygote.pid
resource.prlimit(pid, resource.RLIMIT_NPROC, (1, hard))
second = refusal_of(linx.run_sync, ["true"])
resource.prlimit(pid, resource.RLIMIT_NPROC, (hard, hard))
result = [first, second, linx.run_sync(["true"]).returncode]
""")
    for told in (first, second):
        assert (told["errno"], told["stage"]) == (errno.EAGAIN, "fork")
        assert "RLIMIT_NPROC" in told["hint"]
    assert third == 0, "and as soon as there may be more, all is well"


# ---- the agent ---------------------------------------------------------------------------------------------------


@pytest.fixture
def other_agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Has another program taken for the agent, by the next spawn."""

    def use(path: Path) -> None:
        forget_zygote()
        monkeypatch.setenv(_agent.OVERRIDE, str(path))

    yield use
    forget_zygote()
    monkeypatch.delenv(_agent.OVERRIDE, raising=False)
    linx.run_sync(["true"])  # the real one is there again, for those who count processes


def refused_agent(path: Path) -> str:
    """What is said about it, each time anew: with the path and the remedy."""
    text = ""
    for _ in range(2):
        with pytest.raises(linx.AgentError) as raised:
            linx.run_sync(["true"])
        text = str(raised.value)
        assert str(path) in text
        assert "reinstall linx-trio" in text
    return text


def agent_copy(path: Path, mode: int) -> Path:
    shutil.copyfile(Path(_agent.__file__).parent / "_bin" / "linx-agent", path)
    path.chmod(mode)
    return path


def greeting(path: Path, term: bytes, then: str = "") -> Path:
    """An agent that says `term` first."""
    return file_of(path, f"#!{sys.executable}\nimport os, sys\nos.write(3, {term!r})\n{then}\n", 0o755)


BAD_AGENTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "missing", "is missing"),
    "not executable": (lambda d: agent_copy(d / "agent", 0o644), "execute permission"),
    "a directory": (lambda d: d, "is a directory"),
    "no program": (lambda d: file_of(d / "agent", "text", 0o755), "no program"),
    "without interpreter": (lambda d: file_of(d / "agent", "#!/nonexistent\n", 0o755), "missing"),
    "below a file": (lambda d: file_of(d / "agent", "", 0o755) / "x", "cannot be started"),
    "true": (lambda d: Path("/bin/true"), "without a word"),
    "cat": (lambda d: Path("/bin/cat"), "without a word"),
    "sh": (lambda d: Path("/bin/sh"), "without a word"),
    "nonsense": (lambda d: greeting(d / "agent", b"nonsense"), "nonsense"),
    "another term": (lambda d: greeting(d / "agent", etf.encode(("bonjour", 1))), "bonjour"),
    "exits": (lambda d: file_of(d / "agent", "#!/bin/sh\nexit 3\n", 0o755), "status 3"),
    "says an empty word": (lambda d: greeting(d / "agent", b""), "reinstall"),
    "another version": (
        lambda d: greeting(d / "agent", etf.encode(("hello", b"9.8.7", b"0" * 16, True))),
        "version 9.8.7",
    ),
}


@pytest.mark.parametrize("name", BAD_AGENTS)
def test_a_bad_agent(name: str, other_agent: Callable[[Path], None], tmp_path: Path) -> None:
    make, says = BAD_AGENTS[name]
    path = make(tmp_path)
    other_agent(path)
    text = refused_agent(path)
    assert says in text
    if name in ("missing", "not executable", "no program"):
        assert _agent.OVERRIDE in text, "it says where it has the path from"


def test_an_agent_that_says_nothing(
    other_agent: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_agent, "_GREETING_SECONDS", 0.1)
    path = file_of(tmp_path / "agent", "#!/bin/sh\nexec sleep 600\n", 0o755)
    other_agent(path)
    assert "said nothing" in refused_agent(path)


def test_an_agent_that_goes_silent_after_its_greeting(other_agent: Callable[[Path], None], tmp_path: Path) -> None:
    """It takes each session and says nothing in it: its end is the session's."""
    hello = etf.encode(("hello", linx.__version__.encode(), b"0" * 16, True))
    other_agent(greeting(tmp_path / "agent", hello, "os.read(3, 1)"))
    with pytest.raises(linx.AgentDied):
        linx.run_sync(["true"])


def test_an_agent_that_cannot_guarantee_anything(other_agent: Callable[[Path], None], tmp_path: Path) -> None:
    hello = etf.encode(("hello", linx.__version__.encode(), b"0" * 16, False))
    other_agent(greeting(tmp_path / "agent", hello))
    with pytest.raises(linx.NotSupported) as raised:
        linx.run_sync(["true"])
    assert "/proc" in raised.value.hint


def test_a_stale_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (Path(_agent.__file__).parent.parent / "agent_c").is_dir():
        pytest.skip("the package under test is not beside its sources: its agent cannot be stale")
    forget_zygote()
    monkeypatch.setattr(_agent, "source_hash", lambda sources: "0" * 16)
    text = refused_agent(_agent.agent_path())
    assert "stale" in text
    monkeypatch.undo()
    assert linx.run_sync(["true"]).returncode == 0, "mended, it works at once"


def test_an_agent_is_never_looked_up_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(tmp_path / "linx-agent", "#!/bin/sh\nexit 99\n", 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with contextlib.chdir(tmp_path):
        forget_zygote()
        assert linx.run_sync(["true"]).returncode == 0


def test_an_agent_that_was_mended_is_used(other_agent: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "agent"
    other_agent(path)
    refused_agent(path)
    agent_copy(path, 0o755)
    assert linx.run_sync(["true"]).returncode == 0


def test_nothing_is_left_of_a_bad_agent(other_agent: Callable[[Path], None], tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = file_of(tmp_path / "agent", f"#!/bin/sh\necho $$ > {pid_file}; printf nonsense >&3; exec sleep 600\n", 0o755)
    other_agent(path)
    refused_agent(path)
    pid = int(pid_file.read_text())
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "it has been killed and reaped")


# ---- file systems and /proc --------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "linx-test", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@needs_root
def test_noexec(other_agent: Callable[[Path], None], tmp_path: Path) -> None:
    directory = tmp_path / "mnt"
    with mounted(directory, "noexec"):
        program = file_of(directory / "program", "#!/bin/sh\n", 0o755)
        with pytest.raises(PermissionError) as raised:
            linx.run_sync([program])
        assert isinstance(raised.value, linx.SetupError)
        assert "noexec" in str(raised.value.hint)
        path = agent_copy(directory / "agent", 0o755)
        other_agent(path)
        assert "noexec" in refused_agent(path)


WITHOUT_NULL = """
import json, os, linx_trio as linx
os.path.lexists("/dev/null") and os.unlink("/dev/null")
own = {"stdin": 0, "stdout": 1, "stderr": 2}
try:
    linx.run_sync(["/bin/true"], **own)
except linx.NotSupported as exc:
    found = [exc.hint]
os.mknod("/dev/null", 0o20666, os.makedev(1, 3))
linx.run_sync(["/bin/true"], **own)
os.unlink("/dev/null")
for stream in own:
    try:
        linx.run_sync(["/bin/true"], **own | {stream: linx.DEVNULL})
    except linx.SetupError as exc:
        found.append([exc.stage, exc.errno, exc.filename])
print(json.dumps(found))
"""


@needs_root
def test_without_a_null_device() -> None:
    mounted = 'mount -t tmpfs none /dev && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", WITHOUT_NULL],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    hint, *refused = json.loads(done.stdout)
    assert "/dev/null" in hint
    assert refused == [["stdio", errno.ENOENT, name] for name in ("stdin", "stdout", "stderr")]


@needs_root
def test_without_proc(tmp_path: Path) -> None:
    """A chroot without it: one of our errors, not a `FileNotFoundError` that looks like a missing program's."""
    code = (
        "import linx_trio as linx\n"
        "try:\n"
        "    linx.run_sync(['true'])\n"
        "except linx.NotSupported as exc:\n"
        "    print('/proc' in exc.hint)\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"True\n", b"", 0)
