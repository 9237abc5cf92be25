"""A terminal's two ends (``pty(7)``): opened here, the far one handed to the workload, this one a trio stream.

The kernel's terminal is between them, with its echo, its ``^C`` and its translation of newlines; nothing here
interprets a byte. Three of its habits are translated for users of streams: reading fails with EIO when no process has
the far end open any more, which is the end of the file; writing then succeeds into a buffer that nobody will read,
which is a broken resource; and after that poll(2) always says "ready", so that waiting for room would be a busy loop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import trio

from linx_trio._fd import FdBag
from linx_trio._options import WindowSize
from linx_trio.errors import setup_error

if sys.platform != "win32":  # the package can be imported there all the same
    import fcntl
    import termios

_TIOCSPTLCK, _TIOCGPTN, _TIOCGPTPEER = 0x40045431, 0x80045430, 0x5441  # ioctl_tty(2); `termios` lacks them
_WINSIZE = struct.Struct("4H")
_RECEIVE = 65536
_TOO_MANY = "too many terminals: see kernel.pty.max, and max= of the devpts mount"
_HINTS = {
    errno.ENOSPC: _TOO_MANY,
    errno.EIO: _TOO_MANY,
    errno.EMFILE: "too many open files: raise RLIMIT_NOFILE (ulimit -n)",
}


def open_pair(bag: FdBag, size: WindowSize) -> tuple[int, int]:
    """A new terminal of that size: master and slave, in `bag`. Raises `SetupError`, stage ``stdio``."""
    try:
        master = bag.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(master, _TIOCSPTLCK, bytes(4))
        # Not by its name: /dev/pts may be another one here than the one that /dev/ptmx belongs to.
        slave = bag.adopt(fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        set_size(master, size)
    except OSError as exc:
        number = exc.errno or errno.EIO
        raise setup_error(number, "stdio", "/dev/ptmx", _HINTS.get(number)) from None
    return master, slave


def name_of(master: int) -> str:
    """The slave's name below ``/dev/pts`` (``ptsname(3)``)."""
    return f"/dev/pts/{int.from_bytes(fcntl.ioctl(master, _TIOCGPTN, bytes(4)), sys.byteorder)}"


def set_size(fd: int, size: WindowSize) -> None:
    """``TIOCSWINSZ`` on either end. The foreground process group gets SIGWINCH if it is another size."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, _WINSIZE.pack(size.rows, size.cols, size.xpixel, size.ypixel))


def get_size(fd: int) -> WindowSize:
    """``TIOCGWINSZ``."""
    return WindowSize(*_WINSIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_WINSIZE.size))))


def as_size(rows: Any, cols: Any, xpixel: int, ypixel: int) -> WindowSize:
    """What `PtyStream.set_winsize` takes. Raises `TypeError` or `ValueError`."""
    if cols is not None:
        return WindowSize(rows, cols, xpixel, ypixel)
    if xpixel or ypixel:
        raise TypeError(f"the size is {rows!r} already: xpixel and ypixel belong into it")
    if isinstance(rows, WindowSize):
        return rows
    if isinstance(rows, Mapping) and {"rows", "cols"} <= rows.keys() <= {"rows", "cols", "xpixel", "ypixel"}:
        return WindowSize(**rows)
    if isinstance(rows, tuple) and 2 <= len(rows) <= 4:
        return WindowSize(*rows)
    raise TypeError(f"the size must be rows and cols, a tuple, a WindowSize or a mapping of those, not {rows!r}")


class _Exclusive:
    """Lets one task at a time in."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._message)
        self._held = True

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held = False


