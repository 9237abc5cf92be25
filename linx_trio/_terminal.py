"""The caller's own terminal: opened, set to raw mode and back, read and written while job control allows it.

Lines that must hold:

1. A shell finds its terminal as it left it: whoever leaves `CallersTerminal` restores its modes.
2. The terminal belongs to the foreground. In the background its modes are somebody else's, and reading it would stop
   us (SIGTTIN). A shell may say nothing when it brings a running job back: whoever is in the background keeps asking.
3. O_NONBLOCK belongs to an open file, and the caller's is also its shell's: here it is opened anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import trio

from linx_trio._checks import fileno_of
from linx_trio._fd import FdBag
from linx_trio._options import WindowSize
from linx_trio._pty import get_size, name_of

if sys.platform != "win32":  # the package can be imported there all the same
    import fcntl
    import termios

_TIOCGDEV = 0x80045432  # ioctl_tty(2); `termios` lacks it
POLL_SECONDS = 0.25
"""How often is looked for what nobody tells: whether we are in the foreground again, or have another size."""


def fd_of(terminal: object) -> int:
    if isinstance(terminal, bool) or not (isinstance(terminal, int) or callable(getattr(terminal, "fileno", None))):
        raise TypeError(f"terminal must be an fd, an object with fileno() or None, not {terminal!r}")
    fd = fileno_of(terminal, "terminal")
    if not os.isatty(fd):
        raise ValueError(f"terminal={terminal!r} is not a terminal")
    return fd


@contextlib.contextmanager
def opened(theirs: int | None) -> Iterator[int]:
    """An fd of the terminal that does not block; `None`: of ``/dev/tty``."""
    with FdBag() as bag:
        if theirs is None:
            yield bag.open("/dev/tty", _flags())
        elif (fd := _opened_anew(theirs, bag)) is not None:
            yield fd
        else:
            with _borrowed(theirs, bag) as fd:
                yield fd


def _flags() -> int:
    return os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK


def _opened_anew(theirs: int, bag: FdBag) -> int | None:
    """`None`: a master (opened again it would be another terminal), or refused (after ``su(1)``)."""
    if not _is_master(theirs):
        with contextlib.suppress(OSError):
            return bag.open(f"/proc/self/fd/{theirs}", _flags())
    return None


@contextlib.contextmanager
def _borrowed(theirs: int, bag: FdBag) -> Iterator[int]:
    """It does not block for anybody meanwhile."""
    if fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise ValueError(f"terminal (fd {theirs}) is not open for both reading and writing")
    fd = bag.adopt(os.dup(theirs))
    blocking = os.get_blocking(fd)
    os.set_blocking(fd, False)
    try:
        yield fd
    finally:
        os.set_blocking(fd, blocking)


def _is_master(fd: int) -> bool:
    try:
        name_of(fd)
    except OSError:
        return False
    return True


_taken: dict[int, int] = {}


@contextlib.contextmanager
def exclusively(fd: int) -> Iterator[None]:
    """A second one on the same terminal would take the first one's raw mode for what it has to restore."""
    device = int.from_bytes(fcntl.ioctl(fd, _TIOCGDEV, bytes(4)), sys.byteorder)
    if _taken.setdefault(device, fd) != fd:
        raise trio.BusyResourceError("this terminal is attached to another session")
    try:
        yield
    finally:
        del _taken[device]


@contextlib.contextmanager
def signals(fd: int) -> Iterator[AsyncIterator[int] | None]:
    """SIGWINCH, SIGCONT and SIGTSTP as they arrive; `None` where they do not: they come from the controlling terminal
    only, and to the main thread only.
    """
    watched = {signal.SIGWINCH, signal.SIGCONT}
    if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:  # else it has been decided what it does
        watched.add(signal.SIGTSTP)
    foreign = any(signal.getsignal(number) is None for number in watched)  # set in C: it could not be restored
    if foreign or threading.current_thread() is not threading.main_thread() or not _is_controlling(fd):
        yield None
        return
    with trio.open_signal_receiver(*watched) as arrived:
        yield arrived


def _is_controlling(fd: int) -> bool:
    """Whether job control applies: it is this process' controlling terminal."""
    try:
        os.tcgetpgrp(fd)
    except OSError:
        return False
    return not _is_master(fd)  # it answers for its slave


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGTTOU would stop this process if it has gone to the background since it looked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class CallersTerminal:
    """The caller's terminal. A context manager: leaving it restores the modes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._job_control = _is_controlling(fd)
        self._saved: list[Any] | None = None

    def __enter__(self) -> CallersTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def in_foreground(self) -> bool:
        """Whether the terminal is ours to read and to change."""
        try:
            return not self._job_control or os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # hung up: it is nobody's
            return True

    def make_raw(self) -> None:
        """``cfmakeraw``, ``termios(3)``; in the background nothing. TCSANOW: others would wait for output to drain."""
        with contextlib.suppress(termios.error), _undisturbed():  # hung up: reading it will say so
            if self.in_foreground():
                modes = termios.tcgetattr(self._fd)
                if self._saved is None:
                    self._saved = [*modes[:6], [*modes[6]]]
                if modes != (raw := _raw(modes)):
                    termios.tcsetattr(self._fd, termios.TCSANOW, raw)

    def restore(self) -> None:
        """The modes that were there at first; in the background nothing."""
        if self._saved is not None and self.in_foreground():
            with contextlib.suppress(termios.error), _undisturbed():
                termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)

    def suspend(self) -> None:
        """Stops this process, as SIGTSTP does by itself: not if nobody could continue it. Returns when continued."""
        self.restore()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        try:
            signal.raise_signal(signal.SIGTSTP)
        finally:
            signal.signal(signal.SIGTSTP, handler)

    def size(self) -> WindowSize | None:
        """`None` where it is not known."""
        with contextlib.suppress(OSError):
            size = get_size(self._fd)
            return size if size.rows and size.cols else None
        return None

    async def receive(self) -> bytes:
        """What is typed; ``b""`` when the terminal is hung up."""
        while True:
            if not self.in_foreground():
                await trio.sleep(POLL_SECONDS)
                continue
            try:
                return os.read(self._fd, 4096)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fd)
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                if self.in_foreground():  # else only just not any more, and SIGTTIN is ignored
                    return b""

    async def send_some(self, data: memoryview) -> int:
        """How much of it is shown; -1 if the terminal is hung up."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(self._fd)
            return 0
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            return -1


def _raw(modes: list[Any]) -> list[Any]:
    """``cfmakeraw``, ``termios(3)``."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = modes
    iflag &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    iflag &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
    oflag &= ~termios.OPOST
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cc = [*cc]
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]
