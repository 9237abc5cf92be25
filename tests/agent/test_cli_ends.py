"""However ``linx run`` ends, nothing is left: signals, SIGKILL, and a terminal that hangs up."""

from __future__ import annotations

import json
import os
import shlex
import signal

import pytest

import linx_trio
from linx_trio import _cli_suspend
from tests.agent.commands import LINX, Running, linx, running
from tests.agent.people import RealTerminal, needs_tmux, real
from tests.agent.terminals import foreground_of
from tests.support import descendants_of, eventually, eventually_async, exists, name_of, stat_of

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


# ---- stopped ---------------------------------------------------------------------------------------------------------


def is_stopped(pid: int) -> bool:
    return (stat_of(pid) or "-")[0] == "T"


def workload_of(command: int) -> list[int]:
    """The shell that the command runs, and its `sleep`."""
    return [pid for pid in descendants_of(command) if name_of(pid) in ("sh", "sleep")]


def all_stopped(pids: list[int]) -> bool:
    return all(map(is_stopped, pids))


def stopped(command: Running) -> list[int]:
    """Sends it SIGTSTP, and waits until it is stopped. Its processes."""
    command.reads(b"up")
    eventually(lambda: len(workload_of(command.process.pid)) == 2, "it sleeps")
    processes = workload_of(command.process.pid)
    command.process.send_signal(signal.SIGTSTP)
    eventually(lambda: is_stopped(command.process.pid), "the command is stopped")
    eventually(lambda: all_stopped(processes), "the workload is stopped, each process at its next step")
    return processes


SLEEPS = "trap 'echo heard' USR1; trap 'exit 9' TERM; echo up; while :; do sleep 1000 & wait $!; done"


@pytest.mark.parametrize("given", [[], ["-r", "-p"], ["-r", "-p", "--init"]], ids=["plain", "pid namespace", "init"])
def test_stopped_and_continued_with_its_workload(given: list[str]) -> None:
    """In a process group of its own, as a shell's job."""
    with running("run", *given, "--", "sh", "-c", SLEEPS, process_group=0) as command:
        processes = stopped(command)
        command.process.send_signal(signal.SIGCONT)
        eventually(lambda: not any(map(is_stopped, [command.process.pid, *processes])), "all is continued")
        command.process.send_signal(signal.SIGUSR1)
        command.reads(b"heard")
        command.process.terminate()
        assert command.ends() == (9, "")


@pytest.mark.parametrize("flag", [4, 1 << 20], ids=["this kernel", "one before 6.9"])
async def test_a_whole_process_group_is_stopped(monkeypatch: pytest.MonkeyPatch, flag: int) -> None:
    """An older kernel refuses the flag."""
    monkeypatch.setattr(_cli_suspend, "_PROCESS_GROUP", flag)
    async with linx_trio.spawn(["sh", "-c", "sleep 1000 & wait"], auto_proceed=True) as session:
        await eventually_async(lambda: descendants_of(session.host_pid), "it sleeps")
        processes = [session.host_pid, *descendants_of(session.host_pid)]
        _cli_suspend._to_group(session, signal.SIGSTOP)
        await eventually_async(lambda: all_stopped(processes), "all are stopped")
        _cli_suspend._to_group(session, signal.SIGCONT)
        await eventually_async(lambda: not any(map(is_stopped, processes)), "all are continued")
    _cli_suspend._to_group(session, signal.SIGSTOP)  # it has ended: nobody is stopped


def test_ended_while_it_is_stopped() -> None:
    """As a shell's ``kill %1`` does it."""
    with running("run", "--", "sh", "-c", SLEEPS, process_group=0) as command:
        stopped(command)
        command.process.terminate()
        command.process.send_signal(signal.SIGCONT)
        assert command.ends() == (9, "")


def test_killed_with_9_while_it_is_stopped() -> None:
    with running("run", "--stop-timeout", "0.2", "--", "sh", "-c", SLEEPS, process_group=0) as command:
        stopped(command)
        command.process.kill()
        command.process.wait()
        command.leaves_nothing()


def test_where_nobody_could_continue_it_nothing_is_stopped() -> None:
    """It leads a session, so its process group is orphaned."""
    with running("run", "--", "sh", "-c", SLEEPS, start_new_session=True) as command:
        command.reads(b"up")
        command.process.send_signal(signal.SIGTSTP)
        command.process.send_signal(signal.SIGUSR1)
        command.reads(b"heard")
        assert not any(map(is_stopped, [command.process.pid, *workload_of(command.process.pid)]))
        command.process.terminate()
        assert command.ends() == (9, "")


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
    real.enters("sh -c 'echo asleep; exec sleep 1000'")
    real.shows("asleep")  # the shell has put it into the foreground
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


@needs_tmux
def test_job_control_without_a_terminal_of_its_own(real: RealTerminal) -> None:
    started(real, f"linx run -- sh -c {shlex.quote(SLEEPS)}; echo status $?")
    real.shows("up")
    command = foreground(real)
    eventually(lambda: len(workload_of(command)) == 2, "it sleeps")
    processes = workload_of(command)
    real.types("C-z")
    real.shows("[1]+  Stopped")
    eventually(lambda: all_stopped(processes), "the workload is stopped")
    real.enters("bg")
    eventually(lambda: not any(map(is_stopped, processes)), "it runs in the background")
    real.enters("fg")
    eventually(lambda: foreground(real) == command, "it is in the foreground")
    real.types("C-z")
    eventually(lambda: all_stopped(processes), "it is stopped again")
    real.enters("kill %1")
    eventually(lambda: not exists(command), "it has ended")
    real.enters("echo said")
    real.shows("[1]+  Exit 9")
