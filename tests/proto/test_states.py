"""The tables of a session's life: complete, and with no way to a second end."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from linx_trio._proto import messages as m
from linx_trio._proto import states
from linx_trio._proto.states import EVENT_TABLE, TERMINAL, VERB_TABLE, Action, State, diagram
from linx_trio.errors import AlreadyRunning, NoProcess, NotReady, StateError
from tests.proto.events import CLASSES, ENDS, Classes
from tests.proto.strategies import relaxed

NAMES = ("starting", "ready", "running", "exited", "signaled", "aborted", "failed")


def test_the_states_are_those_of_the_documentation() -> None:
    assert tuple(state.value for state in State) == NAMES
    assert tuple(map(str, State)) == NAMES
    assert {str(state) for state in TERMINAL} == {"exited", "signaled", "aborted", "failed"}


def test_every_state_has_a_row_in_every_table() -> None:
    assert set(EVENT_TABLE) == set(State)
    assert set(VERB_TABLE) == {"proceed", "abort", "take_steps", "signal", "kill"}
    for row in VERB_TABLE.values():
        assert set(row) == set(State)


def test_nothing_but_idle_comes_after_the_end_and_that_never_before() -> None:
    for state, row in EVENT_TABLE.items():
        assert (set(row) <= {m.Idle}) == (state in TERMINAL), state
        assert (m.Idle in row) == (state in {State.EXITED, State.SIGNALED}), state
        assert row.get(m.Idle, state) is state


def test_every_event_of_the_vocabulary_is_expected_somewhere() -> None:
    assert {cls for row in EVENT_TABLE.values() for cls in row} == set(CLASSES)


def test_an_event_that_ends_a_session_always_does_and_no_other_ever() -> None:
    for row in EVENT_TABLE.values():
        for cls, target in row.items():
            assert (target in TERMINAL) == (cls in {*ENDS, m.Idle}), cls


@pytest.mark.parametrize(
    ("cls", "target"),
    [
        (m.Parked, State.READY),
        (m.Started, State.RUNNING),
        (m.Exit, State.EXITED),
        (m.Began, State.RUNNING),
        (m.Over, State.EXITED),
        (m.Ran, State.EXITED),
        (m.Kill, State.SIGNALED),
        (m.Abortion, State.ABORTED),
        (m.Refusal, State.FAILED),
        (m.Lost, State.FAILED),
    ],
)
def test_what_an_event_leads_to_does_not_depend_on_where_it_comes(cls: Classes, target: State) -> None:
    assert {row[cls] for row in EVENT_TABLE.values() if cls in row} == {target}


def test_a_workload_that_never_ran_cannot_have_exited_nor_one_that_runs_be_aborted() -> None:
    assert [state for state in State if m.Exit in EVENT_TABLE[state]] == [State.RUNNING]
    assert [state for state in State if m.Over in EVENT_TABLE[state]] == [State.RUNNING]
    assert [state for state in State if m.Ran in EVENT_TABLE[state]] == [State.STARTING]
    assert [state for state in State if m.Began in EVENT_TABLE[state]] == [State.STARTING]
    assert [state for state in State if m.Started in EVENT_TABLE[state]] == [State.READY]
    assert [state for state in State if m.Parked in EVENT_TABLE[state]] == [State.STARTING]
    for cls in (m.Abortion, m.Refusal):
        assert cls not in EVENT_TABLE[State.RUNNING]


def test_steps_are_answered_while_it_is_parked_and_change_nothing_about_that() -> None:
    for cls in (m.Opened, m.Stepped, m.Remains):
        assert {state: row[cls] for state, row in EVENT_TABLE.items() if cls in row} == {State.READY: State.READY}


def test_wherever_a_session_lives_its_workload_can_be_killed_and_its_agent_die() -> None:
    for state in set(State) - TERMINAL:
        assert {m.Kill, m.Lost, m.UsageReport} <= set(EVENT_TABLE[state])


def test_every_state_is_reached_and_an_end_can_be_reached_from_each() -> None:
    reached = {State.STARTING}
    for _ in State:
        reached |= {target for state in reached for target in EVENT_TABLE[state].values()}
    assert reached == set(State)


class Life(RuleBasedStateMachine):
    """Any events in any order: those that the table refuses change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.STARTING
        self.accepted: list[Classes] = []

    @rule(cls=st.sampled_from(CLASSES))
    def says(self, cls: Classes) -> None:
        target = EVENT_TABLE[self.state].get(cls)
        if target is not None:
            self.accepted.append(cls)
            self.state = target

    @precondition(lambda self: self.state not in TERMINAL)
    @rule(data=st.data())
    def says_something_legal(self, data: st.DataObject) -> None:
        self.says(data.draw(st.sampled_from(list(EVENT_TABLE[self.state]))))

    @invariant()
    def at_most_one_end_and_nothing_behind_it(self) -> None:
        ends = [cls for cls in self.accepted if cls in ENDS]
        assert len(ends) <= 1
        said = [cls for cls in self.accepted if cls is not m.Idle]  # which is not about the session
        assert not ends or said[-1] is ends[0]
        assert bool(ends) == (self.state in TERMINAL)

    @invariant()
    def running_only_behind_ready_and_each_once(self) -> None:
        several: dict[Classes, list[Classes]] = {m.Began: [m.Parked, m.Started], m.Over: [m.Exit]}
        told = [one for cls in self.accepted for one in several.get(cls, [cls])]
        milestones = [cls for cls in told if cls in (m.Parked, m.Started, m.Exit)]
        assert milestones == [m.Parked, m.Started, m.Exit][: len(milestones)]


