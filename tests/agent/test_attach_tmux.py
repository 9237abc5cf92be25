"""`linx.tty.attach` in a real terminal: a window of tmux(1), an interactive shell in it, and keys.

And, for what that shell would put right by itself, below a simpler one, on a terminal that the test can look at.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import termios
from pathlib import Path

import pytest

from tests.agent.people import INSIDE, ROOT, RealTerminal, needs_tmux, real
from tests.agent.terminals import PROMPT, read_until, shell
from tests.support import eventually, eventually_async, stat_of

__all__ = ["real"]  # a fixture

PROGRAM = f"{shlex.quote(sys.executable)} -m tests.agent.programs.attached"
DETACH = ("C-p", "C-q")


def modes(real: RealTerminal) -> str:
    """The terminal's, as the shell's commands find them."""
    real.enters("stty -g > modes.new; mv modes.new modes")
    path = real.directory / "modes"
    eventually(path.exists, "there are modes")
    found = path.read_text()
    path.unlink()
    return found


def attach(real: RealTerminal, way: str = "cancel", *, behind: str = "") -> int:
    """Starts the program, with a shell as the workload, and waits until that answers; the program's pid."""
    (real.directory / "pid").unlink(missing_ok=True)
    real.enters(f"PS1='{INSIDE}' {PROGRAM} {way} {behind}")
    if "&" not in behind:
        real.prompts(INSIDE)
    eventually(
        lambda: (real.directory / "pid").exists() and (real.directory / "pid").read_text(), "it has said its pid"
    )
    return int((real.directory / "pid").read_text())


def interrupt(real: RealTerminal) -> None:
    """What is typed before the shell has noticed would be discarded."""
    real.types("C-c")
    real.shows("^C")
    real.prompts(INSIDE)


def is_stopped(pid: int) -> bool:
    fields = stat_of(pid)
    return fields is not None and fields[0] == "T"


@needs_tmux
def test_a_shell_in_a_shell(real: RealTerminal) -> None:
    before = modes(real)
    attach(real)
    real.enters("echo $((6 * 7)); stty size")
    real.shows("42")
    real.shows("24 80")
    real.enters("sh -c 'echo sleeping; exec sleep 600'")
    real.shows("sleeping")
    interrupt(real)  # the sleep, and not the Python
    real.enters("echo survived $?")
    real.shows("survived 130")
    real.types("C-d")
    real.shows("result: Exited(code=0)")
    assert modes(real) == before


@needs_tmux
def test_the_size_follows(real: RealTerminal) -> None:
    attach(real)
    for cols, rows in ((100, 30), (60, 20)):
        real.resizes(cols, rows)
        real.enters(f"until [ \"$(stty size)\" = '{rows} {cols}' ]; do sleep 0.01; done; echo it is {cols} wide")
        real.shows(f"it is {cols} wide")
    real.types(*DETACH)
    real.shows("result: linx.tty.DETACHED")


@needs_tmux
def test_detaching(real: RealTerminal) -> None:
    before = modes(real)
    attach(real)
    real.types("C-p")  # alone: the keys may come one at a time, with anything in between them
    real.types("C-q")
    real.shows("result: linx.tty.DETACHED")
    assert modes(real) == before


@pytest.mark.parametrize(
    ("way", "number", "word"),
    [
        ("cancel", signal.SIGUSR1, "cancelled"),
        ("raise", signal.SIGUSR1, "raised"),
        ("cancel", signal.SIGINT, "interrupted"),
    ],
    ids=["cancelled", "an exception", "KeyboardInterrupt"],
)
@needs_tmux
def test_other_ways_out(real: RealTerminal, way: str, number: int, word: str) -> None:
    before = modes(real)
    os.kill(attach(real, way), number)
    real.shows(word)
    assert modes(real) == before


@needs_tmux
def test_suspended_and_resumed(real: RealTerminal) -> None:
    """By SIGTSTP from elsewhere. Meanwhile the shell's terminal is the shell's; afterwards it is raw again, and a
    change of its size is made up for.
    """
    before = modes(real)
    pid = attach(real)
    os.kill(pid, signal.SIGTSTP)
    eventually(lambda: is_stopped(pid), "it is stopped")
    real.enters("echo suspended")
    real.shows("suspended")
    assert modes(real) == before
    real.resizes(70, 22)
    real.enters("clear; fg")
    real.enters("stty size; echo back")
    real.shows("back")
    real.shows("22 70")
    interrupt(real)
    real.enters("echo survived")
    real.shows("survived")
    real.types(*DETACH)
    real.shows("result: linx.tty.DETACHED")
    assert modes(real) == before


