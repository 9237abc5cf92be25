"""However ``linx run`` ends, nothing is left: signals, SIGKILL, and a terminal that hangs up."""

from __future__ import annotations

import json
import os
import shlex
import signal

import pytest

from tests.agent.commands import LINX, linx, running
from tests.agent.people import RealTerminal, needs_tmux, real
from tests.agent.terminals import foreground_of
from tests.support import eventually

__all__ = ["real"]  # a fixture

TREE = "setsid sleep 1000 & trap '{trap}' {signal}; echo up; while :; do sleep 1000 & wait $!; done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_to_the_workload_whose_end_counts(number: signal.Signals) -> None:
    script = TREE.format(trap="exit 9", signal=number.name.removeprefix("SIG"))
    with running("run", "--", "sh", "-c", script) as command:
        command.reads(b"up")
        command.process.send_signal(number)
        assert command.ends() == (9, "")


def test_one_that_ignores_it_is_killed() -> None:
    with running("run", "--stop-timeout", "0.2", "--", "sh", "-c", TREE.format(trap="", signal="TERM")) as command:
        command.reads(b"up")
        command.process.terminate()
        assert command.ends() == (128 + signal.SIGKILL, "")


def test_the_second_signal_kills_at_once() -> None:
    with running(
        "run", "--stop-timeout", "1h", "--", "sh", "-c", TREE.format(trap="echo heard", signal="INT")
    ) as command:
        command.reads(b"up")
        command.process.send_signal(signal.SIGINT)
        command.reads(b"heard")
        command.process.send_signal(signal.SIGINT)
        assert command.ends() == (128 + signal.SIGKILL, "")


def test_other_signals_are_passed_on() -> None:
    with running("run", "--", "sh", "-c", TREE.format(trap="echo heard", signal="USR1")) as command:
        command.reads(b"up")
        command.process.send_signal(signal.SIGUSR1)
        command.reads(b"heard")
        command.process.terminate()
        assert command.ends() == (128 + signal.SIGTERM, "")


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As below ``nohup(1)``."""
    script = TREE.format(trap="exit 4", signal="TERM")
    with running(
        "run", "--", "sh", "-c", script, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as command:
        command.reads(b"up")
        command.process.send_signal(signal.SIGHUP)
        command.process.terminate()
        assert command.ends() == (4, "")


@pytest.mark.parametrize("given", [[], ["-r", "-p"]], ids=["plain", "pid namespace"])
def test_killed_with_9_it_takes_the_workload_along(given: list[str]) -> None:
    script = TREE.format(trap="", signal="TERM")
    with running("run", *given, "--stop-timeout", "0.2", "--", "sh", "-c", script) as command:
        command.reads(b"up")
        command.process.kill()
        command.process.wait()
        command.leaves_nothing()


# ---- on a terminal ---------------------------------------------------------------------------------------------------


def foreground(real: RealTerminal) -> int:
    """The pid of what the terminal's shell has in the foreground."""
    return foreground_of(int(real.tells("#{pane_pid}")))


def started(real: RealTerminal, line: str) -> None:
    """The command, in the terminal's shell: `linx` is one."""
    real.enters(f'linx() {{ {shlex.join(LINX)} "$@"; }}; clear')
    real.prompts("$ ")
    real.enters(line)


@needs_tmux
def test_a_shell_on_a_terminal_of_its_own(real: RealTerminal) -> None:
    before = real.modes()[:4]
    started(real, "PS1='inside> ' linx run -t -- sh; echo status $?")
    real.prompts("inside> ")
    real.enters("stty size; tty")
    real.shows("24 80")
    real.enters("sleep 1000")
    real.types("C-c")
    real.shows("^C")
    real.prompts("inside> ")
    real.resizes(100, 30)
    real.enters("sleep 1; stty size")
    real.shows("30 100")
    real.enters("exit 5")
    real.shows("status 5")
    real.prompts("$ ")
    eventually(lambda: real.modes()[:4] == before, "the modes are as before")


@needs_tmux
def test_a_program_on_a_terminal_that_is_not_there(real: RealTerminal) -> None:
    started(real, "linx run -t -- no-such-program; echo status $?")
    real.shows("linx: [ENOENT]")
    real.shows("status 127")


@needs_tmux
def test_terminated_on_a_terminal_it_restores_the_modes(real: RealTerminal) -> None:
    before = real.modes()[:4]
    script = "trap '' TERM; echo up; while :; do sleep 1000 & wait $!; done"
    started(real, f"linx run -t --stop-timeout 0.2 -- sh -c {shlex.quote(script)}; echo status $?")
    real.shows("up")
    os.kill(foreground(real), signal.SIGTERM)
    real.shows("status 137")
    real.prompts("$ ")
    eventually(lambda: real.modes()[:4] == before, "the modes are as before")


@needs_tmux
def test_colour_on_a_terminal_only(real: RealTerminal) -> None:
    started(real, "linx doctor agent; linx doctor agent | cat")
    real.shows("1 of 1 work here")
    assert "✔" in real.screen()
    assert "✔" not in linx("doctor", "agent").stdout
    assert json.loads(linx("doctor", "--json", "agent").stdout)["features"]["agent"]["works"]
