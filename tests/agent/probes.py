"""Workloads that hold still, and looking at them from outside; Python as an ordinary user.

What a workload was given is read from ``/proc``, not asked of the workload: a program that reports about itself has
already changed some of it (a shell catches SIGCHLD, Python ignores SIGPIPE).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import _agent
from tests.support import eventually_async

ROOT = Path(__file__).resolve().parents[2]

SOMEBODY = 31337
"""The id of an ordinary user. Nobody has to know it, and it is no overflow id (65534), which would look like one."""

OVER_ANY_LIMIT = 2**40
"""Files no process may have: above ``fs.nr_open`` even CAP_SYS_RESOURCE is refused."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root only: other ids, other namespaces or mounts are needed")


async def settled(session: linx.Session) -> None:
    """Waits until a ``cat`` between two pipes is past its dynamic loader, by having it copy a byte."""
    assert session.stdin is not None
    assert session.stdout is not None
    await session.stdin.send_all(b".")
    assert await session.stdout.receive_some(1) == b"."


@contextlib.asynccontextmanager
async def cat(**options: Any) -> AsyncIterator[linx.Session]:
    """A running ``cat``, which opens nothing and catches nothing: what it has, it was given."""
    options = {"stdin": linx.PIPE, "stdout": linx.PIPE, **options}
    async with linx.spawn(["cat"], auto_proceed=True, **options) as session:
        await settled(session)
        yield session


def proc(pid: int | str, name: str) -> str:
    """The file ``/proc/<pid>/<name>``, see ``proc(5)``."""
    return Path(f"/proc/{pid}/{name}").read_text()


def link(pid: int | str, name: str) -> str:
    """What the symbolic link ``/proc/<pid>/<name>`` points to."""
    return os.readlink(f"/proc/{pid}/{name}")


def flags_of(pid: int, fd: int) -> int:
    """The flags of that process' `fd`, as in ``open(2)``."""
    return int(proc(pid, f"fdinfo/{fd}").split("flags:")[1].split()[0], 8)


def status_of(pid: int) -> dict[str, str]:
    """``/proc/<pid>/status``, see ``proc(5)``."""
    pairs = (line.split(":", 1) for line in proc(pid, "status").splitlines())
    return {name: value.strip() for name, value in pairs}


def fds_of(pid: int) -> dict[int, tuple[int, int]]:
    """The process' open fds, and the device and inode of what each is."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            status = os.stat(f"/proc/{pid}/fd/{name}")
            found[int(name)] = (status.st_dev, status.st_ino)
    return found


async def has_only(session: linx.Session, asked: dict[int, tuple[int, int]]) -> None:
    """Waits until the workload has these fds and no others: its dynamic loader opens more, for a moment."""
    await eventually_async(lambda: fds_of(session.host_pid) == asked, f"it has {asked} and nothing else")


def identity(fd: int) -> tuple[int, int]:
    """The device and inode of what our `fd` is."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def forget_zygote() -> None:
    """The next spawn starts a new zygote, out of what this process is by then."""
    for zygote in _agent.current():
        _agent.discard(zygote)


@contextlib.contextmanager
def public_agent() -> Iterator[Path]:
    """A copy of the agent that everybody may execute; the tree that it lies in may be closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="linx-agent-"))
    try:
        directory.chmod(0o755)
        copy = directory / "linx-agent"
        shutil.copyfile(Path(_agent.__file__).parent / "_bin" / "linx-agent", copy)
        copy.chmod(0o755)
        yield copy
    finally:
        shutil.rmtree(directory)


_AS_SOMEBODY = """
import json, os, sys
import trio
import linx_trio as linx
assert not sys.flags.optimize
os.chdir("/")
if os.getuid() == 0:
    {keep}
    os.setgroups([]); os.setresgid({id}, {id}, {id}); os.setresuid({id}, {id}, {id})
    {kept}

def refusal_of(call, *args, **options):
    try:
        call(*args, **options)
    except linx.LinxError as exc:
        told = {{name: getattr(exc, name, None) for name in ("stage", "errno", "hint", "filename")}}
        return told | {{"classes": [each.__name__ for each in type(exc).__mro__]}}

{body}
print(json.dumps(result))
"""


_KEEP = "import ctypes; libc = ctypes.CDLL(None); assert libc.prctl(8, 1, 0, 0, 0) == 0"  # PR_SET_KEEPCAPS
_KEPT = (
    "assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[1 << {0}] * 3)) == 0; "
    "assert libc.prctl(47, 2, {0}, 0, 0) == 0"  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
)


def as_somebody(body: str, *, capability: int | None = None) -> Any:
    """Runs `body` in a Python of an ordinary user, without any capability but this one (below 32), and returns what it
    leaves in ``result``.

    It imports as root and changes its ids then, so neither the interpreter nor this tree need be open to others.
    """
    keep, kept = ("", "") if capability is None else (_KEEP, _KEPT.format(capability))
    with public_agent() as agent:
        path = os.pathsep.join([str(ROOT), *sys.path])
        env = {**os.environ, "PYTHONPATH": path, "LINX_TRIO_AGENT": str(agent), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", _AS_SOMEBODY.format(id=SOMEBODY, body=body, keep=keep, kept=kept)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def working_in(directory: str | Path) -> Iterator[None]:
    """`contextlib.chdir`, which can also come back from a directory that is gone."""
    before = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextlib.contextmanager
def replaced_fd(number: int, source: int | None) -> Iterator[None]:
    """`number` is a copy of `source` (`None`: closed) for a while."""
    saved = os.dup(number)
    try:
        if source is None:
            os.close(number)
        else:
            os.dup2(source, number)
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)


def opened(path: str | Path, flags: int = os.O_RDWR | os.O_CREAT) -> AbstractContextManager[int]:
    """An fd, closed at the end."""
    return _opened(path, flags)


@contextlib.contextmanager
def _opened(path: str | Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)
