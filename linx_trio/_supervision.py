"""Supervision as a state machine: what happens to children goes in, what is to be done comes out.

It neither waits nor reads a clock: every call says what time it is, and `deadline` says when to call `tick`. The shell
(`_supervise`) owns processes and tasks, and does what it is told: `Start` an incarnation of a child, `Stop` one.

A child is always in one phase (`Phase`); while it is being stopped, `then` says what becomes of it afterwards. Two
lines keep the order:

- The *stop line*: children that are stopped together, by a strategy or at the end. The last of them is told first,
  and the next one only when that has ended.
- The *start line*: children that are started together, at the beginning or by a strategy. The first of them is
  started, and the next one only when that is up, or has ended for good. Nobody in the line is started while the stop
  line is not empty, or while somebody in it still has to wait for its delay.

A commanded stop or restart of one child is in neither line and holds up nobody else. What a command has said of a
child outweighs what a strategy wants of it; of two commands the later one counts, except that a removal is final.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum

from linx_trio._restarts import RESTARTED, End, Intensity, Restart, Strategy


class Phase(StrEnum):
    WAITING = "waiting"
    """To be started, as soon as it is its turn."""
    BACKOFF = "backoff"
    """To be started, but not before its delay is over."""
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    """Told to end, or in line for that."""
    STOPPED = "stopped"
    """By command; it stays so until a command starts it."""
    FINISHED = "finished"
    """It has ended by itself, and is not restarted; a strategy may still take it along."""


ALIVE = frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPING})


class Then(Enum):
    """What a child that is being stopped is going to be."""

    START = "start"
    STOPPED = "stopped"
    FINISHED = "finished"
    REMOVED = "removed"


class Node:
    """One child, as far as decisions about it go."""

    def __init__(self, id: str, restart: Restart, now: float) -> None:
        self.id = id
        self.restart = restart
        self.phase = Phase.WAITING
        self.since = now
        self.then = Then.START
        self.number = 0
        """How many incarnations have been started; the last one's number."""
        self.failures = 0
        """Restarts in a row, for the delay."""
        self.due = math.inf
        self.in_line = False
        """For its start or for its stop, by its phase."""
        self.told = False
        """To end, while it is being stopped."""
        self.on_trial = False
        """Added by command, and not yet up: if that fails it is dropped, and not restarted."""

    def enter(self, phase: Phase, now: float) -> None:
        if phase is not self.phase:
            self.phase, self.since = phase, now


@dataclass(frozen=True, slots=True)
class Start:
    id: str
    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    id: str
    number: int


Order = Start | Stop


