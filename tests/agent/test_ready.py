"""Waiting until a workload serves."""

from __future__ import annotations

import fcntl
import math
import os
import re
import socket
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio import ready
from tests.agent.probes import replaced_fd
from tests.agent.rights import rootless
from tests.support import DEADLINE, eventually_async

SERVER = """
import os, socket, sys, time
kind, *address = sys.argv[1:]
server = socket.socket(getattr(socket, kind), getattr(socket, os.environ.get("KIND", "SOCK_STREAM")))
server.bind((address[0], int(address[1])) if kind != "AF_UNIX" else address[0])
print("bound", flush=True)
sys.stdin.readline()
if os.environ.get("KIND") != "SOCK_DGRAM":
    server.listen()
print("listening", flush=True)
time.sleep(3600)
"""


def serving(*arguments: object, **options: Any) -> Any:
    """It listens once it is told to."""
    argv = [sys.executable, "-c", SERVER, *map(str, arguments)]
    return linx.spawn(argv, stdin=linx.PIPE, stdout=linx.PIPE, auto_proceed=True, **options)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def line_of(stream: Any) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += bytes(await stream.receive_some(1))
    return line


async def becomes_ready_only_when_told(session: linx.Session, check: ready.Check, before: str = "bound") -> None:
    """The check waits while the server is bound, and returns when it listens."""
    assert session.stdin is not None
    assert await line_of(session.stdout) == f"{before}\n".encode()
    with trio.move_on_after(0.2) as scope:
        await ready.wait_ready(session, check)
    assert scope.cancelled_caught, "too early"
    await session.stdin.send_all(b"go\n")
    with trio.fail_after(DEADLINE):
        await ready.wait_ready(session, check)


# ---- tcp, path ---------------------------------------------------------------------------------------------------


async def test_tcp() -> None:
    port = free_port()
    async with serving("AF_INET", "127.0.0.1", port) as s:
        await becomes_ready_only_when_told(s, ready.tcp(port))
        for check in (ready.tcp("localhost", port), ready.tcp(port, host="127.0.0.1"), ready.tcp(port=port)):
            await ready.wait_ready(s, check)
        await ready.wait_ready(s, ready.tcp(host="127.0.0.1", port=port))


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
async def test_tcp_in_a_network_namespace_of_its_own(family: str, host: str) -> None:
    """Nobody here can connect to it; and what listens here on the same port does not count."""

    async def loopback_up(session: linx.Session) -> None:
        async with linx.net.open(session) as net:
            await net.set_up("lo")

    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        argv = [sys.executable, "-c", SERVER, family, host, str(port)]
        async with linx.spawn(argv, stdin=linx.PIPE, stdout=linx.PIPE, **rootless("net")) as s:
            await loopback_up(s)
            await s.proceed()
            await becomes_ready_only_when_told(s, ready.tcp(host, port))


