"""Python is gone without a word: the agent does the clean-up, as `orphan_policy` says."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent.programs.phases import PHASES, state_of
from tests.support import DEADLINE, children_of, descendants_of, eventually, exists, processes, with_token

ROOT = Path(__file__).parent.parent.parent


def is_gone(pid: int) -> bool:
    """Also a zombie is gone where its parent is none of ours: the zygote, orphaned to whatever is process 1 here."""
    return state_of(pid) in ("", "Z")


@dataclass
class Victim:
    """A Python that has set its scene (see programs/killable.py)."""

    process: subprocess.Popen[bytes]
    zygote: int
    monitors: list[int]
    pids: list[int]
    more: dict[str, object]
    output: bytes = b""

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(DEADLINE)

    def read_more(self) -> bool:
        """Reads what comes next on standard output; `False` is the end of the file: nobody holds it any more."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], DEADLINE)[0], f"no more after {self.output!r}"
        chunk = os.read(self.process.stdout.fileno(), 65536)
        self.output += chunk
        return bool(chunk)

    def read_until(self, word: bytes) -> None:
        while word not in self.output:
            assert self.read_more(), f"the end, and no {word!r} in {self.output!r}"

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)

    def check_that_nothing_is_left(self, token: str) -> None:
        eventually(lambda: not with_token(token), "no process with the token is left")
        eventually(lambda: not [pid for pid in self.pids if exists(pid)], f"none of {self.pids} is left")
        eventually(lambda: all(map(is_gone, self.monitors)), f"no monitor of {self.monitors} is left")
        eventually(lambda: is_gone(self.zygote), f"the zygote {self.zygote} is gone")
        while self.read_more():
            pass


def introduce(process: subprocess.Popen[bytes]) -> Victim:
    """Reads what it says of itself; its workloads may have said something before."""
    python = Victim(process, 0, [], [], {})
    while not (
        lines := [line for line in python.output.splitlines(keepends=True) if line[:1] == b"{" and line[-1:] == b"\n"]
    ):
        assert python.read_more(), f"it ended without having set its scene: {python.output!r}"
    facts = json.loads(lines[0])
    python.output = python.output.replace(lines[0], b"")
    python.zygote, python.monitors, python.pids = (facts.pop(name) for name in ("zygote", "monitors", "pids"))
    python.more = facts
    return python


@contextlib.contextmanager
def victim(scene: str, policy: str = "kill", **options: object) -> Iterator[Victim]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-m", "tests.agent.programs.killable", scene, policy]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )
    with process:
        try:
            yield introduce(process)
        finally:
            process.kill()


# ---- each phase ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["kill", "grace"])
@pytest.mark.parametrize("phase", PHASES)
def test_killed(phase: str, policy: str, nothing_is_left: str) -> None:
    """What ignores SIGTERM has its grace; all others have no need of it."""
    with victim(phase, policy) as python:
        assert len(python.monitors) == 1
        assert bool(python.pids) is (phase != "starting")
        assert all(map(exists, python.pids))
        started = time.monotonic()
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)
        if (phase, policy) == ("running", "grace"):
            assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("phase", ["starting", "unheard", "parked"])
@pytest.mark.parametrize("policy", ["linger", "long-grace"])
def test_nobody_lingers_who_has_never_run(phase: str, policy: str, nothing_is_left: str) -> None:
    with victim(phase, policy) as python:
        python.kill()
        if phase == "unheard":
            os.kill(python.zygote, signal.SIGCONT)
        python.check_that_nothing_is_left(nothing_is_left)


def test_the_default_is_five_seconds(nothing_is_left: str) -> None:
    with victim("trapping", "default") as python:
        python.read_until(b"up")
        started = time.monotonic()
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)
        assert time.monotonic() - started >= 5.0
        assert b"TERM" in python.output


# ---- Kill(grace) -----------------------------------------------------------------------------------------------------


def test_a_grace_begins_with_sigterm_and_ends_with_sigkill(nothing_is_left: str) -> None:
    with victim("trapping", "grace") as python:
        python.read_until(b"up")
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)
        assert python.output == b"up\nTERM\n"


def test_a_grace_ends_with_the_workload(nothing_is_left: str) -> None:
    """What the workload leaves behind has none, though an hour was given."""
    with victim("obeying", "long-grace") as python:
        python.read_until(b"up")
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)
        assert python.output == b"up\nTERM\n"


def test_without_a_grace_there_is_no_sigterm(nothing_is_left: str) -> None:
    with victim("trapping", "kill") as python:
        python.read_until(b"up")
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)
        assert python.output == b"up\n"


def test_a_grace_is_not_extended_to_what_is_left_behind(nothing_is_left: str) -> None:
    with victim("left-behind", "long-grace") as python:
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)


# ---- LINGER ----------------------------------------------------------------------------------------------------------


def neighbour_is_gone(python: Victim) -> None:
    """The agent has seen that Python is gone, and done what it does about that."""
    pid = python.more["neighbour"]
    assert isinstance(pid, int)
    eventually(lambda: not exists(pid), "the neighbour, who does not linger, is gone")


def test_a_lingering_workload_runs_on_and_is_reaped(nothing_is_left: str) -> None:
    with victim("waiting", "linger") as python:
        python.read_until(b"up\n")
        python.kill()
        neighbour_is_gone(python)
        assert all(map(exists, python.pids))
        assert not is_gone(python.zygote)
        python.say(b"go\n")
        python.read_until(b"survived\n")
        python.check_that_nothing_is_left(nothing_is_left)


