"""`linx.tty.attach` between a workload's terminal and one that the test made. In a real one: test_attach_tmux.py."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio.tty import DETACHED, DetachKeys
from tests.agent.people import ROOT, Person, attached, person
from tests.agent.terminals import make_raw, on_terminal, read_to_end, read_until
from tests.support import DEADLINE, eventually_async

__all__ = ["person"]  # a fixture

DETACH = b"\x10\x11"
TALKER = 'stty -echo; echo up; while read line; do echo "got $line"; done; exit 3'
SIZES = "trap 'stty size' WINCH; stty size; while :; do sleep 0.01; done"


async def leave(person: Person) -> None:
    await person.types(DETACH)


# ---- there and back ----------------------------------------------------------------------------------------------


async def test_both_directions_and_the_outcome(person: Person) -> None:
    async with on_terminal(TALKER) as s, attached(s, person) as attaching:
        await person.sees(b"up\r\n")
        await person.types(b"one\r")
        assert await person.sees(b"\n") == b"got one\r\n"  # neither terminal has echoed it
        await person.types(b"\x04")
    assert attaching.result == linx.Exited(3)


async def test_interrupts_go_to_the_workload(person: Person) -> None:
    """The one and only process in the foreground of its terminal; this one is not interrupted."""
    script = "trap 'echo interrupted; exit 7' INT; echo up; while :; do sleep 0.01; done"
    async with on_terminal(script) as s, attached(s, person) as attaching:
        await person.sees(b"up\r\n")
        await person.types(b"\x03")
        await person.sees(b"interrupted\r\n")
    assert attaching.result == linx.Exited(7)


async def test_every_byte_gets_through(person: Person) -> None:
    """In both directions, in raw mode on both sides; without detach keys no combination of them is special."""
    data = bytes(range(256)) * 64
    async with on_terminal(["cat"]) as s:
        make_raw(s.pty)
        async with attached(s, person, detach_keys=b"") as attaching, trio.open_nursery() as nursery:
            nursery.start_soon(person.types, data)
            seen = b""
            while len(seen) < len(data):
                seen += await person.pty.receive_some()
            assert seen == data
            attaching.scope.cancel()


async def test_an_outcome_comes_after_all_output(person: Person) -> None:
    """More than all the buffers hold, to a terminal that is read slowly, and the last line without a newline."""
    async with on_terminal("seq 1 60000; printf end") as s, attached(s, person) as attaching:
        seen = b""
        while not seen.endswith(b"end"):
            seen += await person.pty.receive_some(1000)
    assert attaching.result == linx.Exited(0)
    assert seen == b"".join(b"%d\r\n" % n for n in range(1, 60001)) + b"end"


@pytest.mark.parametrize("stray", ["sleep 600", "while :; do yes > $T 2> /dev/null; done"], ids=["quiet", "flood"])
async def test_strays_do_not_delay_the_outcome(person: Person, stray: str) -> None:
    """They ignore SIGHUP, hold the terminal, and one floods it, opening it again and again."""
    script = f"trap '' HUP; T=$(tty); {stray} & echo the last word; exit 4"
    async with on_terminal(script) as s, trio.open_nursery() as nursery:
        seen = bytearray()

        async def look() -> None:
            while True:  # more slowly than it floods
                seen.extend(await person.pty.receive_some(500))
                await trio.sleep(0.001)

        nursery.start_soon(look)
        async with attached(s, person) as attaching:
            pass
        nursery.cancel_scope.cancel()
    assert attaching.result == linx.Exited(4)
    assert b"the last word\r\n" in seen + person.sees_now()


async def test_after_the_end(person: Person) -> None:
    """What nobody has received yet is shown; and again there is nothing."""
    async with on_terminal("echo late; exit 5") as s:
        await s.wait()
        for shown in (b"late\r\n", b""):
            async with attached(s, person) as attaching:
                pass
            assert attaching.result == linx.Exited(5)
            assert (person.pty.receive_now(100) or b"") == shown
        assert person.modes() == person.first_modes


async def test_a_parked_session(person: Person) -> None:
    """It has the size from its first instruction on, and what is typed meanwhile waits for it."""
    async with on_terminal("stty size; read line; exit 6", auto_proceed=False) as s, attached(s, person) as attaching:
        await person.types(b"early\r")
        await s.proceed()
        await person.sees(b"33 99\r\n")
    assert attaching.result == linx.Exited(6)


async def test_a_parked_session_that_is_aborted(person: Person) -> None:
    async with on_terminal(["true"], auto_proceed=False) as s, attached(s, person) as attaching:
        await s.abort()
    assert attaching.result == linx.Aborted()


async def test_a_session_that_fails(person: Person) -> None:
    async with on_terminal(["/nowhere"], auto_proceed=False) as s:
        async with attached(s, person) as attaching:
            with pytest.raises(linx.SetupError):
                await s.proceed()
        assert isinstance(attaching.error, linx.SetupError)
        assert (attaching.error.errno, attaching.error.stage) == (errno.ENOENT, "execve")
        assert person.modes() == person.first_modes


async def test_a_session_whose_block_is_left(person: Person) -> None:
    manager = on_terminal(["cat"])
    session = await manager.__aenter__()
    async with attached(session, person) as attaching:
        await manager.__aexit__(None, None, None)
    assert attaching.error is None
    assert attaching.result == linx.Signaled(signal.SIGKILL)
    assert person.modes() == person.first_modes


class Steps(trio.abc.Instrument):
    taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1


async def test_a_workload_that_closes_its_terminal_and_opens_it_again(person: Person) -> None:
    """Meanwhile nobody reads what is typed; the detach keys work."""
    script = "exec </dev/null >/dev/null 2>&1; read x </dev/tty; echo back >/dev/tty; sleep 600"
    with trio.fail_after(DEADLINE):
        async with on_terminal(script) as s, attached(s, person) as attaching:
            await eventually_async(lambda: s.pty.receive_now(1) is None, "the terminal is open again")
            await person.types(b"\r")
            await person.sees(b"back\r\n")
            await leave(person)
    assert attaching.result is DETACHED
    async with on_terminal("exec </dev/null >/dev/null 2>&1; exec setsid -w sleep 600") as s:
        while await s.pty.receive_some():
            pass
        async with attached(s, person) as attaching:
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(0.3)
            trio.lowlevel.remove_instrument(steps)
            assert steps.taken < 100  # it does not ask all the time whether somebody is there again
            await person.types(b"nobody" + DETACH)
    assert attaching.result is DETACHED


# ---- the detach keys ---------------------------------------------------------------------------------------------


@given(
    keys=st.binary(max_size=4).map(lambda keys: bytes(byte % 3 for byte in keys)),
    pieces=st.lists(st.lists(st.integers(0, 3), max_size=6).map(bytes), max_size=12),
)
def test_detach_keys_are_found_however_they_arrive(keys: bytes, pieces: list[bytes]) -> None:
    """Against the naive reading of all of it at once."""
    matcher = DetachKeys(keys)
    sent = b""
    for piece in pieces:
        if not matcher.found:
            sent += matcher.feed(piece)
    typed = b"".join(pieces)
    position = typed.find(keys) if keys else -1
    assert matcher.found is (position >= 0)
    if matcher.found:
        assert sent == typed[:position]
    else:
        assert sent + matcher.held == typed
        assert keys.startswith(matcher.held)
        assert len(matcher.held) < max(len(keys), 1)


@pytest.mark.parametrize("pieces", [[DETACH], [b"\x10", b"\x11"], [b"line\r" + DETACH], [b"line\r\x10", b"\x11after"]])
async def test_detaching(person: Person, pieces: list[bytes]) -> None:
    """In one piece or in several. What was typed before reaches the workload, which goes on."""
    async with on_terminal(TALKER) as s:
        async with attached(s, person) as attaching:
            await person.sees(b"up\r\n")
            for piece in pieces:
                await trio.testing.wait_all_tasks_blocked(0.01)
                await person.types(piece)
        assert attaching.result is DETACHED
        assert repr(attaching.result) == "linx.tty.DETACHED"
        assert s.state == "running"
        await s.pty.send_all(b"more\n")
        answers = await read_until(s.pty, b"got more\r\n")
        before = b"got line\r\n" if b"line" in pieces[0] else b""  # shown already or not yet
        assert person.sees_now() + answers == before + b"got more\r\n"


async def test_what_only_begins_like_the_detach_keys_is_sent(person: Person) -> None:
    async with on_terminal(["cat"]) as s:
        make_raw(s.pty)
        async with attached(s, person, detach_keys=b"aab") as attaching:
            await person.types(b"xa")
            assert await person.sees(b"x") == b"x"
            for piece in (b"a", b"a", b"c"):
                await person.types(piece)
            await person.sees(b"aaac")
            await person.types(b"aab")
        assert attaching.result is DETACHED


async def test_detaching_from_a_workload_that_does_not_read(person: Person) -> None:
    """Stopped, with more typed than its terminal holds."""
    async with on_terminal(["sleep", "600"]) as s:
        make_raw(s.pty)
        s.signal(signal.SIGSTOP)
        with trio.fail_after(DEADLINE):
            async with attached(s, person) as attaching:
                await person.types(bytes(300_000))
                await leave(person)
        assert attaching.result is DETACHED


async def test_a_terminal_that_is_hung_up(person: Person) -> None:
    """Detached, and what might have been the beginning of the keys still arrives."""
    async with on_terminal(["cat"]) as s:
        make_raw(s.pty)
        async with attached(s, person) as attaching:
            await person.types(b"hello\x10")
            await person.sees(b"hello")
            person.hangs_up()
        assert attaching.error is None
        assert attaching.result is DETACHED
        await read_until(s.pty, b"\x10")


async def test_output_to_a_terminal_that_is_hung_up_is_given_back(person: Person) -> None:
    async with on_terminal("read go; echo hello; sleep 600") as s:
        async with attached(s, person) as attaching:
            person.hangs_up()
            await s.pty.send_all(b"\n")
        assert attaching.result is DETACHED
        await read_until(s.pty, b"hello\r\n")


# ---- what is borrowed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["detached", "cancelled"])
async def test_nothing_is_lost_when_the_callers_terminal_is_stuck(person: Person, way: str) -> None:
    """Nobody looks at it: it is full. Leaving does not wait for that, and the next reader has the rest."""
    async with on_terminal("seq 1 20000; echo end; sleep 600") as s:
        async with attached(s, person) as attaching:
            await eventually_async(person.is_full, "the terminal is full")
            if way == "detached":
                await leave(person)
            else:
                attaching.scope.cancel()
        assert attaching.error is None
        seen = person.sees_now()
        while not seen.endswith(b"end\r\n"):
            seen += await s.pty.receive_some()
    assert seen == b"".join(b"%d\r\n" % n for n in range(1, 20001)) + b"end\r\n"


async def test_cancelled_while_the_last_output_is_shown(person: Person) -> None:
    """The outcome is known already, and the terminal is full."""
    async with on_terminal("seq 1 2000") as s:
        full = person.looks_away()
        await s.wait()
        async with attached(s, person) as attaching:
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert not attaching.done.is_set()
            attaching.scope.cancel()
        assert attaching.scope.cancelled_caught
        assert person.modes() == person.first_modes
        seen = person.sees_now() + await read_to_end(s.pty)
        assert seen == full + b"".join(b"%d\r\n" % n for n in range(1, 2001))
        assert await s.wait() == linx.Exited(0)


async def test_one_reader_at_a_time(person: Person) -> None:
    other = Person()
    async with on_terminal(["cat"]) as s, trio.open_nursery() as nursery:
        async with attached(s, person):
            with pytest.raises(trio.BusyResourceError, match="receiving"):
                await s.pty.receive_some()
            with pytest.raises(trio.BusyResourceError, match="receiving"):
                await linx.tty.attach(s, terminal=other.terminal)
            assert not other.has_raw_modes()
            await person.types(b"still there\r")
            await person.sees(b"still there\r\nstill there\r\n")
            await leave(person)
        nursery.start_soon(s.pty.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="receiving"):
            await linx.tty.attach(s, terminal=person.terminal)
        await s.pty.send_all(b"x\n")
    other.close()


async def test_one_session_at_a_time_on_a_terminal(person: Person) -> None:
    """The second one would take raw modes for what it has to restore."""
    async with on_terminal(["cat"]) as s, on_terminal(["cat"]) as other:
        async with attached(s, person):
            with pytest.raises(trio.BusyResourceError, match="attached"):
                await linx.tty.attach(other, terminal=person.terminal)
            assert person.has_raw_modes()
            await leave(person)
        assert person.modes() == person.first_modes
        async with attached(other, person):
            await leave(person)


async def test_others_may_type_too(person: Person) -> None:
    """Another task sends to the same terminal, again and again."""
    async with on_terminal("stty -echo; cat") as s, trio.open_nursery() as nursery:

        async def type_too() -> None:
            while True:
                with contextlib.suppress(trio.BusyResourceError):
                    await s.pty.send_all(b"theirs\n")
                await trio.sleep(0.005)

        nursery.start_soon(type_too)
        async with attached(s, person) as attaching:
            for _ in range(50):
                await person.types(b"ours\r")
                await person.sees(b"ours\r\n")
            await leave(person)
        assert attaching.result is DETACHED
        nursery.cancel_scope.cancel()


async def test_a_service_lends_its_session(person: Person) -> None:
    """A task keeps the log of a long-lived workload. For an operator it stops, and afterwards it goes on; its events
    go to the operator meanwhile.
    """
    service, service_events = trio.open_memory_channel[linx.Event](10)
    operator, operator_events = trio.open_memory_channel[linx.Event](10)
    log = bytearray()

    async def keep_log(session: linx.Session, scope: trio.CancelScope) -> None:
        with scope:
            while chunk := await session.pty.receive_some():
                log.extend(chunk)

    async with on_terminal("stty -echo; echo up; cat", owner=service) as s, trio.open_nursery() as nursery:
        await read_until(s.pty, b"up\r\n")
        logging = trio.CancelScope()
        nursery.start_soon(keep_log, s, logging)
        await s.pty.send_all(b"before\n")
        await eventually_async(lambda: b"before\r\n" in log, "it is in the log")
        logging.cancel()
        await trio.testing.wait_all_tasks_blocked()

        s.set_owner(operator)
        try:
            async with attached(s, person) as attaching:
                await person.types(b"by hand\r")
                await person.sees(b"by hand\r\n")
                await leave(person)
        finally:
            s.set_owner(service)

        assert attaching.result is DETACHED
        nursery.start_soon(keep_log, s, trio.CancelScope())
        await s.pty.send_all(b"after\n")
        await eventually_async(lambda: b"after\r\n" in log, "it is in the log")
        assert log == b"before\r\nafter\r\n"

        s.set_owner(operator)
        s.kill()
        assert await operator_events.receive() == linx.Signaled(signal.SIGKILL)
        s.set_owner(service)
        assert s.info().outcome == linx.Signaled(signal.SIGKILL)  # the service has not got the event, and need not
        assert [service_events.receive_nowait() for _ in range(2)] == [linx.Ready(s.host_pid), linx.Running()]
        with pytest.raises(trio.WouldBlock):
            service_events.receive_nowait()


# ---- the caller's terminal ---------------------------------------------------------------------------------------


async def test_the_modes(person: Person) -> None:
    """Raw from the first moment on."""
    async with on_terminal(["cat"]) as s:
        async with attached(s, person) as attaching:
            assert person.has_raw_modes()
            iflag, oflag, cflag, lflag, _, _, cc = person.modes()
            assert not iflag & (termios.IXON | termios.ICRNL)
            assert not oflag & termios.OPOST
            assert cflag & termios.CSIZE == termios.CS8
            assert not lflag & termios.IEXTEN
            assert (cc[termios.VMIN], cc[termios.VTIME]) == (1, 0)
            attaching.scope.cancel()
        assert person.modes() == person.first_modes


async def test_unusual_modes_are_restored(person: Person) -> None:
    modes = person.modes()
    modes[3] &= ~termios.ECHO
    modes[6][termios.VINTR] = b"\x14"
    termios.tcsetattr(person.terminal, termios.TCSANOW, modes)
    modes = person.modes()
    async with on_terminal(["true"]) as s, attached(s, person):
        pass
    assert person.modes() == modes


class Oops(Exception):
    pass


async def test_the_modes_are_restored_before_an_exception_arrives(person: Person) -> None:
    """One of another task, that ends the nursery; and one of its own: its side of the workload's terminal is closed."""
    async with on_terminal("trap '' HUP; echo up; sleep 600") as s:
        await read_until(s.pty, b"up\r\n")
        with pytest.RaisesGroup(Oops):
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda task_status: linx.tty.attach(s, terminal=person.terminal, task_status=task_status)
                )
                assert person.has_raw_modes()
                raise Oops
        assert person.modes() == person.first_modes
        async with attached(s, person) as attaching:
            assert person.has_raw_modes()
            await s.pty.aclose()
        assert type(attaching.error) is trio.ClosedResourceError
        assert person.modes() == person.first_modes


