"""The netlink transport against a kernel of our own at the other end of a socket pair, which is as slow, as late and as
forgetful as a test wants it to be.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

import linx_trio
from linx_trio import _netlink_frames as f
from linx_trio._rtnl import DUMP_ATTEMPTS, Rtnl
from tests.support import cancelled_after

GETLINK = 18
DUMP = f.DUMP


class Kernel:
    """The other end. It answers when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    async def asked(self) -> f.Frame:
        await trio.lowlevel.wait_readable(self.sock)
        (frame,) = f.split(self.sock.recv(65536))
        return frame

    def say(self, seq: int, *payloads: bytes, flags: int = 0) -> None:
        for payload in payloads:
            self.sock.send(f.pack(16, flags, seq, payload))

    def acknowledge(self, seq: int, number: int = 0, text: str = "") -> None:
        body = struct.pack("=i", -number) + bytes(16)
        raw = text.encode() + b"\0"
        words = struct.pack("=HH", 4 + len(raw), 1) + raw if text else b""
        self.sock.send(f.pack(f.NLMSG_ERROR, 0x100 | (0x200 if text else 0), seq, body + words))

    def end(self, seq: int, flags: int = f.MULTI) -> None:
        self.sock.send(f.pack(f.NLMSG_DONE, flags, seq, bytes(4)))


@pytest.fixture
def pair() -> Iterator[tuple[Rtnl, Kernel]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        rtnl = Rtnl(ours)
        yield rtnl, Kernel(theirs)
        rtnl.close()


Pair = tuple[Rtnl, Kernel]


async def test_an_answer(pair: Pair) -> None:
    rtnl, kernel = pair
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            frame = await kernel.asked()
            assert (frame.type, frame.flags, frame.payload) == (GETLINK, f.REQUEST | f.ACK, b"which?")
            kernel.say(frame.seq, b"this")
            kernel.acknowledge(frame.seq)

        nursery.start_soon(serve)
        (answer,) = await rtnl.request(GETLINK, 0, b"which?")
        assert answer.payload == b"this"


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EEXIST, FileExistsError), (errno.EPERM, PermissionError), (errno.EINVAL, OSError)]
)
async def test_a_refusal_has_the_kernels_words(pair: Pair, slow: bool, number: int, kind: type[OSError]) -> None:
    rtnl, kernel = pair
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            kernel.acknowledge((await kernel.asked()).seq, number, "because")

        nursery.start_soon(serve)
        with pytest.raises(OSError, match=f"{os.strerror(number)}: because: 'lo'") as caught:
            await rtnl.request(GETLINK, 0, b"", thing="lo", slow=slow)
    assert type(caught.value) is kind
    assert (caught.value.errno, caught.value.filename) == (number, "lo")


async def test_a_dump_comes_in_pieces(pair: Pair) -> None:
    rtnl, kernel = pair
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            frame = await kernel.asked()
            assert frame.flags == f.REQUEST | DUMP  # an acknowledgement would come before the end
            for number in range(10):
                kernel.say(frame.seq, bytes([number]), flags=f.MULTI)
                await trio.lowlevel.checkpoint()
            kernel.end(frame.seq)

        nursery.start_soon(serve)
        answer = await rtnl.request(GETLINK, DUMP, b"")
        assert [part.payload for part in answer] == [bytes([number]) for number in range(10)]


async def test_a_dump_that_was_interrupted_is_read_again(pair: Pair) -> None:
    rtnl, kernel = pair
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            for attempt in range(3):
                frame = await kernel.asked()
                kernel.say(frame.seq, bytes([attempt]), flags=f.MULTI | (f.DUMP_INTERRUPTED if attempt < 2 else 0))
                kernel.end(frame.seq)

        nursery.start_soon(serve)
        (answer,) = await rtnl.request(GETLINK, DUMP, b"")
        assert answer.payload == b"\2"


async def test_a_list_that_never_keeps_still(pair: Pair) -> None:
    rtnl, kernel = pair
    attempts = 0
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            nonlocal attempts
            while True:
                kernel.end((await kernel.asked()).seq, f.MULTI | f.DUMP_INTERRUPTED)
                attempts += 1

        nursery.start_soon(serve)
        with pytest.raises(BlockingIOError, match="changed each of the"):
            await rtnl.request(GETLINK, DUMP, b"")
        nursery.cancel_scope.cancel()
    assert attempts == DUMP_ATTEMPTS


async def test_a_late_answer_is_nobodys(pair: Pair) -> None:
    """The first question is cancelled while the kernel thinks about it."""
    rtnl, kernel = pair
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rtnl.request, GETLINK, 0, b"first")
            first = await kernel.asked()
            scope.cancel()
    kernel.say(first.seq, b"an answer to the first")
    kernel.acknowledge(first.seq, errno.EPERM)
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            frame = await kernel.asked()
            assert frame.payload == b"second"
            kernel.acknowledge(first.seq, errno.EPERM)  # and once more, later than the question
            kernel.say(frame.seq, b"an answer to the second")
            kernel.acknowledge(frame.seq)

        nursery.start_soon(serve)
        (answer,) = await rtnl.request(GETLINK, 0, b"second")
        assert answer.payload == b"an answer to the second"


