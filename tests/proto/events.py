"""Events as an agent writes them, and whole conversations: written out here, not derived from the tables under test."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import encode_frame
from linx_trio._proto.states import EVENT_TABLE, State

Classes = type[m.Message]

CLASSES: tuple[Classes, ...] = (
    m.Spawned,
    m.Parked,
    m.Opened,
    m.Stepped,
    m.Started,
    m.Exit,
    m.Kill,
    m.Abortion,
    m.Idle,
    m.Refusal,
    m.Remains,
    m.Degraded,
    m.UsageReport,
    m.Began,
    m.Over,
    m.Ran,
    m.Lost,
)

ENDS: tuple[Classes, ...] = (m.Exit, m.Kill, m.Abortion, m.Refusal, m.Over, m.Ran, m.Lost)


def term_of(event: m.Message) -> Any:
    """The term of an event."""
    match event:
        case m.Spawned(pid):
            return ("status", "spawned", pid)
        case m.Parked(pid):
            return ("status", "ready", pid)
        case m.Opened():
            return ("status", "opened")
        case m.Stepped():
            return ("status", "stepped")
        case m.Started():
            return ("status", "running")
        case m.Exit(code):
            return ("status", "exited", code)
        case m.Kill(signum):
            return ("status", "signaled", signum)
        case m.Abortion(pid):
            return ("status", "aborted", pid)
        case m.Idle():
            return ("status", "idle")
        case m.Refusal(errno, stage, index):
            return ("error", errno, stage, index)
        case m.Remains(errno, stage, index):
            return ("remains", errno, stage, index)
        case m.Degraded(errno, stage, index):
            return ("degraded", errno, stage, index)
        case m.Lost(status):
            return ("lost", status)
        case m.Began():
            return ("began", *event)
        case m.Over():
            return ("over", *event)
        case m.Ran():
            return ("ran", *event)
        case m.UsageReport(user_time, system_time, wall_time, max_rss, core_dumped):
            return ("usage", user_time, system_time, wall_time, max_rss, core_dumped)


def frame_of(event: m.Message) -> bytes:
    """The same as it travels."""
    return encode_frame(etf.encode(term_of(event)))


pids = st.integers(1, 2**22)
errnos = st.integers(1, 133)
counts = st.integers(0, 2**40)
stages = st.sampled_from(m.STAGES)
indices = st.integers(-1, 20)

_BY_CLASS: dict[Classes, st.SearchStrategy[m.Message]] = {
    m.Spawned: st.builds(m.Spawned, pids),
    m.Parked: st.builds(m.Parked, pids),
    m.Opened: st.just(m.Opened()),
    m.Stepped: st.just(m.Stepped()),
    m.Started: st.just(m.Started()),
    m.Exit: st.builds(m.Exit, st.integers(0, 255)),
    m.Kill: st.builds(m.Kill, st.integers(1, 64)),
    m.Abortion: st.builds(m.Abortion, pids),
    m.Idle: st.just(m.Idle()),
    m.Refusal: st.builds(m.Refusal, errnos, stages, indices),
    m.Remains: st.builds(m.Remains, errnos, stages, indices),
    m.Degraded: st.builds(m.Degraded, errnos, stages, indices),
    m.UsageReport: st.builds(m.UsageReport, counts, counts, counts, counts, st.booleans()),
    m.Began: st.builds(m.Began, pids, pids),
    m.Over: st.builds(m.Over, st.integers(0, 255), counts, counts, counts, counts),
    m.Ran: st.builds(m.Ran, pids, pids, st.integers(0, 255), counts, counts, counts, counts),
    m.Lost: st.builds(m.Lost, st.integers(-64, 255)),
}


def events() -> st.SearchStrategy[m.Message]:
    return st.one_of(*(_BY_CLASS[cls] for cls in CLASSES))


@st.composite
def conversations(draw: st.DrawFn) -> list[m.Message]:
    """What an agent may say in one session, up to its end or cut short. `Spawned` comes once, first, if at all, and
    `Began` and `Ran` only in its place.
    """
    if not draw(st.integers(0, 9)):
        return [draw(_BY_CLASS[draw(st.sampled_from([m.Refusal, m.Abortion, m.Lost]))])]
    if not draw(st.integers(0, 9)):
        return [draw(_BY_CLASS[m.Ran]), *draw(st.sampled_from([[], [m.Idle()]]))]
    said = [draw(_BY_CLASS[draw(st.sampled_from([m.Spawned, m.Began]))])]
    state = EVENT_TABLE[State.STARTING][type(said[0])]
    for _ in range(draw(st.integers(0, 8))):
        possible = [cls for cls in EVENT_TABLE[state] if cls not in (m.Spawned, m.Began, m.Ran)]
        if not possible:
            break
        event = draw(_BY_CLASS[draw(st.sampled_from(possible))])
        said.append(event)
        if isinstance(event, m.Idle):
            break
        state = EVENT_TABLE[state][type(event)]
    return said