async def test_cancelled_bare(person: Person) -> None:
    """Not in a group either: some write ``except trio.Cancelled``."""
    seen: list[type[BaseException]] = []
    async with on_terminal(["sleep", "600"]) as s:
        for seconds in (0.05, 0):
            with trio.move_on_after(seconds):
                try:
                    await linx.tty.attach(s, terminal=person.terminal)
                except BaseException as exc:
                    seen.append(type(exc))
                    assert person.modes() == person.first_modes
                    raise
    assert seen == [trio.Cancelled] * 2


@pytest.mark.parametrize("end", ["terminal", "master"])
async def test_the_callers_open_file_stays_as_it_is(person: Person, end: str) -> None:
    """It does not become non-blocking for all who share it; if it cannot be opened anew, then afterwards at least."""
    fd = person.terminal if end == "terminal" else os.dup(person.pty.fileno())
    os.set_blocking(fd, True)
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    async with on_terminal(["cat"]) as s, attached(s, person, terminal=fd) as attaching:
        assert os.get_blocking(fd) is (end == "terminal")
        assert person.has_raw_modes()
        attaching.scope.cancel()
    assert fcntl.fcntl(fd, fcntl.F_GETFL) == before
    assert person.modes() == person.first_modes
    if end == "master":
        os.close(fd)


