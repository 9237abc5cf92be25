"""A workload's standard streams: what they are, what flows through them, and when they end."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from tests.agent.probes import cat, fds_of, flags_of, has_only, identity, opened, replaced_fd, settled

LARGE = 10 << 20
TALK = ["sh", "-c", "echo out; echo err >&2"]


async def read_all(stream: trio.lowlevel.FdStream | None) -> bytes:
    assert stream is not None
    return b"".join([bytes(chunk) async for chunk in stream])


def null() -> tuple[int, int]:
    status = os.stat(os.devnull)
    return status.st_dev, status.st_ino


# ---- INHERIT -----------------------------------------------------------------------------------------------------


async def test_inherit_is_the_default() -> None:
    async with linx.spawn(["sleep", "600"], auto_proceed=True) as s:
        await has_only(s, {number: identity(number) for number in range(3)})
        assert [s.stdin, s.stdout, s.stderr, s.stdio] == [None] * 4


async def test_inherit_is_what_the_streams_are_at_this_spawn(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with opened(tmp_path / name) as fd, replaced_fd(1, fd):
            await linx.run(["echo", name])
    with opened(tmp_path / "three") as fd, replaced_fd(2, fd):
        await linx.run(["sh", "-c", "echo three >&2"])
    (tmp_path / "in").write_text("from a file")
    with opened(tmp_path / "in") as fd, replaced_fd(0, fd):
        done = await linx.run(["cat"], stdin=linx.INHERIT, capture_stdout=True)
    assert done.stdout == b"from a file"
    for name in ("one", "two", "three"):
        assert (tmp_path / name).read_text() == name + "\n"


async def test_an_inherited_stream_stays_as_it_is(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as fd, replaced_fd(1, fd):
        async with linx.spawn(["sleep", "600"], auto_proceed=True):
            assert os.get_blocking(1)
            assert os.get_inheritable(1)
        assert os.get_blocking(1)


# ---- DEVNULL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [linx.DEVNULL, subprocess.DEVNULL])
async def test_devnull(value: Any) -> None:
    async with linx.spawn(["sleep", "600"], stdio=value, auto_proceed=True) as s:
        await has_only(s, dict.fromkeys(range(3), null()))
        assert [s.stdin, s.stdout, s.stderr, s.stdio] == [None] * 4
    async with linx.spawn(["sleep", "600"], stdout=value, auto_proceed=True) as s:
        await has_only(s, {0: identity(0), 1: null(), 2: identity(2)})


async def test_devnull_can_be_read_and_written() -> None:
    script = "cat && echo unseen && echo unseen >&2"
    async with linx.spawn(["sh", "-c", script], stdio=linx.DEVNULL, auto_proceed=True) as s:
        assert await s.wait() == linx.Exited(0)


# ---- PIPE --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [linx.PIPE, subprocess.PIPE])
async def test_pipes_for_all_three(value: Any) -> None:
    async with linx.spawn(["sh", "-c", "read x; echo out $x; echo err $x >&2"], stdio=value, auto_proceed=True) as s:
        assert s.stdin is not None
        await s.stdin.send_all(b"hello\n")
        assert await read_all(s.stdout) == b"out hello\n"
        assert await read_all(s.stderr) == b"err hello\n"
        assert await s.wait() == linx.Exited(0)


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
async def test_one_pipe(name: str) -> None:
    options: Any = {name: linx.PIPE}
    async with linx.spawn(["sleep", "600"], auto_proceed=True, **options) as s:
        ours = {stream: getattr(s, stream) for stream in ("stdin", "stdout", "stderr")}
        assert [stream for stream, value in ours.items() if value is not None] == [name]
        assert s.stdio is None
        number = ["stdin", "stdout", "stderr"].index(name)
        await has_only(s, {n: identity(ours[name].fileno() if n == number else n) for n in range(3)})
        assert not os.get_inheritable(ours[name].fileno())


async def test_the_workloads_end_blocks() -> None:
    async with cat(stderr=linx.PIPE) as s:
        for number in range(3):
            assert not flags_of(s.host_pid, number) & os.O_NONBLOCK


async def test_streams_are_there_while_parked() -> None:
    async with linx.spawn(["cat"], stdin=linx.PIPE, stdout=linx.PIPE) as s:
        assert s.stdin is not None
        await s.stdin.send_all(b"early")
        await s.stdin.aclose()
        await s.proceed()
        assert await read_all(s.stdout) == b"early"


async def test_stdio_stapled() -> None:
    async with cat() as s:
        assert isinstance(s.stdio, trio.StapledStream)
        await s.stdio.send_all(b"there and back")
        assert await s.stdio.receive_some() == b"there and back"
        await s.stdio.send_eof()
        assert await s.stdio.receive_some() == b""
        assert await s.wait() == linx.Exited(0)


@pytest.mark.parametrize("with_neighbour", [False, True])
async def test_closing_stdin_is_end_of_file(with_neighbour: bool) -> None:
    """Also when another session was started between: no copy of our end may have got there."""
    async with cat() as s:
        if with_neighbour:
            async with cat():
                assert s.stdin is not None
                await s.stdin.aclose()
                assert await read_all(s.stdout) == b""
                assert await s.wait() == linx.Exited(0)
        else:
            assert s.stdin is not None
            await s.stdin.aclose()
            assert await s.wait() == linx.Exited(0)


async def test_stdout_ends_when_all_writers_have_ended() -> None:
    script = "exec 3<&0; echo first; (read x <&3; echo second) & exit 0"
    async with linx.spawn(["sh", "-c", script], stdin=linx.PIPE, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdin is not None
        assert s.stdout is not None
        assert await s.wait() == linx.Exited(0)
        assert await s.stdout.receive_some() == b"first\n"
        await s.stdin.send_all(b"\n")
        assert await read_all(s.stdout) == b"second\n"


async def test_output_can_be_read_after_the_end() -> None:
    async with linx.spawn(["sh", "-c", "head -c 60000 /dev/zero"], stdout=linx.PIPE, auto_proceed=True) as s:
        await s.wait()
        assert await read_all(s.stdout) == bytes(60000)


async def test_streams_are_closed_with_the_block() -> None:
    async with linx.spawn(["cat"], stdio=linx.PIPE, auto_proceed=True) as s:
        ours = (s.stdin, s.stdout, s.stderr)
        async with trio.open_nursery() as nursery:

            async def reader() -> None:
                assert s.stdout is not None
                assert await s.stdout.receive_some() == b""

            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            s.kill()
    assert s.stdin is not None
    assert s.stdout is not None
    with pytest.raises(trio.ClosedResourceError):
        await s.stdin.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await s.stdout.receive_some()
    assert (s.stdin, s.stdout, s.stderr) == ours


async def test_a_workload_that_does_not_read() -> None:
    async with linx.spawn(["true"], stdin=linx.PIPE, auto_proceed=True) as s:
        await s.wait()
        assert s.stdin is not None
        with pytest.raises(trio.BrokenResourceError):
            await s.stdin.send_all(bytes(LARGE))


async def test_much_data_both_ways() -> None:
    data = os.urandom(LARGE)
    digest = hashlib.sha256()
    async with cat() as s:
        stdin, stdout = s.stdin, s.stdout
        assert stdin is not None
        assert stdout is not None

        async def send() -> None:
            async with stdin:
                await stdin.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for chunk in stdout:
                digest.update(chunk)
        assert await s.wait() == linx.Exited(0)
    assert digest.digest() == hashlib.sha256(data).digest()


# ---- STDOUT ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [linx.STDOUT, subprocess.STDOUT])
async def test_stderr_into_the_pipe_of_stdout(value: Any) -> None:
    async with linx.spawn(TALK, stdout=linx.PIPE, stderr=value, auto_proceed=True) as s:
        assert s.stderr is None
        assert await read_all(s.stdout) == b"out\nerr\n"


@pytest.mark.parametrize("stdout", ["inherit", "devnull", "file"])
async def test_stderr_is_stdout(stdout: str, tmp_path: Path) -> None:
    with opened(tmp_path / "out") as fd:
        value: Any = {"inherit": linx.INHERIT, "devnull": linx.DEVNULL, "file": fd}[stdout]
        async with linx.spawn(["sleep", "600"], stdout=value, stderr=linx.STDOUT, auto_proceed=True) as s:
            expected = {"inherit": identity(1), "devnull": null(), "file": identity(fd)}[stdout]
            await has_only(s, {0: identity(0), 1: expected, 2: expected})


async def test_both_write_behind_each_other(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as fd:
        await linx.run(TALK, stdout=fd, stderr=linx.STDOUT)
    assert (tmp_path / "out").read_text() == "out\nerr\n"


# ---- fds and objects ---------------------------------------------------------------------------------------------


async def test_fds_and_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("skipped|read")
    with (tmp_path / "in").open("rb", buffering=0) as source, (tmp_path / "out").open("wb") as out:
        source.seek(8)
        await linx.run(["sh", "-c", "cat; echo err >&2"], stdin=source, stdout=out, stderr=out.fileno())
        assert source.read() == b"", "the position is shared, as with every inherited file"
    assert (tmp_path / "out").read_text() == "readerr\n"


async def test_a_socket_and_a_trio_stream() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await linx.run(["echo", "over a socket"], stdout=theirs)
        assert ours.recv(100) == b"over a socket\n"
    read_end, write_end = os.pipe()
    async with trio.lowlevel.FdStream(read_end) as reader, trio.lowlevel.FdStream(write_end) as writer:
        await linx.run(["echo", "over a stream"], stdout=writer)
        assert await reader.receive_some() == b"over a stream\n"


async def test_ones_own_fd_stays_open(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as fd:
        await linx.run(["echo", "one"], stdout=fd)
        os.write(fd, b"two\n")
        assert not os.get_inheritable(fd)
    assert (tmp_path / "out").read_text() == "one\ntwo\n"


# ---- what is not open --------------------------------------------------------------------------------------------


def a_closed_fd() -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    return fd


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr", "pass_fds"])
async def test_a_closed_fd_is_named(name: str) -> None:
    number = a_closed_fd()
    value: Any = [number] if name == "pass_fds" else number
    options: Any = {name: value}
    with pytest.raises(linx.SetupError) as refused:
        async with linx.spawn(["true"], **options):
            pytest.fail("nothing is started")
    assert (refused.value.errno, refused.value.stage) == (errno.EBADF, "stdio")
    assert name in str(refused.value.filename)
    assert str(number) in str(refused.value.filename)


@pytest.mark.parametrize(("number", "name"), [(0, "stdin"), (1, "stdout"), (2, "stderr")])
async def test_inheriting_a_closed_stream(number: int, name: str) -> None:
    with replaced_fd(number, None):
        with pytest.raises(linx.SetupError) as refused:
            async with linx.spawn(["true"]):
                pytest.fail("nothing is started")
        assert (refused.value.errno, refused.value.stage) == (errno.EBADF, "stdio")
        assert name in str(refused.value.filename)
        assert "DEVNULL" in str(refused.value.hint)


async def test_with_ones_own_streams_closed() -> None:
    """A daemon may have closed them: then our pipes get their numbers, and must not be taken for the streams."""
    with replaced_fd(0, None), replaced_fd(2, None):
        async with cat(stderr=linx.DEVNULL) as s:
            await settled(s)
            assert fds_of(s.host_pid)[2] == null()
            assert sorted(fds_of(s.host_pid)) == [0, 1, 2]


async def test_a_pipe_is_not_taken_for_a_closed_stream() -> None:
    """The kernel gives the lowest free number: a new pipe's may be 0 or 2."""
    with replaced_fd(0, None), replaced_fd(2, None), pytest.raises(linx.SetupError) as refused:
        async with linx.spawn(["cat"], stdin=linx.PIPE):
            pytest.fail("there is no stderr to inherit")
    assert "stderr" in str(refused.value.filename)