class PtyStream(trio.abc.Stream):
    """This side of a workload's terminal. `Session.pty`; do not call.

    What the workload writes, and the terminal's echo of what is sent here, is received here. One task may send and one
    receive at a time (`trio.BusyResourceError`). Nothing is dropped: while nobody receives, the workload's writes wait.
    """

    _fd = -1

    def __init__(self, master: int) -> None:
        self._fd = master
        self._size = get_size(master)
        self._given_back = b""
        os.set_blocking(master, False)
        self._sending = _Exclusive("another task is sending to this terminal")
        self.receiving = _Exclusive("another task is receiving from this terminal")

    def __repr__(self) -> str:
        return f"<linx_trio.PtyStream fd {self._fd}>" if self._fd >= 0 else "<linx_trio.PtyStream closed>"

    def fileno(self) -> int:
        """The master's fd, -1 once it is closed."""
        return self._fd

    # ---- in ------------------------------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What is there, at least one byte, as soon as there is any; ``b""`` when no process has the terminal open any
        more. Cancelling it loses nothing.
        """
        if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int)):
            raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        with self.receiving:
            return await self.receive_borrowed(max_bytes)

    async def receive_borrowed(self, max_bytes: int | None = None) -> bytes:
        """`receive_some` for the one that holds `receiving`."""
        await trio.lowlevel.checkpoint()
        while True:
            data = self.receive_now(_RECEIVE if max_bytes is None else min(max_bytes, _RECEIVE))
            if data is not None:
                return data
            await trio.lowlevel.wait_readable(self._fd)

    def receive_now(self, max_bytes: int) -> bytes | None:
        """What is there already, at most what one read(2) gives (little more than 4 KiB); ``b""`` at the end, `None` if
        there is nothing yet.
        """
        self._check_open()
        if self._given_back:
            data, self._given_back = self._given_back[:max_bytes], self._given_back[max_bytes:]
            return data
        # One read, not all there is: the kernel moves a terminal's bytes 4 KiB at a time in a work queue, and a read
        # that finds nothing waits for that work even with O_NONBLOCK, and all of trio with it. It is no faster either.
        for _ in range(2):  # the first EIO may be said too early, see n_tty_read in the kernel
            try:
                return os.read(self._fd, max_bytes)
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise trio.BrokenResourceError("the terminal cannot be read") from exc
        return b""

    def give_back(self, data: bytes) -> None:
        """For the one that holds `receiving`: it has no use for what it has received last; the next one shall have
        it.
        """
        self._given_back = data + self._given_back

    # ---- out -----------------------------------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Types `data` at the terminal, waiting as long as the workload does not read. Cancelled, it may have sent a
        part. Raises `trio.BrokenResourceError` when no process has the terminal open any more.
        """
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_open()
            with memoryview(data) as whole, whole.cast("B") as view:
                sent = 0
                while sent < len(view):
                    sent += await self._send_some(view[sent:])

    async def _send_some(self, data: memoryview) -> int:
        self._check_open()
        if self._hung_up():
            raise trio.BrokenResourceError("no process has this terminal open any more")
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(self._fd)
            return 0
        except OSError as exc:
            raise trio.BrokenResourceError("the terminal cannot be written to") from exc

    async def wait_send_all_might_not_block(self) -> None:
        """Returns when there is room, or when sending would fail."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_open()
            await trio.lowlevel.wait_writable(self._fd)
            self._check_open()  # another task may have closed it between the kernel's waking us and now

    async def send_eof(self) -> None:
        """Types the terminal's end-of-file character (``VEOF``, ``termios(3)``; usually ``^D``). A program that reads
        lines takes it as the end of the file at the beginning of a line; one in raw mode gets the character.

        Raises `ValueError` if the terminal has that character disabled.
        """
        self._check_open()
        character = termios.tcgetattr(self._fd)[6][termios.VEOF]
        if character == b"\0":  # _POSIX_VDISABLE
            raise ValueError("this terminal has no end-of-file character: it is disabled (VEOF, termios(3))")
        await self.send_all(character)

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    # ---- the window ----------------------------------------------------------------------------------------------

    @property
    def winsize(self) -> WindowSize:
        """The terminal's size; once it is closed, its last one."""
        if self._fd >= 0:
            self._size = get_size(self._fd)
        return self._size

    def set_winsize(
        self,
        rows: int | tuple[int, ...] | WindowSize | Mapping[str, int],
        cols: int | None = None,
        xpixel: int = 0,
        ypixel: int = 0,
    ) -> None:
        """Sets it (``TIOCSWINSZ``, ``ioctl_tty(2)``). Before `Session.proceed` it is what the workload starts with,
        later a change raises SIGWINCH in the terminal's foreground process group; after the end it does nothing.

        Args:
            rows, cols: in characters; or all in one: a tuple, a `WindowSize`, a mapping with its fields.
            xpixel, ypixel: in pixels, 0 where unknown.

        Raises `TypeError` or `ValueError` for sizes outside of 0..65535.
        """
        self._size = as_size(rows, cols, xpixel, ypixel)
        if self._fd >= 0:
            set_size(self._fd, self._size)

    # ---- the end -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._fd < 0:
            raise trio.ClosedResourceError("this terminal has been closed on this side")

    def close(self) -> None:
        """Closes this side: processes that have the terminal open are hung up (SIGHUP)."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            self._size = get_size(self._fd)
        fd, self._fd = self._fd, -1
        with contextlib.suppress(RuntimeError):  # outside of trio.run nobody waits
            trio.lowlevel.notify_closing(fd)
        os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    async def aclose(self) -> None:
        """`close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()
