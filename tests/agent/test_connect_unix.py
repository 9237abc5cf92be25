"""`ConnectUnix`: a stream of the workload that is a connection, made before there is a workload."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from tests.agent.probes import as_somebody, flags_of, has_only, identity, replaced_fd, working_in
from tests.support import DEADLINE

STREAMS = ("stdin", "stdout", "stderr")
SLEEP = ["sleep", "600"]


@contextlib.contextmanager
def listening(path: str | bytes | Path, backlog: int = 8) -> Iterator[socket.socket]:
    """A listener that does not wait: what it accepts was connected before."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(path))
        listener.listen(backlog)
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(DEADLINE)
        yield connection


def nobody_else(listener: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        listener.accept()


async def read_all(connection: socket.socket) -> bytes:
    """Up to the end of the file, in trio."""
    connection.setblocking(False)
    data = b""
    with trio.fail_after(DEADLINE):
        while True:
            await trio.lowlevel.wait_readable(connection)
            chunk = connection.recv(65536)
            if not chunk:
                return data
            data += chunk


# ---- what it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
async def test_one_stream(name: str, tmp_path: Path) -> None:
    """Connected when the workload is ready, by this process, and held by nobody but the workload."""
    options: Any = {name: linx.ConnectUnix(tmp_path / "s")}
    with listening(tmp_path / "s") as listener:
        async with linx.spawn(SLEEP, **options) as s:
            with accepted(listener) as connection:
                nobody_else(listener)
                pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                assert (pid, uid, gid) == (os.getpid(), os.geteuid(), os.getegid())
                assert [s.stdin, s.stdout, s.stderr, s.stdio] == [None] * 4
                await s.proceed()
                number = STREAMS.index(name)
                link = os.readlink(f"/proc/{s.host_pid}/fd/{number}")
                assert link.startswith("socket:[")
                socket_id = os.stat(f"/proc/{s.host_pid}/fd/{number}")
                ours = {n: identity(n) for n in range(3)}
                await has_only(s, ours | {number: (socket_id.st_dev, socket_id.st_ino)})
                assert not flags_of(s.host_pid, number) & os.O_NONBLOCK
                assert link not in {os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds()}
                s.kill()
                assert await read_all(connection) == b""


def open_fds() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


async def test_each_stream_has_its_own_connection(tmp_path: Path) -> None:
    """In the order of their numbers, where they share a listener."""
    spec = linx.ConnectUnix(tmp_path / "s")
    script = "read x; echo out $x; echo err $x >&2"
    with listening(tmp_path / "s") as listener:
        async with linx.spawn(["sh", "-c", script], stdin=spec, stdout=spec, stderr=spec) as s:
            with accepted(listener) as stdin, accepted(listener) as stdout, accepted(listener) as stderr:
                nobody_else(listener)
                await s.proceed()
                stdin.sendall(b"hello\n")
                assert await read_all(stdout) == b"out hello\n"
                assert await read_all(stderr) == b"err hello\n"
                assert await s.wait() == linx.Exited(0)


async def test_stderr_can_be_the_same_connection(tmp_path: Path) -> None:
    spec = linx.ConnectUnix(tmp_path / "s")
    with listening(tmp_path / "s") as listener:
        done = await linx.run(["sh", "-c", "echo out; echo err >&2"], stdout=spec, stderr=linx.STDOUT)
        assert done.returncode == 0
        with accepted(listener) as connection:
            nobody_else(listener)
            assert await read_all(connection) == b"out\nerr\n"


async def test_end_of_file_towards_the_workload(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as listener:
        options: Any = {"stdin": linx.ConnectUnix(tmp_path / "s"), "stdout": linx.PIPE}
        async with linx.spawn(["cat"], auto_proceed=True, **options) as s:
            with accepted(listener) as connection:
                connection.sendall(b"all of it")
                connection.shutdown(socket.SHUT_WR)
                assert s.stdout is not None
                assert b"".join([bytes(chunk) async for chunk in s.stdout]) == b"all of it"
                assert await s.wait() == linx.Exited(0)


async def test_end_of_file_at_the_far_side_when_workload_and_heirs_are_gone(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as listener:
        spec = linx.ConnectUnix(tmp_path / "s")
        async with linx.spawn(["sh", "-c", "setsid sleep 600 & echo hi"], stdout=spec) as s:
            with accepted(listener) as connection:
                await s.proceed()
                assert await s.wait() == linx.Exited(0)
                assert connection.recv(100) == b"hi\n"
                connection.setblocking(False)
                with pytest.raises(BlockingIOError):  # the sleep still has it
                    connection.recv(100)
                s.kill()
                assert await read_all(connection) == b""


async def test_an_aborted_workload_leaves_no_connection(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as listener:
        async with linx.spawn(SLEEP, stdout=linx.ConnectUnix(tmp_path / "s")) as s:
            with accepted(listener) as connection:
                await s.abort()
                assert await read_all(connection) == b""


async def test_a_far_side_that_hangs_up(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as listener:
        async with linx.spawn(["yes"], stdout=linx.ConnectUnix(tmp_path / "s")) as s:
            with accepted(listener):
                pass
            await s.proceed()
            assert await s.wait() == linx.Signaled(13)


async def test_a_far_side_that_does_not_read_delays_nothing(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as listener:
        async with linx.spawn(["yes"], stdout=linx.ConnectUnix(tmp_path / "s"), auto_proceed=True) as s:
            with accepted(listener):
                await linx.run(["true"])
                s.terminate()
                assert await s.wait() == linx.Signaled(15)


async def test_with_ones_own_streams_closed(tmp_path: Path) -> None:
    """The connection may get such a number, and must not be taken for the stream."""
    with listening(tmp_path / "s") as listener, replaced_fd(0, None), replaced_fd(2, None):
        spec = linx.ConnectUnix(tmp_path / "s")
        async with linx.spawn(["echo", "hi"], stdin=linx.DEVNULL, stdout=spec, stderr=linx.DEVNULL) as s:
            await s.proceed()
            with accepted(listener) as connection:
                assert await read_all(connection) == b"hi\n"


# ---- which socket ----------------------------------------------------------------------------------------------------


async def arrives(path: Any, bound: bytes, **options: Any) -> None:
    with listening(bound) as listener:
        await linx.run(["echo", "hi"], stdout=linx.ConnectUnix(path), **options)
        with accepted(listener) as connection:
            assert await read_all(connection) == b"hi\n"


@pytest.mark.parametrize("form", ["str", "bytes", "Path", "not UTF-8", "surrogates", "relative"])
async def test_paths(form: str, tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path)
    path: Any = {
        "str": f"{tmp_path}/s",
        "bytes": directory + b"/s",
        "Path": tmp_path / "s",
        "not UTF-8": directory + b"/\xff",
        "surrogates": f"{tmp_path}/\udcff",
        "relative": "s",
    }[form]
    with working_in(tmp_path):
        await arrives(path, os.fsencode(path))


@pytest.mark.parametrize("namespaces", [set(), {"user", "net"}, {"user", "mount", "pid", "net"}], ids=len)
async def test_abstract_names_are_the_hosts(namespaces: set[str]) -> None:
    name = b"\0linx-test-%d" % os.getpid()
    await arrives(name, name, namespaces=namespaces)
    await arrives(name.decode(), name, namespaces=namespaces)
    await arrives(name + b"\0with\0\xff", name + b"\0with\0\xff")


async def test_the_longest_names(tmp_path: Path) -> None:
    with working_in(tmp_path):
        await arrives(b"x" * 107, b"x" * 107)
        await arrives(b"\0" + b"x" * 107, b"\0" + b"x" * 107)


# ---- errors ----------------------------------------------------------------------------------------------------------


async def refused(path: Any, number: int, name: str = "stdout", **options: Any) -> linx.SetupError:
    """That entering is refused like this, and the path named."""
    options[name] = linx.ConnectUnix(path)
    with pytest.raises(linx.SetupError) as caught:
        async with linx.spawn(["true"], **options):
            pytest.fail("nothing is started")
    error = caught.value
    assert (error.errno, error.stage, error.filename) == (number, "connect_unix", os.fsdecode(path))
    return error


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("options", [{}, {"wait_ready": False}, {"auto_proceed": True}], ids=repr)
async def test_missing(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    error = await refused(tmp_path / "nothing", errno.ENOENT, name, **options)
    assert isinstance(error, FileNotFoundError)
    assert "bind" in str(error.hint)


async def test_nobody_listens(tmp_path: Path) -> None:
    with listening(tmp_path / "s"):
        pass
    error = await refused(tmp_path / "s", errno.ECONNREFUSED)
    assert "listens" in str(error.hint)
    (tmp_path / "file").touch()
    await refused(tmp_path / "file", errno.ECONNREFUSED)
    await refused(b"\0linx-test-nobody", errno.ECONNREFUSED)


async def test_too_long(tmp_path: Path) -> None:
    for path in (b"x" * 108, b"\0" + b"x" * 108, tmp_path / ("x" * 5000), "ä" * 54):
        error = await refused(path, errno.ENAMETOOLONG)
        assert "107" in str(error.hint)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_a_socket_that_is_not_for_streams(kind: socket.SocketKind, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(os.fspath(tmp_path / "s"))
        if kind is socket.SOCK_SEQPACKET:
            other.listen()
        error = await refused(tmp_path / "s", errno.EPROTOTYPE)
    assert "SOCK_STREAM" in str(error.hint)


async def test_the_other_errors_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    await refused(tmp_path / "file" / "s", errno.ENOTDIR)
    (tmp_path / "loop").symlink_to("loop")
    await refused(tmp_path / "loop", errno.ELOOP)


def test_a_socket_that_one_may_not_write_to() -> None:
    result = as_somebody("""
import socket, tempfile
directory = tempfile.mkdtemp()
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(directory + "/s")
    listener.listen()
    os.chmod(directory + "/s", 0)
    result = refusal_of(linx.run_sync, ["true"], stdout=linx.ConnectUnix(directory + "/s"))
    result["right"] = result["filename"] == directory + "/s"
os.unlink(directory + "/s")
os.rmdir(directory)
""")
    assert (result["errno"], result["stage"], result["right"]) == (errno.EACCES, "connect_unix", True)
    assert "PermissionError" in result["classes"]
    assert "write permission" in result["hint"]


async def test_the_second_one_is_refused(tmp_path: Path) -> None:
    """The first was connected: that connection ends, and nothing else is left of it."""
    with listening(tmp_path / "s") as listener:
        await refused(tmp_path / "missing", errno.ENOENT, stdin=linx.ConnectUnix(tmp_path / "s"))
        with accepted(listener) as connection:
            assert await read_all(connection) == b""


# ---- a listener that is behind ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def full(path: Path) -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A listener with as many waiting connections as it takes, and those."""
    with listening(path, 1) as listener, contextlib.ExitStack() as stack:
        waiting = []
        with contextlib.suppress(BlockingIOError):
            while True:
                one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                one.setblocking(False)
                one.connect(os.fspath(path))
                waiting.append(one)
        yield listener, waiting


async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    outcomes = []

    async def talk() -> None:
        done = await linx.run(["echo", "hi"], stdout=linx.ConnectUnix(tmp_path / "s"))
        outcomes.append(done.outcome)

    with full(tmp_path / "s") as (listener, waiting):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await trio.testing.wait_all_tasks_blocked()
            await linx.run(["true"])  # others are not delayed
            assert not outcomes
            for _ in waiting:
                with accepted(listener):
                    pass
            with trio.fail_after(DEADLINE):
                await trio.lowlevel.wait_readable(listener)
            with accepted(listener) as connection:
                assert await read_all(connection) == b"hi\n"
    assert outcomes == [linx.Exited(0)]


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("wait_ready", [False, True])
async def test_waiting_for_it_is_cancelled(name: str, wait_ready: bool, tmp_path: Path) -> None:
    """What was made for the other streams goes too: the listener sees none of it."""
    options: Any = dict.fromkeys(STREAMS, linx.PIPE) | {name: linx.ConnectUnix(tmp_path / "s")}
    with full(tmp_path / "s") as (listener, waiting):
        before = sorted(open_fds())
        with trio.move_on_after(0.05) as scope:
            async with linx.spawn(["true"], wait_ready=wait_ready, **options):
                pytest.fail("nothing is started")
        assert scope.cancelled_caught
        assert sorted(open_fds()) == before
        for _ in waiting:
            with accepted(listener):
                pass
        nobody_else(listener)


async def test_a_listener_that_goes_while_it_is_waited_for(tmp_path: Path) -> None:
    async def is_refused() -> None:
        await refused(tmp_path / "s", errno.ECONNREFUSED)

    with full(tmp_path / "s") as (listener, _waiting):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_refused)
            await trio.testing.wait_all_tasks_blocked()
            listener.close()


# ---- a lasting wrong is said at once ---------------------------------------------------------------------------------


class BadPath(os.PathLike[str]):
    def __fspath__(self) -> Any:
        return 5


@pytest.mark.parametrize(
    ("path", "error", "mentions"),
    [
        ("", ValueError, "path.*empty"),
        (b"", ValueError, "path.*empty"),
        ("/a\0b", ValueError, r"path.*NUL.*'/a\\x00b'"),
        (b"/a\0", ValueError, "path.*NUL"),
        ("/\ud800", ValueError, r"path.*\\ud800"),
        (None, TypeError, "path.*None"),
        (5, TypeError, "path.*5"),
        (("a", 1), TypeError, "path"),
        (bytearray(b"/s"), TypeError, "path"),
        (BadPath(), TypeError, "__fspath__"),
    ],
    ids=repr,
)
def test_a_wrong_path(path: Any, error: type[Exception], mentions: str) -> None:
    with pytest.raises(error, match=mentions):
        linx.ConnectUnix(path)


def test_it_is_a_value() -> None:
    assert linx.ConnectUnix(b"/s") == linx.ConnectUnix(Path("/s")) == linx.ConnectUnix("/s")
    assert repr(linx.ConnectUnix("/s")) == "ConnectUnix(path='/s')"
    assert len({linx.ConnectUnix("/s"), linx.ConnectUnix(b"/s"), linx.ConnectUnix("/t")}) == 2


async def test_it_is_for_one_stream() -> None:
    spec: Any = linx.ConnectUnix("/s")
    with pytest.raises(TypeError, match="stdio"):
        linx.spawn(["true"], stdio=spec)
    with pytest.raises(TypeError, match="pass_fds"):
        linx.spawn(["true"], pass_fds=[spec])
    no_value: Any = linx.ConnectUnix
    with pytest.raises(TypeError, match=r"stdin.*ConnectUnix\(path\)"):
        linx.spawn(["true"], stdin=no_value)