class Supervision:
    """The children in their order, and what has to be done about them. Every call returns the orders that follow."""

    def __init__(
        self,
        strategy: Strategy,
        intensity: Intensity,
        delay: Callable[[int], float],
        reset_after: float = math.inf,
    ) -> None:
        self._strategy = strategy
        self._intensity = intensity
        self._delay = delay
        self._reset_after = reset_after
        self._nodes: dict[str, Node] = {}
        self.closing = False
        self.culprit: str | None = None
        """The child that was restarted too often, and that ended all of it thereby."""

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __contains__(self, id: object) -> bool:
        return id in self._nodes

    def __getitem__(self, id: str) -> Node:
        return self._nodes[id]

    @property
    def deadline(self) -> float:
        """When `tick` has something to do."""
        return min((node.due for node in self if node.phase is Phase.BACKOFF), default=math.inf)

    @property
    def settled(self) -> bool:
        """Nobody is in line any more, to be started or stopped."""
        return not any(node.in_line for node in self)

    @property
    def over(self) -> bool:
        """Nothing runs, and nothing will unless by a command; a supervisor without children is not over by itself."""
        if self.closing:
            return not any(node.phase in ALIVE for node in self)
        return bool(self._nodes) and all(node.phase is Phase.FINISHED for node in self)

    # ---- what happens ---------------------------------------------------------------------------------------------

    def begin(self, children: Iterable[tuple[str, Restart]], now: float) -> list[Order]:
        """All children of the beginning, in one line."""
        for id, restart in children:
            self._nodes[id] = node = Node(id, restart, now)
            node.in_line = True
        return self._settle(now)

    def tick(self, now: float) -> list[Order]:
        """Time has passed."""
        for node in self:
            if node.phase is Phase.BACKOFF and node.due <= now:
                node.enter(Phase.WAITING, now)
        return self._settle(now)

    def up(self, id: str, number: int, now: float) -> list[Order]:
        """An incarnation runs, and is ready."""
        node = self._nodes[id]
        if node.phase is Phase.STARTING and node.number == number:
            node.enter(Phase.RUNNING, now)
            node.in_line = node.on_trial = False
        return self._settle(now)

    def ended(self, id: str, number: int, end: End, now: float) -> list[Order]:
        """Nothing is left of an incarnation, for whatever reason."""
        node = self._nodes[id]
        if node.phase not in ALIVE or node.number != number:
            raise AssertionError(f"incarnation {number} of {id!r} cannot end: {node.phase}, {node.number}")
        if node.phase is Phase.STOPPING:
            self._stopped(node, now)
        elif node.on_trial and end is End.ABNORMAL:
            del self._nodes[id]
        elif RESTARTED[node.restart][end]:
            self._restart(node, now)
        else:
            self._rest(node, Phase.FINISHED, now)
        return self._settle(now)

    def _stopped(self, node: Node, now: float) -> None:
        match node.then:
            case Then.START:
                node.enter(Phase.WAITING, now)
            case Then.STOPPED:
                self._rest(node, Phase.STOPPED, now)
            case Then.FINISHED:
                self._rest(node, Phase.FINISHED, now)
            case Then.REMOVED:
                del self._nodes[node.id]

    def _rest(self, node: Node, phase: Phase, now: float) -> None:
        node.enter(phase, now)
        node.in_line = node.on_trial = False

    def _restart(self, node: Node, now: float) -> None:
        """`node` has ended by itself, and its table says that it is started again; its strategy, who else."""
        if node.phase is Phase.RUNNING and now - node.since >= self._reset_after:
            node.failures = 0
        if self._intensity.exceeded(now):
            self.culprit = node.id
            self._rest(node, Phase.FINISHED, now)
            self._close(now)
            return
        node.on_trial = False
        node.failures += 1
        node.due = now + self._delay(node.failures)
        node.enter(Phase.BACKOFF if node.due > now else Phase.WAITING, now)
        if self._strategy is Strategy.ONE_FOR_ONE:
            return
        node.in_line = True
        others = list(self)
        if self._strategy is Strategy.REST_FOR_ONE:
            others = others[others.index(node) :]
        for other in others:
            if other is not node:
                self._take_along(other, now)

    def _take_along(self, node: Node, now: float) -> None:
        """Another one's restart takes it along. (Who waits to be started is in line already, with such a strategy.)"""
        temporary = node.restart is Restart.TEMPORARY
        match node.phase:
            case Phase.STARTING | Phase.RUNNING:
                self._stop(node, Then.FINISHED if temporary else Then.START, now, in_line=True)
            case Phase.STOPPING:
                node.in_line |= node.then is Then.START
            case Phase.FINISHED if not temporary:
                node.enter(Phase.WAITING, now)
                node.in_line = True

    def _stop(self, node: Node, then: Then, now: float, *, in_line: bool) -> None:
        node.enter(Phase.STOPPING, now)
        node.then, node.in_line, node.told = then, in_line, False

    # ---- commands -------------------------------------------------------------------------------------------------

    def add(self, id: str, restart: Restart, now: float) -> list[Order]:
        """One child more, the last in the order."""
        self._nodes[id] = node = Node(id, restart, now)
        node.on_trial = True
        node.in_line = self._strategy is not Strategy.ONE_FOR_ONE
        return self._settle(now)

    def stop(self, id: str, now: float) -> list[Order]:
        """The child ends, and stays as it is then."""
        node = self._nodes[id]
        if node.phase in ALIVE:
            self._command(node, Then.STOPPED, now)
        else:
            self._rest(node, Phase.STOPPED, now)
        return self._settle(now)

    def remove(self, id: str, now: float) -> list[Order]:
        """The child ends, and is forgotten."""
        node = self._nodes[id]
        if node.phase in ALIVE:
            self._command(node, Then.REMOVED, now)
        else:
            del self._nodes[id]
        return self._settle(now)

    def restart(self, id: str, now: float) -> list[Order]:
        """The child ends, if it runs, and starts anew, without a delay."""
        node = self._nodes[id]
        node.failures = 0
        match node.phase:
            case Phase.STARTING | Phase.RUNNING | Phase.STOPPING:
                self._command(node, Then.START, now)
            case Phase.BACKOFF | Phase.STOPPED | Phase.FINISHED:
                node.enter(Phase.WAITING, now)
        return self._settle(now)

    def close(self, now: float) -> list[Order]:
        """All children end, in the reverse order."""
        self._close(now)
        return self._settle(now)

    def _command(self, node: Node, then: Then, now: float) -> None:
        if node.phase is not Phase.STOPPING:
            self._stop(node, then, now, in_line=False)
        elif node.then is not Then.REMOVED:
            if node.then is not Then.START or then is not Then.START:  # else a strategy's order may stand
                node.in_line = node.in_line and node.told  # what is not yet told need not wait for its turn
            node.then = then

    def _close(self, now: float) -> None:
        self.closing = True
        for node in self:
            match node.phase:
                case Phase.STARTING | Phase.RUNNING:
                    self._stop(node, Then.STOPPED, now, in_line=True)
                case Phase.STOPPING if node.then is Then.START:
                    node.then = Then.STOPPED
                case Phase.WAITING | Phase.BACKOFF:
                    self._rest(node, Phase.STOPPED, now)

    # ---- what follows ---------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Order]:
        return [*self._stops(), *self._starts(now)]

    def _stops(self) -> Iterator[Order]:
        stopping = [node for node in self if node.phase is Phase.STOPPING]
        line = [node for node in stopping if node.in_line]
        for node in stopping:
            if not node.told and (not node.in_line or node is line[-1]):
                node.told = True
                yield Stop(node.id, node.number)

    def _starts(self, now: float) -> Iterator[Order]:
        if self.closing:
            return
        line = [node for node in self if node.in_line]
        first = line[0] if all(node.phase is Phase.WAITING for node in line) and line else None
        for node in self:
            if node.phase is Phase.WAITING and (not node.in_line or node is first):
                node.enter(Phase.STARTING, now)
                node.number += 1
                yield Start(node.id, node.number)