async def test_a_master_is_a_terminal_too(person: Person) -> None:
    """Then the workload's output is typed at it, and what programs write to it goes to the workload."""
    async with on_terminal(TALKER) as s:
        await read_until(s.pty, b"up\r\n")
        async with attached(s, person, terminal=person.pty) as attaching:
            os.write(person.terminal, b"line\r")
            answer = await trio.to_thread.run_sync(os.read, person.terminal, 100)
            assert b"got line\r\n".startswith(answer)
            os.write(person.terminal, DETACH)
    assert attaching.result is DETACHED


async def test_objects_with_fileno(person: Person) -> None:
    async with on_terminal(["sleep", "600"]) as s:
        with os.fdopen(os.dup(person.terminal), "rb", buffering=0) as file:
            async with attached(s, person, terminal=file) as attaching:
                await leave(person)
            assert attaching.result is DETACHED
            assert not file.closed


async def test_the_size_follows(person: Person) -> None:
    """From any size to any other. A terminal that does not know its size changes nothing."""
    async with on_terminal(SIZES, stdio=linx.Pty(24, 80)) as s:
        await read_until(s.pty, b"24 80\r\n")
        person.pty.set_winsize(0, 0)
        async with attached(s, person):
            assert (s.pty.winsize.rows, s.pty.winsize.cols) == (24, 80)
            for size in ((50, 132, 1000, 2000), (10, 20, 0, 0)):
                person.pty.set_winsize(size)
                await person.sees(b"%d %d\r\n" % size[:2])
                assert s.pty.winsize == linx.tty.WindowSize(*size)
            await leave(person)
        person.pty.set_winsize(30, 40)
        async with attached(s, person):
            await person.sees(b"30 40\r\n")
            await leave(person)


