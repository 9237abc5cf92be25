"""What a probe has found: a mapping, data for others, text for people."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

import linx_trio as linx
from linx_trio._probe import TRIALS

USER = linx.Feature(
    "user",
    "namespaces",
    "a user namespace",
    works=False,
    why="no",
    remedy="say please",
    cause="c",
    stage="clone",
    errno=1,
)
NET = linx.Feature("net", "namespaces", "a network", works=False, why="it needs user", cause="c", needs="user")
UTS = linx.Feature("uts", "namespaces", "a name", works=False, why="no", remedy="say please", cause="c")
PTY = linx.Feature("pty", "terminals", "a terminal", works=True, detail="80x24")
AGENT = linx.Feature("agent", "terminals", "the agent", works=True)
PROBE = linx.Probe((USER, NET, UTS, PTY, AGENT), "1.2", "6.1", 1000)

TEXT = """\
linx-trio 1.2 on Linux 6.1, as uid 1000

namespaces
  user   does not: no: say please
  net    does not: it needs user
  uts    does not: as user

terminals
  pty    works: 80x24
  agent  works

2 of 5 work here"""


def test_the_text() -> None:
    assert str(PROBE) == TEXT
    assert str(USER) == "user: does not: no: say please"
    assert str(linx.Probe((), "1.2", "6.1", 0)).endswith("0 of 0 work here")


def test_a_mapping() -> None:
    assert PROBE["pty"] is PTY
    assert list(PROBE) == ["user", "net", "uts", "pty", "agent"]
    assert dict(PROBE)["net"] is NET
    assert len(PROBE) == 5
    assert "pty" in PROBE
    assert "typo" not in PROBE
    with pytest.raises(KeyError):
        PROBE["typo"]


def test_features_are_true_where_they_work() -> None:
    assert PTY
    assert not USER
    assert PROBE.failed == (USER, NET, UTS)
    assert PROBE.causes() == {"c": (USER, NET, UTS)}


def test_data() -> None:
    plain = json.loads(json.dumps(PROBE.to_dict()))
    assert plain == PROBE.to_dict()
    assert plain["features"]["user"]["cause"] == "c"
    assert (plain["version"], plain["kernel"], plain["uid"]) == ("1.2", "6.1", 1000)
    assert plain["features"]["user"] == dataclasses.asdict(USER)
    assert pickle.loads(pickle.dumps(PROBE)) == PROBE
    assert hash(PROBE) == hash(pickle.loads(pickle.dumps(PROBE)))


def test_all_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROBE.uid = 0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        USER.works = True  # type: ignore[misc]


@pytest.mark.parametrize("name", TRIALS)
def test_trials(name: str) -> None:
    """What a trial needs is there, and is tried without it."""
    trial = TRIALS[name]
    assert trial.name == name
    assert trial.title
    seen = set()
    waiting = [*trial.needs]
    while waiting:
        needed = waiting.pop()
        assert needed in TRIALS
        assert needed != name
        if needed not in seen:
            seen.add(needed)
            waiting += TRIALS[needed].needs
    assert all(kind == "user" or {kind, f"root:{kind}"} <= TRIALS.keys() for kind in trial.kinds or ())


@pytest.mark.parametrize(("name", "error"), [("usr", ValueError), ("", ValueError), (3, TypeError)])
def test_unknown_features(name: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        linx.probe("user", name)
    assert repr(name) in str(caught.value)
    if name == "usr":
        assert "did you mean 'user'?" in str(caught.value)