WITHOUT_STREAMS = """
import os, trio
import linx_trio as linx
async def main():
    null = os.open(os.devnull, os.O_RDWR)
    os.close(0)
    os.close(2)
    await linx.run(["true"], stdin=null, stderr=null)  # starts the zygote
    for name in ("stdin", "stderr"):
        try:
            async with linx.spawn(["true"], **{"stdin": null, "stderr": null, name: linx.INHERIT}):
                print(name, "is", os.readlink("/proc/self/fd/" + str(["stdin", "", "stderr"].index(name))))
        except linx.SetupError as exc:
            print(exc.stage, exc.filename)
trio.run(main)
"""


def test_the_agents_socket_is_not_taken_for_a_closed_stream() -> None:
    """It lives as long as this process, and whoever has it commands the agent."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", WITHOUT_STREAMS], env=env, capture_output=True, check=True)
    assert done.stdout == b"stdio stdin (fd 0)\nstdio stderr (fd 2)\n"


class Liar:
    def __init__(self, says: object) -> None:
        self.says = says

    def fileno(self) -> Any:
        return self.says


@pytest.mark.parametrize("says", [-1, True, "1", None, 1.0])
async def test_objects_that_are_no_files(says: object) -> None:
    options: list[Any] = [{"stdin": Liar(says)}, {"stderr": Liar(says)}, {"pass_fds": [Liar(says)]}]
    for option in options:
        with pytest.raises((TypeError, ValueError), match=next(iter(option))):
            async with linx.spawn(["true"], **option):
                pytest.fail("nothing is started")


async def test_a_closed_file_object(tmp_path: Path) -> None:
    file = (tmp_path / "x").open("w")
    file.close()
    with pytest.raises(ValueError, match="closed"):
        async with linx.spawn(["true"], stdout=file):
            pytest.fail("nothing is started")


async def test_an_object_that_is_a_passed_fd_too(tmp_path: Path) -> None:
    """An object and a number, and the same fd: that is found out only when the object is asked."""
    with (tmp_path / "x").open("w") as file, pytest.raises(ValueError, match="pass_fds"):
        async with linx.spawn(["true"], pass_fds=[file, file.fileno()]):
            pytest.fail("nothing is started")


async def test_an_object_that_is_a_standard_stream() -> None:
    """As a number it is refused (use ``stdin=``); as an object it must not get past that."""
    with pytest.raises(ValueError, match="pass_fds"):
        async with linx.spawn(["true"], pass_fds=[Liar(1)]):
            pytest.fail("nothing is started")
