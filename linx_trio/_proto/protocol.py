"""One session's conversation, without any I/O: bytes and fds in, events out.

fds are bytes' companions, but they keep no frame boundaries: a read may deliver an fd together with an earlier frame
that has none. So they wait in a queue, and a message takes as many as its kind owns. That number is
`messages.FDS_OWNED`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from linx_trio._proto import messages as m
from linx_trio._proto.framing import FrameDecoder, FramingError
from linx_trio._proto.states import BEFORE_SPAWNED, EVENT_TABLE, TERMINAL, State

_FIRST = (m.Spawned, m.Began, m.Ran)

_EXPECTED = {
    spawned: {
        state: {k: target for k, target in row.items() if (k not in _FIRST if spawned else k in BEFORE_SPAWNED)}
        for state, row in EVENT_TABLE.items()
    }
    for spawned in (False, True)
}
"""The state that an event leads to: by whether there is a process yet, by state, by the event's class."""


class SessionProtocol:
    """Feed it what was read; it keeps the state and refuses, as `messages.Nonsense`, what the tables do not allow.

    After `Nonsense` nothing more may be fed. fds that no message claimed are in `unclaimed` for the owner to close.
    """

    def __init__(self) -> None:
        self.state = State.STARTING
        self.unclaimed: deque[int] = deque()
        self._frames = FrameDecoder()
        self._spawned = self._idle = False

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> Iterator[tuple[m.Message, int | None]]:
        """Each event that is complete now, with its fd where it has one; one by one, so that nonsense spoils none
        before it.
        """
        self.unclaimed.extend(fds)
        problem = None
        try:
            payloads = self._frames.feed(data)
        except FramingError as exc:
            payloads, problem = list(exc.frames), exc
        for payload in payloads:
            event = self._take(m.parse_event(payload))
            if event is not None:
                yield event
        if problem is not None:
            raise m.Nonsense(str(problem), data[:64])

    def _take(self, event: m.Message) -> tuple[m.Message, int | None] | None:
        kind = type(event)
        target = _EXPECTED[self._spawned][self.state].get(kind)
        if target is None or self._idle:
            if kind is m.Lost and self.state in TERMINAL:
                self._idle = False
                return None  # killed after the workload's end: nothing that this session could tell changes
            raise m.Nonsense(f"{m.show(event)} in state {self.state}", event)
        fd = None
        if kind in m.FDS_OWNED:
            if not self.unclaimed:
                raise m.Nonsense(f"{m.show(event)} came without its fd", event)
            fd = self.unclaimed.popleft()
        self.state = target
        if kind in _FIRST:
            self._spawned = True
        elif kind is m.Idle:
            self._idle = True
        return event, fd

    @property
    def is_idle(self) -> bool:
        """The monitor has said that it waits for another request; and not a byte since."""
        return self._idle and not self._frames.pending

    def end_of_file(self) -> None:
        """The stream is at its end. In the middle of a frame, that is `Nonsense`."""
        if self._frames.pending:
            raise m.Nonsense(f"the stream ends in the middle of a frame ({self._frames.pending} bytes of it)")
