"""`linx.probe` on this machine, which can do all that this suite is about."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import trio

import linx_trio as linx
from linx_trio import _probe_bench
from linx_trio._machine import Machine
from linx_trio._probe import TRIALS
from linx_trio._probe_bench import Bench, Refused, Trial
from linx_trio.errors import Hint
from tests.agent.provoked import ROOT

SUITE_NEEDS = frozenset({
    "agent", "spawn", "pty", "enter", "user", "mount", "uts", "ipc", "cgroup", "net", "pid", "time", "time-offsets",
    "mount:tmpfs", "mount:proc", "mount:sysfs", "mount:devpts", "mount:overlay", "net:lo", "net:veth", "net:bridge",
    "rlimits", "seccomp", "seccomp:names", "capabilities", "memfd", "sandbox",
})  # fmt: skip
"""What other tests of this directory do here without asking."""


@functools.cache
def everything() -> linx.Probe:
    return linx.probe()


def test_all_is_tried() -> None:
    assert list(everything()) == list(TRIALS)


@pytest.mark.parametrize("name", sorted(SUITE_NEEDS))
def test_what_other_tests_do_works(name: str) -> None:
    assert everything()[name], everything()[name]


def test_what_does_not_work_says_why() -> None:
    for feature in everything().failed:
        assert feature.cause, feature
        assert feature.why, feature
        assert feature.cause != "unexpected", feature
        assert feature.remedy or feature.needs, feature


def test_no_group_is_left() -> None:
    own = Machine().own_cgroup()
    assert everything()["cgroup2"].works == (own is not None)
    assert own is None or not [name for name in os.listdir(own) if name.startswith("linx-probe")]


def test_rights_are_those_of_the_caller() -> None:
    found = {name: bool(everything()[name]) for name in TRIALS if name.startswith("root:")}
    assert len(found) == 7
    assert set(found.values()) == {os.geteuid() == 0}
    assert everything()["capabilities:all"].works == (linx.capabilities.read("/proc/self").effective >= every())
    assert everything().uid == os.geteuid()


def every() -> set[int]:
    return set(range(linx.capabilities.last_cap() + 1))


def test_it_agrees_with_itself() -> None:
    plain = json.loads(json.dumps(everything().to_dict()))
    assert [name for name, feature in plain["features"].items() if not feature["works"]] == [
        feature.name for feature in everything().failed
    ]
    assert str(everything()).splitlines()[0].startswith("linx-trio ")


def test_some_only() -> None:
    found = linx.probe("net:veth", "user", "net:veth")
    assert list(found) == ["net:veth", "user"]


# ---- wherever it is called -----------------------------------------------------------------------------------------


async def test_within_trio() -> None:
    """It blocks there, as any plain function does, and works all the same."""
    assert linx.probe("spawn")["spawn"]


async def test_in_a_worker_thread() -> None:
    found = await trio.to_thread.run_sync(linx.probe, "user")
    assert found["user"]


def test_in_any_thread() -> None:
    found: list[linx.Probe] = []
    thread = threading.Thread(target=lambda: found.append(linx.probe("spawn")))
    thread.start()
    thread.join()
    assert found[0]["spawn"]


async def test_an_error_within_trio() -> None:
    with pytest.raises(ValueError, match="unknown feature 'typo'"):
        linx.probe("typo")


INTERRUPTED = """
import os, signal, threading
import trio
import linx_trio as linx
from linx_trio import _probe, _probe_bench

_probe_bench.SECONDS = 10**6

async def hang(bench):
    async with bench.parked():
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

_probe.TRIALS["spawn"] = _probe_bench.Trial("spawn", "x", "x", hang, ())

async def main():
    linx.probe("spawn")

try:
    trio.run(main) if {inside} else linx.probe("spawn")
except KeyboardInterrupt:
    from linx_trio import _agent
    (zygote,) = _agent.current()
    with open(f"/proc/{{zygote.pid}}/task/{{zygote.pid}}/children") as file:
        print("interrupted", threading.active_count(), repr(file.read()))
"""


@pytest.mark.parametrize("inside", [False, True], ids=["outside of trio", "within trio"])
def test_an_interrupt_leaves_nothing_behind(inside: bool) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    program = INTERRUPTED.format(inside=inside)
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in (0, -signal.SIGINT), done.stderr
    words = done.stdout.split()
    assert words[:1] == ["interrupted"], done.stderr
    assert words[2] == "''", "no monitor is left below the zygote"


# ---- the bench -----------------------------------------------------------------------------------------------------


async def outcome(*trials: Trial) -> list[linx.Feature]:
    bench = Bench({trial.name: trial for trial in trials}, Machine())
    return [await bench.feature(trial.name) for trial in trials]


async def test_each_is_tried_once_and_after_what_it_needs() -> None:
    tried = []

    def trial(name: str, *needs: str, works: bool = True) -> Trial:
        async def run(bench: Bench) -> None:
            tried.append(name)
            if not works:
                raise Refused(Hint("cause", "why", "remedy"))

        return Trial(name, "group", "title", run, needs)

    found = await outcome(trial("a", "b"), trial("b", "c"), trial("c"), trial("d", "e"), trial("e", works=False))
    assert tried == ["c", "b", "a", "e"]
    assert [feature.works for feature in found] == [True, True, True, False, False]
    assert (found[3].cause, found[3].needs) == ("cause", "e")
    assert (found[4].why, found[4].remedy) == ("why", "remedy")


async def test_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_probe_bench, "SECONDS", 0.05)

    async def hang(bench: Bench) -> None:
        await trio.sleep_forever()

    (found,) = await outcome(Trial("a", "group", "title", hang, ()))
    assert found.cause == "too-slow"


async def test_one_that_breaks() -> None:
    async def breaks(bench: Bench) -> None:
        raise ZeroDivisionError("oops")

    async def program(bench: Bench) -> None:
        await bench.executed("/bin/false")

    first, second = await outcome(Trial("a", "group", "title", breaks, ()), Trial("b", "group", "title", program, ()))
    assert (first.cause, second.cause) == ("unexpected", "ended")
    assert "oops" in str(first.why)