def test_released_is_as_good_as_running(nothing_is_left: str) -> None:
    """Past the checkpoint there is no way back: what was let go lingers, though execve was yet to come."""
    with victim("released", "linger") as python:
        python.kill()
        os.kill(python.pids[0], signal.SIGCONT)
        python.read_until(b"up\n")
        python.say(b"go\n")
        python.read_until(b"survived\n")
        python.check_that_nothing_is_left(nothing_is_left)


def test_what_a_lingering_workload_left_behind_lingers(nothing_is_left: str) -> None:
    with victim("left-behind", "linger") as python:
        python.kill()
        neighbour_is_gone(python)
        assert all(map(exists, python.pids))
        for pid in python.pids:
            os.kill(pid, signal.SIGKILL)
        python.check_that_nothing_is_left(nothing_is_left)


def test_a_lingering_session_whose_monitor_is_killed(nothing_is_left: str) -> None:
    with victim("left-behind", "linger") as python:
        python.kill()
        neighbour_is_gone(python)
        eventually(lambda: len(children_of(python.zygote)) == 1, "the neighbour's monitor is gone, too")
        (monitor,) = children_of(python.zygote)
        os.kill(monitor, signal.SIGKILL)
        python.check_that_nothing_is_left(nothing_is_left)


# ---- many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["kill", "grace"])
def test_many_sessions_in_all_phases(policy: str, nothing_is_left: str) -> None:
    with victim("all-phases", policy) as python:
        assert len(python.monitors) == 3 * len(PHASES)
        assert all(map(exists, python.pids))
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)


@pytest.mark.parametrize("seed", range(4))
def test_killed_in_the_middle_of_everything(seed: int, nothing_is_left: str) -> None:
    rng = random.Random(seed)
    with victim("storm", str(seed)) as python:
        changes = 0
        seen: list[int] = []
        wanted = rng.randrange(3, 30)

        def it_storms() -> bool:
            nonlocal changes, seen
            now = descendants_of(python.zygote)
            changes += now != seen
            seen = now
            return changes > wanted

        eventually(it_storms, "sessions come and go")
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)


def namespaces_of_all() -> set[int]:
    """The network namespaces that processes are in."""
    found = set()
    for pid in processes():
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
    return found


def test_a_lab(nothing_is_left: str) -> None:
    """With its processes its namespaces go, and with these all links."""
    with victim("lab", "grace") as python:
        assert len(python.pids) == 7
        assert all(map(exists, python.pids))
        assert python.more["namespace"] in namespaces_of_all()
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)
        assert python.more["namespace"] not in namespaces_of_all()


def test_two_pythons_are_two(nothing_is_left: str) -> None:
    with victim("running", "kill") as one, victim("running", "kill") as other:
        assert one.zygote != other.zygote
        one.kill()
        eventually(lambda: is_gone(one.zygote), "the zygote of the one is gone")
        assert not any(map(exists, one.pids))
        assert all(map(exists, other.pids))
        other.kill()
        other.check_that_nothing_is_left(nothing_is_left)


# ---- other ways to vanish --------------------------------------------------------------------------------------------


def test_its_whole_process_group_is_killed(nothing_is_left: str) -> None:
    """The agent is in none that a terminal or a shell would kill."""
    with victim("running", "grace") as python:
        os.killpg(python.process.pid, signal.SIGKILL)
        python.process.wait(DEADLINE)
        python.check_that_nothing_is_left(nothing_is_left)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ended_by_another_signal(number: signal.Signals, nothing_is_left: str) -> None:
    """The first two end Python as SIGKILL does; the third is a KeyboardInterrupt, and all blocks are left in order."""
    with victim("all-phases", "kill") as python:
        python.kill(number)
        python.check_that_nothing_is_left(nothing_is_left)


def test_it_ends_without_unwinding(nothing_is_left: str) -> None:
    with victim("exiting", "kill") as python:
        assert python.process.wait(DEADLINE) == 5
        python.check_that_nothing_is_left(nothing_is_left)


def test_it_becomes_another_program(nothing_is_left: str) -> None:
    """No fd of a session survives execve(2) in Python, so its sessions do not either."""
    with victim("replaced", "kill") as python:
        eventually(lambda: not any(map(exists, python.pids)), "the session's processes are gone")
        eventually(lambda: all(map(is_gone, [*python.monitors, python.zygote])), "and the agent is")
        assert python.process.poll() is None
        python.kill()
        python.check_that_nothing_is_left(nothing_is_left)


def test_a_forked_child_keeps_nothing_alive(nothing_is_left: str) -> None:
    """A child of os.fork has its own sessions, and no copy of its parent's."""
    with victim("forked", "kill") as python:
        child = python.more["child"]
        assert isinstance(child, int)
        try:
            assert python.more["word"] == "hello"
            python.kill()
            eventually(lambda: not any(map(exists, python.pids)), "the parent's sessions are gone")
            eventually(lambda: all(map(is_gone, [*python.monitors, python.zygote])), "and the parent's agent is")
            assert not is_gone(child)
        finally:
            os.kill(child, signal.SIGKILL)
        python.check_that_nothing_is_left(nothing_is_left)