LifeTest = Life.TestCase
LifeTest.settings = relaxed


# ---- verbs ------------------------------------------------------------------------------------------------------

VERBS = [
    ("proceed", "starting", Action.SEND),
    ("proceed", "ready", Action.SEND),
    ("proceed", "running", Action.NOTHING),
    ("abort", "starting", Action.SEND),
    ("abort", "ready", Action.SEND),
    ("abort", "running", AlreadyRunning),
    ("take_steps", "starting", NotReady),
    ("take_steps", "ready", Action.SEND),
    ("take_steps", "running", AlreadyRunning),
    ("signal", "starting", Action.SEND),
    ("signal", "ready", Action.SEND),
    ("signal", "running", Action.SEND),
    *(
        (verb, end, NoProcess)
        for verb in ("proceed", "abort", "take_steps", "signal")
        for end in sorted(map(str, TERMINAL))
    ),
    *(("kill", state, Action.SEND) for state in NAMES),
]


def test_the_list_of_verbs_below_is_complete() -> None:
    assert sorted((verb, state) for verb, state, _ in VERBS) == sorted(itertools.product(VERB_TABLE, NAMES))


@pytest.mark.parametrize(("verb", "state", "expected"), VERBS)
def test_rule(verb: str, state: str, expected: Action | type[StateError]) -> None:
    if isinstance(expected, Action):
        assert states.rule(verb, State(state)) is expected
        return
    with pytest.raises(StateError) as caught:
        states.rule(verb, State(state))
    assert type(caught.value) is expected
    assert (caught.value.verb, caught.value.state) == (verb, state)
    assert verb in str(caught.value)
    assert state in str(caught.value)


# ---- the picture ------------------------------------------------------------------------------------------------

AT_ONCE = (m.Began, m.Ran)
"""Several steps at once."""


def test_the_diagram_has_every_state_and_every_step() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert "    [*] --> starting" in lines
    arrows = {line.strip().split(":")[0] for line in lines[2:]}
    wanted = {
        f"{state} --> {target}"
        for state, row in EVENT_TABLE.items()
        for cls, target in row.items()
        if target != state and cls not in AT_ONCE
    }
    assert arrows == wanted | {f"{state} --> [*]" for state in TERMINAL}
    for name in NAMES:
        assert any(name in arrow.split() for arrow in arrows)


def test_each_arrow_of_the_diagram_is_drawn_once_and_says_why() -> None:
    lines = [line for line in diagram().splitlines() if "-->" in line]
    arrows = [line.split(":")[0] for line in lines]
    assert len(set(arrows)) == len(arrows)
    for line in lines:
        assert "[*]" in line or line.split(":")[1].strip()


@relaxed
@given(st.lists(st.sampled_from(CLASSES), max_size=12))
def test_the_picture_and_the_table_tell_the_same_story(said: list[Classes]) -> None:
    drawn = {line.strip().split(":")[0] for line in diagram().splitlines()}
    state = State.STARTING
    for cls in said:
        target = EVENT_TABLE[state].get(cls, state)
        assert target is state or cls in AT_ONCE or f"{state} --> {target}" in drawn
        state = target
