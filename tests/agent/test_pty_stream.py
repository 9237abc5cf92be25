"""`PtyStream` as a trio stream, on a bare terminal: no workload is needed to be cancelled, closed or hung up."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import hashlib
import os
import random
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias, TypeVar

import pytest
import trio
import trio.testing

from linx_trio import _pty
from linx_trio._fd import FdBag
from linx_trio._options import WindowSize
from linx_trio._pty import PtyStream
from tests.support import DEADLINE

AnyPty = TypeVar("AnyPty", bound=PtyStream)

SIZE = WindowSize(24, 80)
N_TTY_BUFFER = 4095
"""Bytes that the kernel keeps for a terminal's reader (``N_TTY_BUF_SIZE``, less one); others wait before that."""
MEGABYTES = 4 << 20
"""More than all the buffers of a terminal together, many times over."""


def bare(kind: type[AnyPty]) -> tuple[AnyPty, int]:
    """A terminal in raw mode: its stream, and the fd of the other end."""
    with FdBag() as bag:
        master, slave = _pty.open_pair(bag, SIZE)
        tty.setraw(slave)
        return kind(bag.take(master)), bag.take(slave)


async def two_ends() -> tuple[PtyStream, trio.lowlevel.FdStream]:
    ours, slave = bare(PtyStream)
    return ours, trio.lowlevel.FdStream(slave)


AnyEnd: TypeAlias = "PtyStream | trio.lowlevel.FdStream"


async def fill(stream: AnyEnd, other: AnyEnd) -> None:
    """Until it has room for nothing. The kernel carries bytes on to the other end in its own time, on a busy machine
    much later, which makes room again; until there is no place over there.
    """
    is_full = False
    with trio.fail_after(DEADLINE):
        while not is_full:
            is_full = to_be_read(other) >= N_TTY_BUFFER
            with contextlib.suppress(BlockingIOError):
                while os.write(stream.fileno(), bytes(4096)):
                    is_full = False
            await trio.sleep(0.001)


def to_be_read(end: AnyEnd) -> int:
    return int.from_bytes(fcntl.ioctl(end.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


async def full_ends() -> tuple[PtyStream, trio.lowlevel.FdStream]:
    """Neither direction has room."""
    ours, theirs = await two_ends()
    await fill(ours, theirs)
    await fill(theirs, ours)
    return ours, theirs


class Counting(trio.abc.Stream):
    """The workload's end, which counts what it has received."""

    def __init__(self, end: trio.lowlevel.FdStream) -> None:
        self.end, self.received = end, 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.end.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.end.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.end.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self.end.receive_some(max_bytes))
        self.received += len(data)
        return data


class Polite(PtyStream):
    """Closing a terminal is hanging up: the kernel throws away what the workload has not read. This one waits until
    that is nothing, so that it can be held against the checks for streams, which know no hanging up.
    """

    other: Counting
    sent = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await super().send_all(data)
        self.sent += len(data)

    async def aclose(self) -> None:
        try:
            await trio.lowlevel.checkpoint()
            while self.fileno() >= 0 and not self._hung_up() and self.other.received < self.sent:  # noqa: ASYNC110
                await trio.sleep(0.001)
        finally:
            self.close()


async def polite_ends() -> tuple[Polite, Counting]:
    ours, slave = bare(Polite)
    ours.other = Counting(trio.lowlevel.FdStream(slave))
    return ours, ours.other


@contextlib.asynccontextmanager
async def terminal() -> AsyncIterator[tuple[PtyStream, trio.lowlevel.FdStream]]:
    ours, theirs = await two_ends()
    async with ours, theirs:
        yield ours, theirs


# ---- the checks that every trio stream has to stand ------------------------------------------------------------------


async def test_it_is_a_trio_stream() -> None:
    """In each direction, in both at the same time, and where nobody reads; the other end is one of trio's own."""
    await trio.testing.check_two_way_stream(polite_ends, full_ends)


# ---- one at a time ---------------------------------------------------------------------------------------------------


async def test_a_second_reader_is_refused_and_the_first_goes_on() -> None:
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:

        async def first() -> None:
            assert await ours.receive_some() == b"for the first"

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="receiving"):
            await ours.receive_some()
        await theirs.send_all(b"for the first")


async def test_a_second_sender_is_refused_and_the_first_goes_on() -> None:
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, bytes(MEGABYTES))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="sending"):
            await ours.send_all(b"x")
        with pytest.raises(trio.BusyResourceError, match="sending"):
            await ours.send_eof()
        with pytest.raises(trio.BusyResourceError, match="sending"):
            await ours.wait_send_all_might_not_block()
        left = MEGABYTES
        while left:
            chunk = await theirs.receive_some()
            assert not chunk.strip(b"\0")
            left -= len(chunk)


