"""The session's life as two tables: event by state, and verb by state.

A state without a row for an event does not allow it: an agent that says it all the same speaks nonsense. The terminal
states allow nothing but `Idle`, which is about the monitor, so a second terminal event cannot happen. `diagram()`
draws the tables; the documentation's picture is its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum

from linx_trio._proto import messages as m
from linx_trio.errors import AlreadyRunning, NoProcess, NotReady, StateError


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    EXITED = "exited"
    SIGNALED = "signaled"
    ABORTED = "aborted"
    FAILED = "failed"


TERMINAL = frozenset({State.EXITED, State.SIGNALED, State.ABORTED, State.FAILED})

EVENT_TABLE: Mapping[State, Mapping[type[m.Message], State]] = {
    State.STARTING: {
        m.Spawned: State.STARTING,
        m.Degraded: State.STARTING,
        m.Parked: State.READY,
        m.UsageReport: State.STARTING,
        m.Kill: State.SIGNALED,
        m.Abortion: State.ABORTED,
        m.Refusal: State.FAILED,
        m.Began: State.RUNNING,
        m.Ran: State.EXITED,
        m.Lost: State.FAILED,
    },
    State.READY: {
        m.Degraded: State.READY,
        m.Opened: State.READY,
        m.Stepped: State.READY,
        m.Remains: State.READY,
        m.Started: State.RUNNING,
        m.UsageReport: State.READY,
        m.Kill: State.SIGNALED,
        m.Abortion: State.ABORTED,
        m.Refusal: State.FAILED,
        m.Lost: State.FAILED,
    },
    State.RUNNING: {
        m.UsageReport: State.RUNNING,
        m.Exit: State.EXITED,
        m.Over: State.EXITED,
        m.Kill: State.SIGNALED,
        m.Lost: State.FAILED,
    },
    State.EXITED: {m.Idle: State.EXITED},
    State.SIGNALED: {m.Idle: State.SIGNALED},
    State.ABORTED: {},
    State.FAILED: {},
}


BEFORE_SPAWNED: frozenset[type[m.Message]] = frozenset({m.Spawned, m.Abortion, m.Refusal, m.Began, m.Ran, m.Lost})
"""What may come while there is no process yet. `Spawned` itself comes once, and `Began` or `Ran` instead of it."""


class Action(Enum):
    """What a verb does where it is legal."""

    SEND = "sent to the agent"
    NOTHING = "no effect"


Rule = Action | type[StateError]

_ENDED: Mapping[State, Rule] = dict.fromkeys(TERMINAL, NoProcess)

VERB_TABLE: Mapping[str, Mapping[State, Rule]] = {
    "proceed": {
        State.STARTING: Action.SEND,
        State.READY: Action.SEND,
        State.RUNNING: Action.NOTHING,
        **_ENDED,
    },
    "abort": {State.STARTING: Action.SEND, State.READY: Action.SEND, State.RUNNING: AlreadyRunning, **_ENDED},
    "take_steps": {State.STARTING: NotReady, State.READY: Action.SEND, State.RUNNING: AlreadyRunning, **_ENDED},
    "signal": {State.STARTING: Action.SEND, State.READY: Action.SEND, State.RUNNING: Action.SEND, **_ENDED},
    # What the workload left behind can be killed after its own end too.
    "kill": dict.fromkeys(State, Action.SEND),
}


def rule(verb: str, state: State) -> Action:
    """What `verb` does in `state`, or the `StateError` that says why not."""
    found = VERB_TABLE[verb][state]
    if isinstance(found, Action):
        return found
    raise found(verb, str(state))


_ARROWS = {
    m.Parked: "set-up done",
    m.Started: "proceed: execve succeeded",
    m.Exit: "exit",
    m.Kill: "killed",
    m.Abortion: "abort",
    m.Refusal: "refused",
    m.Lost: "agent died",
}


_AT_ONCE = (m.Began, m.Over, m.Ran)
"""What is said in the place of several others, whose arrows there are."""


def diagram() -> str:
    """The event table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> starting"]
    for state, row in EVENT_TABLE.items():
        arrows: dict[State, list[str]] = {}
        for event, target in row.items():
            if target is not state and event not in _AT_ONCE:
                arrows.setdefault(target, []).append(_ARROWS[event])
        lines += [f"    {state} --> {target}: {', '.join(why)}" for target, why in arrows.items()]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join(lines)