async def test_cancelled_at_any_moment_it_stays_in_step(pair: Pair) -> None:
    """Each question is answered by itself, whatever happened to those before it."""
    rtnl, kernel = pair
    random_number = random.Random(5)
    answered = cancelled = 0

    async def serve() -> None:
        while True:
            frame = await kernel.asked()
            for part in range(random_number.randrange(4)):
                kernel.say(frame.seq, frame.payload, flags=f.MULTI)
                if random_number.randrange(2):
                    await trio.lowlevel.checkpoint()
                del part
            kernel.end(frame.seq) if frame.flags & DUMP == DUMP else kernel.acknowledge(frame.seq)

    async def ask(number: int, slow: bool) -> None:
        nonlocal answered, cancelled
        question = b"%d" % number
        async with cancelled_after(random_number.randrange(8)) as scope:
            answer = await rtnl.request(GETLINK, random_number.choice([0, DUMP]), question, slow=slow)
            assert {part.payload for part in answer} <= {question}
            answered += 1
        cancelled += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for number in range(200):
            await ask(number, slow=number % 10 == 0)
        (*_, last) = [await rtnl.request(GETLINK, 0, b"the last") for _ in range(10)]
        assert {part.payload for part in last} <= {b"the last"}
        nursery.cancel_scope.cancel()
    assert answered > 20
    assert cancelled > 20


async def test_one_question_at_a_time(pair: Pair) -> None:
    rtnl, kernel = pair
    answers: list[bytes] = []

    async def ask(question: bytes) -> None:
        (part,) = await rtnl.request(GETLINK, 0, question)
        assert part.payload == question
        answers.append(question)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(ask, b"%d" % number)
        for _ in range(5):
            frame = await kernel.asked()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                kernel.sock.recv(1)
            kernel.say(frame.seq, frame.payload)
            kernel.acknowledge(frame.seq)
    assert sorted(answers) == [b"%d" % number for number in range(5)]


async def test_nonsense_is_an_error_and_not_the_end(pair: Pair) -> None:
    rtnl, kernel = pair
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await kernel.asked()
            kernel.sock.send(b"no netlink message at all")
            frame = await kernel.asked()
            kernel.acknowledge(frame.seq)

        nursery.start_soon(serve)
        with pytest.raises(OSError, match="does not parse") as caught:
            await rtnl.request(GETLINK, 0, b"")
        assert caught.value.errno == errno.EBADMSG
        assert await rtnl.request(GETLINK, 0, b"") == []


async def test_closed(pair: Pair) -> None:
    rtnl, kernel = pair
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await rtnl.request(GETLINK, 0, b"")

        nursery.start_soon(ask)
        await kernel.asked()
        rtnl.close()
    with pytest.raises(trio.ClosedResourceError):
        await rtnl.request(GETLINK, 0, b"")
    with pytest.raises(trio.ClosedResourceError):
        await rtnl.receive()
    with pytest.raises(trio.ClosedResourceError):
        rtnl.netns_cookie()
    rtnl.close()


async def test_closed_while_a_thread_sends(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fd is the thread's until it has returned: by then its number could be another file's."""
    rtnl, _kernel = pair
    real = trio.to_thread.run_sync
    during: list[int] = []

    async def run_sync(*args: object, **kwargs: object) -> object:
        rtnl.close()
        during.append(rtnl.fileno())
        return await real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    with pytest.raises(trio.ClosedResourceError):
        await rtnl.request(GETLINK, 0, b"", slow=True)
    assert during[0] >= 0
    assert rtnl.fileno() == -1


async def test_a_message_of_any_size_is_read_whole(pair: Pair) -> None:
    rtnl, kernel = pair
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            frame = await kernel.asked()
            kernel.say(frame.seq, bytes(100_000))
            kernel.acknowledge(frame.seq)

        nursery.start_soon(serve)
        (part,) = await rtnl.request(GETLINK, 0, b"")
        assert len(part.payload) == 100_000


def test_a_forked_child_has_no_copy() -> None:
    program = """
import os, socket
from linx_trio._rtnl import Rtnl
rtnl = Rtnl(socket.socketpair()[0])
fd = rtnl.fileno()
if os.fork() == 0:
    try:
        os.fstat(fd)
    except OSError:
        os._exit(3)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.wait()[1]), rtnl.closed)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(linx_trio.__file__).parents[1],
    )
    assert (done.stdout, done.stderr) == ("3 False\n", "")