async def test_reading_and_writing_at_the_same_time() -> None:
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:

        async def reader() -> None:
            assert await ours.receive_some() == b"answer"

        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        await ours.send_all(b"question")
        assert await theirs.receive_some() == b"question"
        await theirs.send_all(b"answer")


# ---- closing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["receive_some", "send_all", "wait_send_all_might_not_block"])
async def test_closing_while_another_task_waits(what: str) -> None:
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:
        await fill(ours, theirs)
        arguments = (b"x",) if what == "send_all" else ()

        async def waits() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await getattr(ours, what)(*arguments)

        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()


class Before(trio.abc.Instrument):
    """Does something just before the next step of a task."""

    def __init__(self, task: trio.lowlevel.Task, act: Callable[[], object]) -> None:
        self.task, self.act = task, act

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            trio.lowlevel.remove_instrument(self)
            self.act()


@pytest.mark.parametrize("what", ["receive_some", "send_all", "wait_send_all_might_not_block"])
async def test_closing_after_the_kernel_has_woken_another_task(what: str) -> None:
    """It has data, or room, and was about to go on."""
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:
        if what != "receive_some":
            await fill(ours, theirs)
        arguments = (b"x",) if what == "send_all" else ()
        tasks = []

        async def waits() -> None:
            tasks.append(trio.lowlevel.current_task())
            with pytest.raises(trio.ClosedResourceError):
                await getattr(ours, what)(*arguments)

        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(Before(tasks[0], ours.close))
        if what == "receive_some":
            await theirs.send_all(b"x")
        else:
            while ours.fileno() >= 0:
                await theirs.receive_some()
    assert ours.fileno() == -1


async def test_once_closed() -> None:
    async with terminal() as (ours, theirs):
        ours.set_winsize(7, 8, 9, 10)
        assert str(ours.fileno()) in repr(ours)
        await ours.aclose()
        await ours.aclose()
        ours.close()
        assert ours.fileno() == -1
        assert "closed" in repr(ours)
        for refused in (
            ours.receive_some,
            lambda: ours.send_all(b"x"),
            lambda: ours.send_all(b""),
            ours.send_eof,
            ours.wait_send_all_might_not_block,
        ):
            with pytest.raises(trio.ClosedResourceError):
                await refused()
        assert ours.winsize == WindowSize(7, 8, 9, 10)
        ours.set_winsize(1, 2)
        assert ours.winsize == WindowSize(1, 2)
        assert await theirs.receive_some() == b"", "this is how the other end sees it"


def test_closing_outside_of_trio() -> None:
    ours, slave = bare(PtyStream)
    os.close(slave)
    ours.close()
    assert ours.fileno() == -1


async def test_closing_takes_effect_although_it_is_cancelled() -> None:
    async with terminal() as (ours, _theirs):
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.aclose()
        assert scope.cancelled_caught
        assert ours.fileno() == -1


# ---- the other end is gone -------------------------------------------------------------------------------------------


async def test_hanging_up_is_the_end_of_the_file() -> None:
    async with terminal() as (ours, theirs):
        await theirs.send_all(b"last words")
        await theirs.aclose()
        assert await ours.receive_some(4) == b"last"
        assert await ours.receive_some() == b" words"
        for _ in range(3):
            assert await ours.receive_some() == b""
            assert await ours.receive_some(1) == b""


async def test_hanging_up_wakes_the_reader() -> None:
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:

        async def reader() -> None:
            assert await ours.receive_some() == b""

        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()


async def test_the_end_of_the_file_is_believed_when_it_is_said_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """``n_tty_read`` of the kernel looks for bytes first and for writers then. If between the two the last byte is
    written and the terminal closed, it says EIO, and has the byte at the next call: about once in 50 000 closes of a
    terminal that is being polled. Here that moment is made to last.
    """
    async with terminal() as (ours, theirs):
        await theirs.send_all(b"last words")
        await theirs.aclose()
        real, lies = os.read, [errno.EIO]

        def read(fd: int, count: int) -> bytes:
            if fd == ours.fileno() and lies:
                raise OSError(lies.pop(), "too early")
            return real(fd, count)

        monkeypatch.setattr(os, "read", read)
        assert await ours.receive_some() == b"last words"
        assert await ours.receive_some() == b""