def test_a_connection_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert ready._is_listening(os.getpid(), server.getsockname()[1])
        assert not ready._is_listening(os.getpid(), client.getsockname()[1])


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"])
async def test_a_unix_socket(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale one does not count, though it exists."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as stale:
        stale.bind(str(path))
    assert not ready._is_there(str(path))
    path.unlink()
    monkeypatch.setenv("KIND", kind)
    async with serving("AF_UNIX", path) as s:
        if kind == "SOCK_DGRAM":  # it takes datagrams at once
            await ready.wait_ready(s, ready.path(path))
        else:
            await becomes_ready_only_when_told(s, ready.path(path))


async def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    async with linx.spawn(["sh", "-c", f"read x; echo $$ > {path}; sleep 3600"], stdin=linx.PIPE) as s:
        await s.proceed()
        assert s.stdin is not None
        with trio.move_on_after(0.1) as scope:
            await ready.wait_ready(s, ready.path(path))
        assert scope.cancelled_caught
        await s.stdin.send_all(b"\n")
        await ready.wait_ready(s, ready.path(path))


async def test_a_path_inside(tmp_path: Path) -> None:
    """As the workload sees it: below its own root, on a file system that nobody else has."""
    script = f"mkdir {tmp_path}/new; echo > {tmp_path}/new/there; sleep 3600"
    options: dict[str, Any] = {**rootless("mount"), "mounts": [linx.mount.Tmpfs(str(tmp_path))]}
    async with linx.spawn(["sh", "-c", script], auto_proceed=True, **options) as s:
        await ready.wait_ready(s, ready.path(tmp_path / "new" / "there", inside=True))
        assert not (tmp_path / "new").exists()


# ---- line --------------------------------------------------------------------------------------------------------


async def test_a_line() -> None:
    port = free_port()
    async with serving("AF_INET", "127.0.0.1", port) as s:
        await becomes_ready_only_when_told(s, ready.line("^listen"))


@pytest.mark.parametrize(
    "pattern", ["serving on [0-9]+$", b"serving on \\d", re.compile("SERVING", re.IGNORECASE), re.compile(b"serving")]
)
async def test_patterns(pattern: Any) -> None:
    script = "printf 'not yet\\nserv'; sleep 0.05; printf 'ing on 80\\r\\n'; sleep 3600"
    heard = bytearray()
    async with linx.spawn(["sh", "-c", script], stderr=linx.PIPE, stdout=linx.PIPE, auto_proceed=True) as s:
        await ready.wait_ready(s, ready.line(pattern, to=heard.extend))
    assert heard == b"not yet\nserving on 80\r\n"


async def test_a_supervised_child_is_never_stopped_by_a_full_pipe(tmp_path: Path) -> None:
    script = "echo up >&2; head -c 1000000 /dev/zero >&2; echo last >&2; exit 5"
    heard = bytearray()
    spec = linx.ChildSpec(
        linx.Workload(["sh", "-c", script], stderr=linx.PIPE),
        id="x",
        restart="temporary",
        ready=ready.line("up", stream="stderr", to=heard.extend),
    )
    with trio.fail_after(DEADLINE):
        (child,) = await linx.supervise([spec])
    assert child.last_outcome == linx.Exited(5)
    assert len(heard) == 1000000 + len("up\nlast\n")
    assert heard.endswith(b"\0last\n")


async def test_a_listener_that_fails_does_not_stop_the_child(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[bytes] = []

    def listen(data: bytes) -> None:
        heard.append(data)
        if len(heard) > 1:
            raise ValueError("full")

    script = "echo up; read x; head -c 1000000 /dev/zero; exit 5"
    workload = linx.Workload(["sh", "-c", script], stdin=linx.PIPE, stdout=linx.PIPE)
    spec = linx.ChildSpec(workload, id="x", restart="temporary", ready=ready.line("up", to=listen))
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            supervisor = await nursery.start(linx.supervise, [spec])
            stdin = supervisor.session("x").stdin
            await stdin.send_all(b"go\n")
    (child,) = supervisor.children()
    assert child.last_outcome == linx.Exited(5)
    assert len(heard) == 2
    assert "is dropped from here on" in caplog.text


async def test_what_a_child_says_that_does_not_come_up_is_heard() -> None:
    """Why it did not, most likely."""
    heard = bytearray()
    spec = linx.ChildSpec(
        linx.Workload(["sh", "-c", "echo port in use; exit 1"], stdout=linx.PIPE),
        id="x",
        restart="temporary",
        ready=ready.line("up", to=heard.extend),
    )
    (child,) = await linx.supervise([spec])
    assert child.last_outcome == linx.Exited(1)
    assert heard == b"port in use\n"


async def test_a_line_needs_a_pipe() -> None:
    workload = linx.Workload(["sleep", "3600"], stdout=linx.DEVNULL)
    spec = linx.ChildSpec(workload, id="x", restart="temporary", ready=ready.line("up"))
    (child,) = await linx.supervise([spec])
    assert "linx.ready.line needs stdout=linx.PIPE" in str(child.last_error)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_an_inherited_stream_still_leads_where_it_led(capfd: pytest.CaptureFixture[str], stream: str) -> None:
    redirection = "" if stream == "stdout" else ">&2"
    script = f"(echo before; echo up; head -c 1000000 /dev/zero; echo last) {redirection}"
    heard = bytearray()
    check = ready.line("up", stream=stream, to=heard.extend)
    with trio.fail_after(DEADLINE):
        (child,) = await linx.supervise(
            [linx.ChildSpec(["sh", "-c", script], id="x", restart="temporary", ready=check)]
        )
    assert child.last_outcome == linx.Exited(0)
    assert heard == b"before\nup\n" + bytes(1000000) + b"last\n"
    assert getattr(capfd.readouterr(), "out" if stream == "stdout" else "err").encode() == heard


def filled(fd: int) -> int:
    """Writes into a pipe until it is full: so many bytes."""
    written = 0
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        while True:
            written += os.write(fd, bytes(1024))
    os.set_blocking(fd, True)
    return written


def waiting_in(fd: int) -> int:
    """How many bytes there are to be read."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


async def test_what_is_passed_on_when_the_child_ends_is_not_forgotten() -> None:
    """Whoever reads this process' own stream is slow: the last of it is still under way when reading is cancelled."""
    heard, passed_on = bytearray(), bytearray()
    read_end, write_end = os.pipe()
    check = ready.line("up", to=heard.extend)
    assert isinstance(check, ready.Line)
    passing = check.passing_on()
    script = "echo up; read go; echo last"  # in one piece: none is read while one cannot be passed on

    async def read_all(stream: trio.lowlevel.FdStream) -> None:
        async for data in stream:
            passed_on.extend(data)

    with trio.fail_after(DEADLINE), replaced_fd(1, write_end):
        os.close(write_end)
        async with linx.spawn(["sh", "-c", script], stdin=linx.PIPE, stdout=linx.PIPE, auto_proceed=True) as s:
            assert s.stdin is not None
            await passing(s)
            filler = filled(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(passing.drain, s)
                await s.stdin.send_all(b"go\n")
                await eventually_async(lambda: heard.endswith(b"last\n"), "all of it has been read")
                nursery.cancel_scope.cancel()
            async with trio.lowlevel.FdStream(read_end) as stream, trio.open_nursery() as nursery:
                nursery.start_soon(read_all, stream)
                await passing.drain(s)
                assert len(passed_on) + waiting_in(read_end) == len(heard) + filler
                os.dup2(2, 1)  # the end of the file, for the reader
    assert passed_on == b"up\n" + bytes(filler) + b"last\n"


# ---- wait_ready --------------------------------------------------------------------------------------------------


async def never(session: linx.Session) -> None:
    await trio.sleep_forever()


async def test_the_end_ends_the_waiting() -> None:
    async with linx.spawn(["sh", "-c", "exit 3"], auto_proceed=True) as s:
        with pytest.raises(linx.NoProcess), trio.fail_after(DEADLINE):
            await ready.wait_ready(s, never)
        assert s.outcome == linx.Exited(3)


async def test_what_a_check_raises_comes_out_bare() -> None:
    async def raises(session: linx.Session) -> None:
        raise KeyError("x")

    async with linx.spawn(["sleep", "3600"], auto_proceed=True) as s:
        caught: BaseException | None = None
        try:
            await ready.wait_ready(s, raises)
        except BaseException as exc:
            caught = exc
        assert type(caught) is KeyError
        assert s.state == "running"


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_cancellation_comes_out_bare(grouped: bool) -> None:
    cleaned: list[str] = []

    async def waits(session: linx.Session) -> None:
        try:
            if grouped:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    nursery.start_soon(trio.sleep_forever)
            else:
                await trio.sleep_forever()
        finally:
            cleaned.append("up")

    caught: BaseException | None = None
    async with linx.spawn(["sleep", "3600"], auto_proceed=True) as s:
        with trio.move_on_after(0.05):
            try:
                await ready.wait_ready(s, waits)
            except BaseException as exc:
                caught = exc
                raise
    assert type(caught) is trio.Cancelled
    assert cleaned == ["up"]


async def test_it_answers_at_once_when_it_is_ready() -> None:
    async def at_once(session: linx.Session) -> None:
        return

    async with linx.spawn(["sleep", "3600"], auto_proceed=True) as s:
        await ready.wait_ready(s, at_once)
        s.kill()
        await s.wait()
        await eventually_async(lambda: s.outcome, "its end is known")


# ---- wrong arguments ---------------------------------------------------------------------------------------------

BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ready.tcp(0), ValueError, "port must be between 1 and 65535, not 0"),
    (lambda: ready.tcp("80"), TypeError, "port must be an int, not '80'"),  # type: ignore[call-overload]
    (lambda: ready.tcp("", 80), TypeError, "host must be a name or an address, not ''"),
    (lambda: ready.tcp(), TypeError, "tcp() takes a port, or a host and a port"),  # type: ignore[call-overload]
    (lambda: ready.tcp("::1", 80, port=80), TypeError, "tcp() takes a port"),  # type: ignore[call-overload]
    (lambda: ready.tcp(True), TypeError, "port must be an int, not True"),
    (lambda: ready.path(""), ValueError, "path is empty"),
    (lambda: ready.path("a\0b"), ValueError, "contains a NUL byte"),
    (lambda: ready.path(3), TypeError, "path must be str, bytes or a path, not 3"),  # type: ignore[arg-type]
    (lambda: ready.path("x", inside=True), ValueError, "path must be absolute with inside=True, not 'x'"),
    (lambda: ready.line("("), re.error, "missing )"),
    (lambda: ready.line(math.pi), TypeError, "pattern must be a regular expression, not 3.14"),  # type: ignore[arg-type]
    (lambda: ready.line("x", stream="stdin"), ValueError, "stream must be one of 'stdout', 'stderr', 'pty'"),
    (lambda: ready.line("x", to=[]), TypeError, "to must be a function of bytes, or None"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "kind", "text"), BAD)
def test_what_is_wrong_is_named(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
