"""Standard streams of what has entered a container: all that `spawn` has, and the host's side of them outside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from tests.agent.containers import container, is_untouched
from tests.agent.probes import has_only, identity, link, opened
from tests.agent.terminals import INTR, PROMPT, SUSP, foreground_job, read_to_end, read_until, slave_of
from tests.support import eventually_async, name_of, stat_of

SLEEP = ["sleep", "1000"]


@pytest.fixture
async def target() -> AsyncIterator[linx.Session]:
    async with container() as session:
        await eventually_async(lambda: name_of(session.host_pid) == "sleep", "its init has settled")
        yield session
        assert is_untouched(session)


@contextlib.asynccontextmanager
async def entered(target: linx.Session, argv: list[str] | str, **options: Any) -> AsyncIterator[linx.Session]:
    """A running one; a string is for the shell."""
    arguments = ["sh", "-c", argv] if isinstance(argv, str) else argv
    async with linx.enter(target, arguments, auto_proceed=True, **options) as session:
        yield session


async def all_of(stream: Any) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


# ---- pipes, files, sockets -------------------------------------------------------------------------------------------


async def test_three_pipes(target: linx.Session) -> None:
    script = "while read -r line; do echo out $line; echo err $line >&2; done"
    async with entered(target, script, stdio=linx.PIPE) as s:
        assert s.stdin is not None
        await s.stdin.send_all(b"1\n2\n")
        await s.stdin.aclose()
        assert await all_of(s.stdout) == b"out 1\nout 2\n"
        assert await all_of(s.stderr) == b"err 1\nerr 2\n"
        assert await s.wait() == linx.Exited(0)


async def test_a_pipe_is_at_its_end_when_the_workload_is(target: linx.Session) -> None:
    """Nobody else holds it: no reaper, no other session in there."""
    async with entered(target, SLEEP, stdin=linx.PIPE) as neighbour, entered(target, "echo x", stdout=linx.PIPE) as s:
        with trio.fail_after(30):
            assert await all_of(s.stdout) == b"x\n"
        assert neighbour.state == "running"


async def test_much_of_it(target: linx.Session) -> None:
    async with entered(target, ["head", "-c", "20000000", "/dev/zero"], stdout=linx.PIPE) as s:
        assert s.stdout is not None
        size = 0
        async for chunk in s.stdout:
            size += len(chunk)
        assert size == 20_000_000


async def test_silence(target: linx.Session, capfd: pytest.CaptureFixture[str]) -> None:
    async with entered(target, "echo out; echo err >&2; read x; test -z $x", stdio=linx.DEVNULL) as s:
        assert await s.wait() == linx.Exited(0)
    assert capfd.readouterr() == ("", "")


async def test_inherited(target: linx.Session, capfd: pytest.CaptureFixture[str]) -> None:
    async with entered(target, "echo out; echo err >&2", stdin=linx.DEVNULL) as s:
        await s.wait()
    assert capfd.readouterr() == ("out\n", "err\n")


async def test_stderr_is_stdout(target: linx.Session) -> None:
    async with entered(target, "echo out; echo err >&2", stdout=linx.PIPE, stderr=linx.STDOUT) as s:
        assert await all_of(s.stdout) == b"out\nerr\n"


async def test_files_of_the_host(target: linx.Session, tmp_path: Path) -> None:
    """They need not be reachable in there: an fd is an fd."""
    (tmp_path / "in").write_bytes(b"text\n")
    with opened(tmp_path / "in", os.O_RDONLY) as source, opened(tmp_path / "out") as sink:
        script = f"mount -t tmpfs none {tmp_path}; test ! -e {tmp_path}/in && cat"
        async with entered(target, script, stdin=source, stdout=sink) as s:
            assert await s.wait() == linx.Exited(0)
    assert (tmp_path / "out").read_bytes() == b"text\n"


async def test_exactly_the_fds_asked_for(target: linx.Session, tmp_path: Path) -> None:
    with opened(tmp_path / "file") as fd, opened(os.devnull) as null:
        async with entered(target, SLEEP, stdio=linx.DEVNULL, pass_fds=[fd]) as s:
            await has_only(s, {0: identity(null), 1: identity(null), 2: identity(null), fd: identity(fd)})


@pytest.mark.parametrize("abstract", [False, True])
async def test_connect_unix_is_the_hosts(target: linx.Session, abstract: bool, tmp_path: Path) -> None:
    """The listener is outside: in other mounts, and in another network namespace, which abstract names belong to."""
    path = b"\0linx-test-%d" % os.getpid() if abstract else os.fsencode(tmp_path / "socket")
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen()
        async with linx.enter(target, ["sh", "-c", "echo inside"], stdout=linx.ConnectUnix(path)) as s:
            with trio.fail_after(30):
                connection, _ = await listener.accept()
                with connection:
                    await s.proceed()
                    assert await connection.recv(100) == b"inside\n"
                    assert await connection.recv(100) == b"", "nobody in there holds it open"


async def test_a_missing_socket_is_known_before_anybody_is_entered(target: linx.Session, tmp_path: Path) -> None:
    with pytest.raises(linx.SetupError) as raised:
        async with linx.enter(target, ["true"], stdout=linx.ConnectUnix(tmp_path / "missing")):
            pytest.fail("there is nobody")
    assert (raised.value.errno, raised.value.stage) == (2, "connect_unix")


# ---- terminals -------------------------------------------------------------------------------------------------------


async def test_a_terminal(target: linx.Session) -> None:
    """Its mounts are a copy of ours, so it has the same names in there."""
    script = 'test -t 0 && test -t 1 && test -t 2 && tty && stty size && echo one >/dev/tty && echo two >"$(tty)"'
    async with entered(target, script, stdio=linx.Pty(30, 100)) as s:
        assert s.info().pty
        assert await read_to_end(s.pty) == f"{slave_of(s)}\r\n30 100\r\none\r\ntwo\r\n".encode()
        assert await s.wait() == linx.Exited(0)


async def test_it_is_the_controlling_terminal_from_the_checkpoint_on(target: linx.Session) -> None:
    async with linx.enter(target, SLEEP, stdio=linx.PTY) as s:
        for _ in range(2):
            fields = stat_of(s.host_pid)
            assert fields is not None
            _state, _parent, group, session, terminal, foreground = fields[:6]
            assert int(group) == int(session) == int(foreground) == s.host_pid
            assert int(terminal) == os.stat(slave_of(s)).st_rdev
            await s.proceed()


@pytest.mark.parametrize("kinds", [None, {"user", "net"}, {"user", "pid"}], ids=str)
async def test_job_control(target: linx.Session, kinds: set[str] | None) -> None:
    """^C and ^Z go to the foreground process group, and the shell has its terminal back."""
    env = {**os.environ, "PS1": PROMPT.decode()}
    env.pop("ENV", None)
    async with entered(target, ["sh"], stdio=linx.PTY, env=env, namespaces=kinds) as s:
        await read_until(s.pty, PROMPT)
        for key, status in ((INTR, 130), (SUSP, 148)):
            await s.pty.send_all(b"sleep 1000\n")
            await foreground_job(s.host_pid, "sleep")
            await s.pty.send_all(key)
            await read_until(s.pty, PROMPT)
            await s.pty.send_all(b"echo status $?\n")
            await read_until(s.pty, f"status {status}\r\n".encode())
            await read_until(s.pty, PROMPT)
        await s.pty.send_all(b"exit 5\n")
        with contextlib.suppress(AssertionError):  # a shell may say first that there are stopped jobs
            await read_until(s.pty, PROMPT)
            await s.pty.send_all(b"exit 5\n")
        assert await s.wait() == linx.Exited(5)


async def test_its_size_changes(target: linx.Session) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 600 & wait; done"
    async with entered(target, script, stdio=linx.PTY) as s:
        await read_until(s.pty, b"up\r\n")
        s.pty.set_winsize(42, 132)
        assert await read_until(s.pty, b"42 132\r\n") == b"42 132\r\n"
        assert await s.wait() == linx.Exited(0)


async def test_where_devpts_is_the_containers_own(target: linx.Session) -> None:
    """The terminal is the host's and has no name there; but /dev/tty it is all the same."""
    mount = "mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts"
    async with entered(target, mount, namespaces={"user", "mount"}) as s:
        assert await s.wait() == linx.Exited(0)
    async with entered(target, "test -t 0 && echo one >/dev/tty && ls /dev/pts", stdio=linx.PTY) as s:
        assert await read_to_end(s.pty) == b"one\r\nptmx\r\n"


async def test_hangup(target: linx.Session) -> None:
    """When the block is left the terminal goes, and with it nothing that would be missed."""
    async with entered(target, "trap '' HUP TERM; sleep 1000", stdio=linx.PTY) as s:
        await eventually_async(lambda: name_of(s.host_pid) == "sh", "it has executed")
    assert s.outcome == linx.Signaled(9)
    with pytest.raises(FileNotFoundError):
        link(s.host_pid, "exe")