@needs_tmux
def test_stopped_without_a_chance_and_resumed(real: RealTerminal) -> None:
    """SIGSTOP cannot be caught: the modes stay raw, and it is the shell's business to set its own."""
    before = modes(real)
    pid = attach(real)
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: is_stopped(pid), "it is stopped")
    real.enters("clear; fg")
    real.enters("echo $((6 * 7))")
    real.shows("42")
    interrupt(real)
    real.enters("echo survived")
    real.shows("survived")
    real.types(*DETACH)
    real.shows("result: linx.tty.DETACHED")
    assert modes(real) == before


@needs_tmux
def test_continued_in_the_background(real: RealTerminal) -> None:
    """It shows what the workload writes, and neither takes the shell's input nor stops; and it may end there."""
    before = modes(real)
    pid = attach(real)
    real.enters("(echo going; sleep 1; echo from the background; read line; echo got $line) ; exit 9")
    real.shows("going")
    os.kill(pid, signal.SIGTSTP)
    eventually(lambda: is_stopped(pid), "it is stopped")
    real.enters("bg")
    real.shows("from the background")
    real.enters("echo still the shell")
    real.shows("still the shell")
    assert not is_stopped(pid)
    assert modes(real) == before
    real.enters("fg")
    real.enters("hello")
    real.shows("got hello")
    real.shows("result: Exited(code=9)")
    assert modes(real) == before


@needs_tmux
def test_started_in_the_background(real: RealTerminal) -> None:
    """Brought to the foreground later, of which a shell says nothing to a job that is running."""
    before = modes(real)
    attach(real, behind="&")
    assert modes(real) == before
    real.enters("clear; fg")
    real.enters("echo $((6 * 7)); stty size")
    real.shows("42")
    real.shows("24 80")
    real.types(*DETACH)
    real.shows("result: linx.tty.DETACHED")
    assert modes(real) == before


@needs_tmux
def test_ended_in_the_background(real: RealTerminal) -> None:
    """The shell's modes stay the shell's."""
    before = modes(real)
    os.mkfifo(real.directory / "go")
    attach(real, behind="sh -c 'read line < go; exit 8' &")
    real.enters("echo > go; wait; echo awaited")
    real.shows("result: Exited(code=8)")
    assert modes(real) == before


@needs_tmux
def test_sent_to_the_background_and_ended_there(real: RealTerminal) -> None:
    """While the shell edits a line: its modes stay as they are."""
    os.mkfifo(real.directory / "go")
    pid = attach(real)
    real.enters("echo going; read line < go; exit 8")
    real.shows("going")
    os.kill(pid, signal.SIGTSTP)
    eventually(lambda: is_stopped(pid), "it is stopped")
    real.enters("bg")
    real.enters("clear")
    real.prompts("$ ")
    at_prompt = real.modes()
    (real.directory / "go").write_text("go\n")
    real.shows("result: Exited(code=8)")
    assert real.modes() == at_prompt


@needs_tmux
def test_a_window_that_is_closed(real: RealTerminal) -> None:
    """All of it goes; the fixture looks for the workload too."""
    pid = attach(real)
    real.close()
    eventually(lambda: stat_of(pid) is None, "the program is gone")


@pytest.mark.parametrize("stop", [signal.SIGTSTP, signal.SIGSTOP])
async def test_below_a_shell_that_does_not_care_for_modes(tmp_path: Path, stop: signal.Signals) -> None:
    """As dash(1). It finds its modes when the program has stopped, if there is a chance, and after its end anyway."""
    async with shell() as s:
        before = termios.tcgetattr(s.pty.fileno())
        path = os.pathsep.join([str(ROOT), *sys.path])
        await s.pty.send_all(
            f"cd {tmp_path}; PYTHONPATH={shlex.quote(path)} PS1='{INSIDE}' {PROGRAM} cancel\n".encode()
        )
        await read_until(s.pty, b"\n")
        await read_until(s.pty, INSIDE.encode())
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, stop)
        await eventually_async(lambda: is_stopped(pid), "it is stopped")
        assert (termios.tcgetattr(s.pty.fileno()) == before) is (stop == signal.SIGTSTP)
        await read_until(s.pty, PROMPT)
        await s.pty.send_all(b"fg\n")
        await eventually_async(lambda: not is_stopped(pid), "it goes on")
        await eventually_async(lambda: termios.tcgetattr(s.pty.fileno()) != before, "it is in raw mode")
        await s.pty.send_all(b"\x10\x11")
        await read_until(s.pty, b"result: linx.tty.DETACHED")
        assert termios.tcgetattr(s.pty.fileno()) == before