async def test_sending_to_nobody() -> None:
    """The kernel takes the bytes until its buffer is full, and then poll(2) says that there is room, for ever."""
    async with terminal() as (ours, theirs):
        await fill(ours, theirs)
        await theirs.aclose()
        with trio.fail_after(DEADLINE):
            for data in (b"x", bytes(MEGABYTES)):
                with pytest.raises(trio.BrokenResourceError, match="no process"):
                    await ours.send_all(data)
            with pytest.raises(trio.BrokenResourceError):
                await ours.send_eof()
            await ours.wait_send_all_might_not_block()
        await ours.send_all(b"")


async def test_hanging_up_wakes_the_sender() -> None:
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:

        async def sender() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await ours.send_all(bytes(MEGABYTES))

        nursery.start_soon(sender)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()


# ---- no byte is lost -------------------------------------------------------------------------------------------------


async def test_cancelled_receiving_loses_nothing() -> None:
    """Every read is cancelled at some moment: before it, while it waits, or when there is something already."""
    data = os.urandom(1 << 20)
    rng = random.Random(20)
    seen = hashlib.sha256()
    cancelled = 0
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:

        async def writer() -> None:
            async with theirs:
                at = 0
                while at < len(data):
                    size = rng.choice([1, 100, 5000])
                    await theirs.send_all(data[at : at + size])
                    at += size

        nursery.start_soon(writer)
        while True:
            chunk: bytes | None = None
            with trio.CancelScope() as scope:
                match rng.randrange(3):
                    case 0:
                        scope.cancel()
                    case 1:
                        scope.deadline = trio.current_time() + rng.random() * 0.0005
                chunk = await ours.receive_some()
            if chunk is None:
                cancelled += 1
                continue
            if not chunk:
                break
            seen.update(chunk)
    assert cancelled > 20
    assert seen.digest() == hashlib.sha256(data).digest()


async def test_cancelled_sending_has_sent_a_beginning() -> None:
    data = os.urandom(MEGABYTES)
    async with terminal() as (ours, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, data)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await ours.send_all(b"")  # it is free again
        await ours.aclose()
        received = b"".join([bytes(chunk) async for chunk in theirs])
        assert data.startswith(received)


async def test_a_reader_that_takes_one_byte_at_a_time() -> None:
    data = os.urandom(20_000)
    async with terminal() as (ours, theirs), trio.open_nursery() as nursery:

        async def writer() -> None:
            async with theirs:
                await theirs.send_all(data)

        nursery.start_soon(writer)
        received = bytearray()
        while byte := await ours.receive_some(1):
            assert len(byte) == 1
            received += byte
        assert received == data


@pytest.mark.parametrize(
    "data", [bytearray(b"12345678"), memoryview(b"12345678"), array.array("I", [1, 2]), b""], ids=type
)
async def test_what_can_be_sent(data: Any) -> None:
    async with terminal() as (ours, theirs):
        await ours.send_all(data)
        await ours.send_all(b"|")
        received = b""
        while not received.endswith(b"|"):
            received += bytes(await theirs.receive_some())
        assert received == bytes(data) + b"|"


@pytest.mark.parametrize("data", ["text", None, 5, [1]])
async def test_what_cannot_be_sent(data: Any) -> None:
    async with terminal() as (ours, _theirs):
        with pytest.raises(TypeError):
            await ours.send_all(data)


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)]
)
async def test_a_wrong_number_of_bytes(size: Any, error: type[Exception]) -> None:
    async with terminal() as (ours, _theirs):
        with pytest.raises(error, match="max_bytes"):
            await ours.receive_some(size)


async def test_everything_is_a_checkpoint() -> None:
    async with terminal() as (ours, theirs):
        await theirs.send_all(b"x")
        with trio.testing.assert_checkpoints():
            await ours.receive_some()
        for each in (ours.wait_send_all_might_not_block, ours.send_eof, lambda: ours.send_all(b""), ours.aclose):
            with trio.testing.assert_checkpoints():
                await each()


# ---- the end-of-file character ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", [b"\x04", b"q", b"\xff"])
async def test_send_eof_types_the_terminals_own_character(character: bytes) -> None:
    ours, slave = bare(PtyStream)
    async with ours, trio.lowlevel.FdStream(slave) as theirs:
        settings = termios.tcgetattr(slave)
        settings[6][termios.VEOF] = character
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        await ours.send_eof()
        assert await theirs.receive_some() == character


async def test_a_terminal_without_an_end_of_file_character() -> None:
    ours, slave = bare(PtyStream)
    async with ours, trio.lowlevel.FdStream(slave):
        settings = termios.tcgetattr(slave)
        settings[6][termios.VEOF] = b"\0"
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        with pytest.raises(ValueError, match="VEOF"):
            await ours.send_eof()