def test_in_a_thread(person: Person) -> None:
    """Where signals cannot be received."""

    async def main() -> None:
        async with on_terminal(SIZES) as s:
            async with attached(s, person) as attaching:
                await person.sees(b"33 99\r\n")
                person.pty.set_winsize(11, 22)
                await person.sees(b"11 22\r\n")
                await leave(person)
            results.append(attaching.result)

    results: list[object] = []
    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    thread.join()
    assert results == [DETACHED]


# ---- refused -----------------------------------------------------------------------------------------------------


async def test_wrong_arguments(person: Person, tmp_path: Path) -> None:
    attach: Any = linx.tty.attach
    wrong: Any
    async with on_terminal(["sleep", "600"]) as s:
        for wrong in ("no session", None, s.pty):
            with pytest.raises(TypeError, match="session"):
                await attach(wrong, terminal=person.terminal)
        for wrong in ("\x10\x11", 17, None, bytearray(b"\x10"), [16, 17]):
            with pytest.raises(TypeError, match="detach_keys"):
                await attach(s, terminal=person.terminal, detach_keys=wrong)
        for wrong in ("/dev/tty", True, 1.5, b"x"):
            with pytest.raises(TypeError, match="terminal"):
                await attach(s, terminal=wrong)
        with (tmp_path / "file").open("w") as file:
            for wrong in (file, file.fileno(), 1_000_000, -1):
                with pytest.raises(ValueError, match="terminal"):
                    await attach(s, terminal=wrong)
    assert not person.has_raw_modes()


async def test_a_session_without_a_terminal(person: Person) -> None:
    async with linx.spawn(["sleep", "600"], auto_proceed=True) as s:
        with pytest.raises(linx.NoPty):
            await linx.tty.attach(s, terminal=person.terminal)
        with pytest.raises(linx.NoPty):
            await linx.tty.attach(s)  # whether there is a /dev/tty or not


NO_TERMINAL = """
import errno, trio, linx_trio as linx
async def main():
    async with linx.spawn(["sleep", "600"], stdio=linx.PTY, auto_proceed=True) as s:
        try:
            await linx.tty.attach(s)
        except OSError as exc:
            print(errno.errorcode[exc.errno], exc.filename, s.state)
        with trio.fail_after(60):
            await s.pty.send_all(b"x")
            assert await s.pty.receive_some() == b"x"  # given back
trio.run(main)
"""


def test_without_a_controlling_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TERMINAL],
        capture_output=True, text=True, check=False, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("ENXIO /dev/tty running\n", "")
