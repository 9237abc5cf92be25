"""Somebody else changes a directory while something is made in it: nothing but what has been made there gets its mode,
or its content. The child is held at each of its system calls (``ptrace(2)``), so it happens right in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import linx_trio as linx
from linx_trio import mount
from linx_trio.mount import Dir, Entry, File
from tests.agent.roots import parked
from tests.support import DEADLINE

_yama = Path("/proc/sys/kernel/yama/ptrace_scope")
pytestmark = pytest.mark.skipif(_yama.exists() and _yama.read_text() == "3\n", reason="nobody may trace here (Yama)")

SEIZE, INTERRUPT, SYSCALL, DETACH = 0x4206, 0x4207, 24, 17
WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _ptrace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _follow(pid: int, meanwhile: Callable[[], bool], held: threading.Event) -> None:
    """From system call to system call, until `meanwhile` has done its work. A tracer is a thread: all of it in one."""
    try:
        _ptrace(SEIZE, pid)
        _ptrace(INTERRUPT, pid)
        os.waitpid(pid, WALL)
    finally:
        held.set()
    done = False
    while not done:
        _ptrace(SYSCALL, pid)
        os.waitpid(pid, WALL)
        done = meanwhile()
    _ptrace(DETACH, pid)


async def _apply(s: linx.Session, entry: Entry, meanwhile: Callable[[], bool]) -> int:
    """`meanwhile` is called at each system call of the parked workload, until it returns `True`. Returns the errno."""
    held = threading.Event()
    error = 0
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, _follow, s.host_pid, meanwhile, held)
            await trio.to_thread.run_sync(held.wait)
            try:
                await mount.apply(s, [entry])
            except linx.SetupError as exc:
                error = exc.errno or 0
    return error


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


MODES = [0o666, 0o1777, 0o2775, 0o6755]


@pytest.mark.parametrize("mode", MODES, ids=oct)
async def test_no_mode_is_given_to_what_a_link_leads_to(tmp_path: Path, mode: int) -> None:
    secret, place = tmp_path / "secret", tmp_path / "place"
    secret.write_text("")
    secret.chmod(0o600)

    def swap() -> bool:
        with contextlib.suppress(FileNotFoundError):
            place.rename(tmp_path / "made")
            place.symlink_to(secret)
        return place.is_symlink()

    async with parked() as s:
        error = await _apply(s, Dir(place, mode), swap)
    assert _mode(secret) == 0o600
    assert error in ((errno.ENOTDIR, errno.ELOOP) if mode & 0o6000 else (0,))


@pytest.mark.parametrize("mode", MODES, ids=oct)
async def test_no_mode_is_given_to_another_directory(tmp_path: Path, mode: int) -> None:
    private, place = tmp_path / "private", tmp_path / "place"
    private.mkdir()
    private.chmod(0o750)

    def swap() -> bool:
        with contextlib.suppress(FileNotFoundError):
            place.rename(tmp_path / "made")
            private.rename(place)
        return not private.exists()

    async with parked() as s:
        error = await _apply(s, Dir(place, mode), swap)
    assert _mode(place) == 0o750
    assert error == (errno.EEXIST if mode & 0o6000 else 0)


async def test_nothing_is_written_to_what_has_another_name(tmp_path: Path) -> None:
    """Not even where it has been looked at before, and was another one then."""
    secret, place = tmp_path / "secret", tmp_path / "place"
    for path in (secret, place):
        path.write_text("as it was")
        path.chmod(0o600)

    def is_looked_at(pid: int) -> bool:
        return any(os.readlink(each) == str(place) for each in Path(f"/proc/{pid}/fd").iterdir())

    def swap() -> bool:
        if not is_looked_at(s.host_pid):
            return False
        place.unlink()
        place.hardlink_to(secret)
        return True

    async with parked() as s:
        assert await _apply(s, File(place, "new", 0o666), swap) == errno.EEXIST
    assert secret.read_text() == "as it was"
    assert _mode(secret) == 0o600
