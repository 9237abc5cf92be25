"""The policies of supervision: who is restarted, how soon, how often; and what callers may say of them."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio._restarts import (
    RESTARTED,
    Backoff,
    End,
    Intensity,
    Restart,
    Strategy,
    check_backoff,
    check_intensity,
    end_of,
)
from tests.proto.strategies import relaxed
from tests.proto.test_layers import closure_of, imports_of

SETUP_ERROR = linx.SetupError(2, "execve", "/bin/nothing")

# outcome or error, permanent, transient, temporary
TABLE = [
    (linx.Exited(0), None, End.NORMAL, True, False, False),
    (linx.Exited(1), None, End.ABNORMAL, True, True, False),
    (linx.Exited(255), None, End.ABNORMAL, True, True, False),
    (linx.Signaled(15), None, End.ABNORMAL, True, True, False),
    (linx.Signaled(9, core_dumped=True), None, End.ABNORMAL, True, True, False),
    (linx.Aborted(), None, End.SHUTDOWN, True, False, False),
    (None, SETUP_ERROR, End.ABNORMAL, True, True, False),
    (None, linx.AgentDied(-9, "running"), End.ABNORMAL, True, True, False),
    (linx.Signaled(9), ValueError("of on_checkpoint"), End.ABNORMAL, True, True, False),
    (linx.Aborted(), ValueError("of on_checkpoint"), End.ABNORMAL, True, True, False),
]


@pytest.mark.parametrize(("outcome", "error", "end", "permanent", "transient", "temporary"), TABLE)
def test_the_table_of_ends(
    outcome: linx.Outcome | None,
    error: Exception | None,
    end: End,
    permanent: bool,
    transient: bool,
    temporary: bool,
) -> None:
    assert end_of(outcome, error) is end
    assert RESTARTED[Restart.PERMANENT][end] is permanent
    assert RESTARTED[Restart.TRANSIENT][end] is transient
    assert RESTARTED[Restart.TEMPORARY][end] is temporary


def test_the_table_is_complete() -> None:
    assert set(RESTARTED) == set(Restart)
    assert all(set(row) == set(End) for row in RESTARTED.values())
    assert {end for _, _, end, *_ in TABLE} == set(End)


@pytest.mark.parametrize("module", ["_restarts", "_supervision"])
def test_the_decisions_do_no_io(module: str) -> None:
    outside = {name.split(".")[0] for known in closure_of(module) for name in imports_of(known)} - {"linx_trio"}
    assert not outside & {"trio", "socket", "select", "selectors", "asyncio", "threading", "fcntl", "signal", "time"}


# ---- backoff ----------------------------------------------------------------------------------------------------

seconds = st.floats(0, 1e6)


def test_delays_grow_up_to_the_maximum() -> None:
    delay = Backoff(initial=0.5, factor=3, maximum=10, jitter=0).delays()
    assert [delay(n) for n in range(1, 6)] == [0.5, 1.5, 4.5, 10, 10]


def test_the_defaults_reach_the_limit_soon() -> None:
    """A bad command is given up: the delays of the default limit fit well into its seconds."""
    assert sum(Backoff(jitter=0).plain(n) * 1.1 for n in (1, 2, 3)) < 5.0


@relaxed
@given(st.builds(Backoff, seconds, st.floats(1, 100), seconds, st.floats(0, 1), seconds, st.integers()), st.data())
def test_jitter_stays_in_its_bounds_and_is_repeatable(backoff: Backoff, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(1, 10**6), max_size=20))
    one, other = backoff.delays(), backoff.delays()
    for row in rows:
        delay = one(row)
        assert delay == other(row)
        plain = backoff.plain(row)
        assert 0 <= plain <= backoff.maximum
        slack = plain * backoff.jitter + 1e-9 * plain
        assert max(plain - slack, 0) <= delay <= plain + slack


def test_without_a_seed_no_two_are_alike() -> None:
    backoff = Backoff(jitter=1)
    assert len({backoff.delays()(1) for _ in range(20)}) > 1


def test_a_number_is_a_constant_delay() -> None:
    delay = check_backoff(2).delays()
    assert [delay(n) for n in (1, 2, 50)] == [2, 2, 2]
    assert check_backoff(0).delays()(5) == 0
    same = Backoff()
    assert check_backoff(same) is same


# ---- intensity --------------------------------------------------------------------------------------------------


def test_the_one_that_is_one_too_many() -> None:
    intensity = Intensity(3, 5.0)
    assert [intensity.exceeded(t) for t in (0, 1, 2, 5)] == [False, False, False, True]
    intensity = Intensity(3, 5.0)
    assert [intensity.exceeded(t) for t in (0, 1, 2, 5.1, 6.05)] == [False, False, False, False, False]


def test_no_restart_at_all_and_any_number() -> None:
    assert Intensity(0, 1.0).exceeded(7)
    forever = Intensity(math.inf, math.inf)
    assert not any(forever.exceeded(1) for _ in range(1000))
    assert not list(forever)


@relaxed
@given(st.integers(0, 5), st.floats(0.1, 10), st.lists(st.floats(0, 5), max_size=40))
def test_intensity_is_a_sliding_window(most: int, window: float, gaps: list[float]) -> None:
    intensity = Intensity(most, window)
    now, times = 0.0, []
    for gap in gaps:
        now += gap
        times.append(now)
        assert intensity.exceeded(now) == (sum(t >= now - window for t in times) > most)


# ---- what callers say -------------------------------------------------------------------------------------------

BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Backoff(initial=-1), ValueError, "initial must be between 0 and 1e+09 seconds, not -1"),
    (lambda: Backoff(initial=math.nan), ValueError, "initial must be between"),
    (lambda: Backoff(factor=0.5), ValueError, "factor must be between 1 and 1e+09, not 0.5"),
    (lambda: Backoff(maximum=math.inf), ValueError, "maximum must be"),
    (lambda: Backoff(jitter=1.5), ValueError, "jitter must be between 0 and 1, not 1.5"),
    (lambda: Backoff(jitter="much"), TypeError, "jitter must be a number, not 'much'"),  # type: ignore[arg-type]
    (lambda: Backoff(seed=1.5), TypeError, "seed must be an int or None, not 1.5"),  # type: ignore[arg-type]
    (lambda: Backoff(reset_after=True), TypeError, "reset_after must be a number, not True"),
    (lambda: check_backoff("soon"), TypeError, "backoff must be a linx.Backoff or a number of seconds, not 'soon'"),
    (lambda: check_backoff(-1), ValueError, "backoff must be between"),
    (lambda: check_intensity(1.5, 5), TypeError, "max_restarts must be an int or math.inf, not 1.5"),
    (lambda: check_intensity(True, 5), TypeError, "max_restarts must be an int"),
    (lambda: check_intensity(-1, 5), ValueError, "max_restarts must not be negative: -1"),
    (lambda: check_intensity(3, 0), ValueError, "max_seconds must be more than 0"),
    (lambda: check_intensity(3, None), TypeError, "max_seconds must be a number, not None"),
    (lambda: linx.ChildSpec([], id="x"), ValueError, "argv is empty"),
    (lambda: linx.ChildSpec("true", id="x"), TypeError, "argv"),
    (lambda: linx.ChildSpec(["true"], id=""), ValueError, "id is the empty string"),
    (lambda: linx.ChildSpec(["true"], id=3), TypeError, "id must be a str, not 3"),  # type: ignore[arg-type]
    (
        lambda: linx.ChildSpec(["true"], id="x", restart="always"),
        ValueError,
        "restart must be one of 'permanent', 'transient', 'temporary', not 'always'",
    ),
    (lambda: linx.ChildSpec(["true"], id="x", shutdown=-1), ValueError, "shutdown must be between 0 and 4e"),
    (lambda: linx.ChildSpec(["true"], id="x", shutdown=math.inf), ValueError, "shutdown must be"),
    (lambda: linx.ChildSpec(["true"], id="x", start_timeout=0), ValueError, "start_timeout must be more than 0"),
    (lambda: linx.ChildSpec(["true"], id="x", start_timeout=math.nan), ValueError, "start_timeout must be"),
    (
        lambda: linx.ChildSpec(["true"], id="x", ready=8080),  # type: ignore[arg-type]
        TypeError,
        "ready must be an async function of a session, or None, not 8080",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), BAD)
def test_what_is_wrong_is_named(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)


def test_a_spec_is_frozen_and_travels() -> None:
    spec = linx.ChildSpec(["sleep", "1"], id="nap", restart=Restart.TRANSIENT)
    assert spec.workload == linx.Workload(["sleep", "1"])
    assert spec.restart == "transient"
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.id = "other"  # type: ignore[misc]
    assert dataclasses.replace(spec, id="other").workload == spec.workload


def test_what_is_spawned() -> None:
    workload = linx.Workload(["x"], shutdown=linx.Kill(1), auto_proceed=True)
    assert linx.ChildSpec(workload, id="x").prepared(parked=True) == workload.replace(
        auto_proceed=False, shutdown=linx.Kill(5.0), stdin=linx.DEVNULL
    )
    spec = linx.ChildSpec(workload.replace(stdin=linx.PIPE), id="x", shutdown=0)
    assert spec.prepared(parked=False) == workload.replace(stdin=linx.PIPE, shutdown=linx.Kill(0))
    assert linx.ChildSpec(linx.Workload(["x"], stdio=linx.PTY), id="x").prepared(parked=False).stdin is linx.INHERIT


def test_the_words_are_those_of_the_documentation() -> None:
    assert [kind.value for kind in Restart] == ["permanent", "transient", "temporary"]
    assert [kind.value for kind in Strategy] == ["one_for_one", "one_for_all", "rest_for_one"]
