"""Whatever ends a session of the agent as an Erlang Port, nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from linx_trio import _agent
from tests.agent.port import RUNNING, SLEEP, Port, shell, spawn
from tests.support import DEADLINE, eventually, exists, processes, stat_of, with_token

DAEMONS = """
trap '' TERM HUP INT
( trap '' TERM; setsid sh -c 'sleep 1000 & sleep 1000 & wait' & ) &
( setsid setsid sleep 1000 & ) </dev/null &
%s
"""


def others(port: Port, token: str) -> list[int]:
    return [pid for pid in with_token(token) if pid not in (port.pid, os.getpid())]


PHASES = ["no request", "requested", "parked", "proceeding", "running"]


@pytest.mark.parametrize("phase", PHASES)
def test_fd_3_closed(phase: str, nothing_is_left: str) -> None:
    with Port() as port:
        if phase in ("requested", "proceeding"):
            port.send(spawn(argv=SLEEP), *["proceed"] * (phase == "proceeding"))
        elif phase != "no request":
            port.send(spawn(argv=SLEEP))
            assert (port.runs() if phase == "running" else port.started()) > 0
        port.close_input()
        events = port.rest()
        assert port.wait() == 0
        assert others(port, nothing_is_left) == []
    assert [event[1] for event in events if event[0] == "error"] == []
    assert len([event for event in events if event[1] in ("aborted", "signaled", "exited")]) == (1 if events else 0)


def test_fd_3_closed_with_daemons(nothing_is_left: str) -> None:
    with Port() as port:
        port.send(spawn(argv=shell(DAEMONS % "sleep 1000"), stdio="devnull"))
        port.runs()
        eventually(lambda: len(others(port, nothing_is_left)) >= 6, "the daemons are there")
        port.close_input()
        assert port.rest() == [("status", "signaled", 9)]
        assert port.wait() == 0
        assert others(port, nothing_is_left) == []


def test_the_end_of_the_workload_is_the_end_of_its_daemons(nothing_is_left: str) -> None:
    with Port() as port:
        port.send(spawn(argv=shell(DAEMONS % "exit 4"), stdio="devnull"), "proceed")
        port.started()
        assert port.rest() == [RUNNING, ("status", "exited", 4)]
        assert port.wait() == 0
        assert others(port, nothing_is_left) == []


def test_nobody_reads(nothing_is_left: str) -> None:
    """fd 4 is closed at the far end: the session is not disturbed, and fd 3 still ends it."""
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        pid = port.started()
        port.close_output()
        port.send("proceed")
        eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "it runs")
        port.close_input()
        assert port.wait() == 0
        assert others(port, nothing_is_left) == []


@pytest.mark.parametrize("runs", [False, True], ids=["parked", "running"])
def test_the_agent_is_killed(runs: bool) -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        pid = port.runs() if runs else port.started()
        os.kill(port.pid, signal.SIGKILL)
        assert port.rest() == []
        assert port.wait() == -signal.SIGKILL
        eventually(lambda: not exists(pid) or (stat_of(pid) or "Z")[0] == "Z", "the workload is dead")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD])
def test_a_stray_signal_does_not_end_the_agent(number: signal.Signals) -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        port.runs()
        os.kill(port.pid, number)
        port.send(("signal", 15))
        assert port.rest() == [("status", "signaled", 15)]
        assert port.wait() == 0


def test_without_its_fds_it_says_what_it_wants() -> None:
    done = subprocess.run([_agent.agent_path(), "--port"], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 64
    assert "fds 3 (in) and 4 (out)" in done.stderr


def test_the_token_finds_workloads(nothing_is_left: str) -> None:
    """The tests above would pass for the wrong reason if it did not."""
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        pid = port.runs()
        assert pid in others(port, nothing_is_left)
        assert pid in processes()
