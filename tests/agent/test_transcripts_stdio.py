"""The project's first examples of standard streams, window sizes and handing the owner over: one test each."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import linx_trio as linx
from linx_trio.tty import WindowSize
from tests.agent.terminals import read_to_end, read_until

# ---- Stdio plumbing --------------------------------------------------------------------------------------------------


async def test_devnull_silences_the_workload(capfd: pytest.CaptureFixture[str]) -> None:
    async with linx.spawn(["/bin/echo", "this won't be seen"], stdio=linx.DEVNULL) as s:
        await s.proceed()
        assert await s.wait() == linx.Exited(0)
    assert capfd.readouterr() == ("", "")


async def test_connect_unix_pipes_a_single_fd_to_a_listener(tmp_path: Path) -> None:
    path = tmp_path / "linx-demo.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen()
        async with linx.spawn(["/bin/echo", "hello from a workload"], stdout=linx.ConnectUnix(path)) as s:
            assert s.state == "ready"
            await s.proceed()
            with trio.fail_after(20):
                connection, _address = await listener.accept()
                with connection:
                    assert await connection.recv(100) == b"hello from a workload\n"


async def test_a_pty_shared_across_all_three_fds() -> None:
    async with linx.spawn(["/bin/echo", "hi"], stdio=linx.PTY) as s:
        await s.proceed()
        assert await s.pty.receive_some() == b"hi\r\n"  # LF to CRLF
        assert await s.wait() == linx.Exited(0)


async def test_writes_go_through_the_pty() -> None:
    async with linx.spawn(["/bin/cat"], stdio=linx.PTY) as s:
        await s.proceed()
        await s.pty.send_all(b"hello\n")
        # The terminal echoes what is typed, then cat writes it.
        assert await read_until(s.pty, b"hello\r\nhello\r\n") == b"hello\r\nhello\r\n"
        s.signal(9)
        assert await s.wait() == linx.Signaled(9)


# ---- Setting the PTY's window size -----------------------------------------------------------------------------------


async def test_the_size_is_set_before_proceed() -> None:
    async with linx.spawn(["/bin/sh", "-c", "stty size"], stdio=linx.PTY) as s:
        s.pty.set_winsize((24, 80, 0, 0))  # rows, cols, xpixel, ypixel
        await s.proceed()
        assert await read_to_end(s.pty) == b"24 80\r\n"


async def test_a_struct_or_a_map_also_works() -> None:
    async with linx.spawn(["/bin/sh", "-c", "stty size; read x; stty size"], stdio=linx.PTY) as s:
        s.pty.set_winsize({"rows": 42, "cols": 132, "xpixel": 0, "ypixel": 0})
        await s.proceed()
        assert await read_until(s.pty, b"42 132\r\n") == b"42 132\r\n"
        s.pty.set_winsize(WindowSize(rows=43, cols=133, xpixel=0, ypixel=0))
        await s.pty.send_all(b"\n")
        assert await read_to_end(s.pty) == b"\r\n43 133\r\n"


async def test_a_change_while_it_runs_reaches_it_by_sigwinch() -> None:
    script = "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 600 & wait; done"
    async with linx.spawn(["/bin/sh", "-c", script], stdio=linx.PTY) as s:
        await s.proceed()
        await read_until(s.pty, b"up\r\n")
        s.pty.set_winsize((42, 132, 0, 0))
        assert await read_until(s.pty, b"42 132\r\n") == b"42 132\r\n"
        assert await s.wait() == linx.Exited(0)


# ---- Handing off the owner -------------------------------------------------------------------------------------------


async def test_the_owner_is_handed_over_and_back() -> None:
    supervisor, events = trio.open_memory_channel[linx.Event](10)
    async with supervisor, linx.spawn(["/bin/cat"], stdio=linx.PTY, owner=supervisor) as s:
        await s.proceed()
        mine, borrowed = trio.open_memory_channel[linx.Event](10)
        async with mine:
            s.set_owner(mine)
            try:
                await s.pty.send_all(b"interactively\n")
                await read_until(s.pty, b"interactively\r\ninteractively\r\n")
            finally:
                s.set_owner(supervisor)
        assert [event async for event in borrowed] == []
        s.signal(9)
        await s.wait()
    assert [event async for event in events] == [linx.Ready(s.host_pid), linx.Running(), linx.Signaled(9)]


async def test_what_ended_on_loan_is_found_out_from_info() -> None:
    """The supervisor's channel never says so; level-triggered, the session does."""
    supervisor, events = trio.open_memory_channel[linx.Event](10)
    async with supervisor, linx.spawn(["/bin/sh", "-c", "read x; exit 7"], stdio=linx.PTY, owner=supervisor) as s:
        await s.proceed()
        mine, borrowed = trio.open_memory_channel[linx.Event](10)
        async with mine:
            s.set_owner(mine)
            try:
                await s.pty.send_all(b"\n")
                await s.wait()
            finally:
                s.set_owner(supervisor)
        assert [event async for event in borrowed] == [linx.Exited(7)]
        assert (s.info().state, s.info().outcome) == ("exited", linx.Exited(7))
        assert await s.wait() == linx.Exited(7)
    assert [event async for event in events] == [linx.Ready(s.host_pid), linx.Running()]
    assert [event async for event in s.events()] == [linx.Ready(s.host_pid), linx.Running(), linx.Exited(7)]
