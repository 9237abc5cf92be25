"""`Supervisor`: the tasks, the commands and the snapshots round the state machine of supervision.

What to do is decided by `_supervision`, which knows nothing of tasks. Here is what does it. Lines that must hold:

1. Every incarnation is a task of one nursery, and a session of its own: spawned, lived and left there, shielded from
   the caller's cancel scopes. To stop it is to have it leave its session, whose closing is graceful and bounded.
2. Those tasks raise nothing: how an incarnation ended is an event for the state machine. What `supervise` raises, it
   raises itself, outside of the nursery.
3. Events and commands go through `_apply`, a plain function: no two of them can overlap.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import cast

import trio

from linx_trio import _restarts as policy
from linx_trio._child import Child, ChildSpec
from linx_trio._incarnation import Incarnation
from linx_trio._proto.states import TERMINAL
from linx_trio._restarts import End
from linx_trio._session import Session
from linx_trio._supervision import Node, Order, Phase, Start, Supervision, Then
from linx_trio.errors import CalledProcessError, RestartLimitExceeded, StateError
from linx_trio.ready import Check

_log = logging.getLogger("linx_trio")


class SupervisionError(StateError):
    """A command to a supervisor, or about a child, in a state that does not allow it."""

    def __str__(self) -> str:
        return f"{self.verb}: {self.state}"


class _Ticket:
    """A command that waits for a child's next incarnation to be up."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.error: BaseException | None = None

    def settle(self, error: BaseException | None = None) -> None:
        self.error = error
        self.over.set()


class Supervisor:
    """The children of a running `supervise`, and the commands about them. ``nursery.start`` hands it back; do not call.

    Commands may be given by any number of tasks. Of two about the same child the later one counts, except that a
    removal is final; and each of them wins over any restart by policy. Cancelling one stops the waiting only. All of
    them raise `StateError` when the supervisor is ending, `ValueError` for a child that is not there.
    """

    def __init__(
        self, machine: Supervision, intensity: policy.Intensity, on_checkpoint: Check | None, specs: list[ChildSpec]
    ) -> None:
        self._machine = machine
        self._intensity = intensity
        self._on_checkpoint = on_checkpoint
        self._specs = {spec.id: spec for spec in specs}
        self._current: dict[str, Incarnation] = {}
        self._last: dict[str, Incarnation] = {}
        self._tickets: dict[str, list[_Ticket]] = {}
        self._nursery: trio.Nursery | None = None
        self._news = trio.Event()
        self._over = False
        self._fatal: BaseException | None = None

    def __repr__(self) -> str:
        children = ", ".join(f"{child.id!r} {child.state}" for child in self.children())
        return f"<linx_trio.Supervisor{' (over)' if self._over else ''}: {children or 'no children'}>"

    # ---- what is known --------------------------------------------------------------------------------------------

    def children(self) -> tuple[Child, ...]:
        """Snapshots of all children, in their order. Also after the end."""
        return tuple(map(self._snapshot, self._machine))

    def _snapshot(self, node: Node) -> Child:
        current = self._current.get(node.id)
        last = self._last.get(node.id)
        session = None if current is None else current.session
        return Child(
            id=node.id,
            state=node.phase.value,
            pid=None if session is None or session.state in TERMINAL else session.info().host_pid,
            restarts=max(node.number - 1, 0),
            last_outcome=None if last is None else last.outcome,
            last_error=None if last is None else last.error,
            since=node.since,
        )

    def session(self, id: str) -> Session:
        """The session of a child's present incarnation. It is the supervisor's: see `borrow`.

        Raises `StateError` while there is none.
        """
        return self._alive(id, "session")

    def borrow(self, id: str) -> AbstractAsyncContextManager[Session]:
        """Lends the session of a child, so that its streams are not closed before the block is left::

            async with supervisor.borrow("shell") as session:
                await linx.tty.attach(session)

        Supervision goes on meanwhile: the child may end, be stopped, and be started again; the borrower then still
        has the former incarnation's session, which has ended, and can read what that has written.

        Raises `StateError` while the child has no session.
        """
        self._alive(id, "borrow")
        return self._current[id].borrow()

    def _alive(self, id: str, verb: str) -> Session:
        node = self._find(id, verb)
        current = self._current.get(id)
        if current is None or current.session is None:
            raise SupervisionError(verb, f"child {id!r} has no session now (it is {node.phase})")
        return current.session

    # ---- commands -------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def add(self, spec: ChildSpec) -> None:
        """Adds a child, the last in the order, and waits until it is up.

        If it cannot be started, or ends abnormally before it is up, it is not kept, nor started again, and that is
        raised here: the `SetupError`, what ``on_checkpoint`` or ``ready`` raised, `trio.TooSlowError` for its
        ``start_timeout``, or `CalledProcessError`. Raises `ValueError` if there is a child of that id.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not isinstance(spec, ChildSpec):
            raise TypeError(f"spec must be a linx.ChildSpec, not {spec!r}")
        self._check_open("add")
        if spec.id in self._machine:
            raise ValueError(f"there is a child with id={spec.id!r} already (it is {self._machine[spec.id].phase})")
        self._specs[spec.id] = spec
        ticket = self._ticket(spec.id)
        self._apply(lambda now: self._machine.add(spec.id, spec.restart_kind, now))
        await self._await(ticket)

    @trio.lowlevel.enable_ki_protection
    async def restart(self, id: str) -> None:
        """Stops a child, if it runs, starts it without a delay, and waits until it is up. Others are left alone.

        Raises what its start fails with, as `add` does; then its ``restart`` kind says what follows. `StateError` if
        another command stops it meanwhile.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        node = self._find(id, "restart")
        if node.phase is Phase.STOPPING and node.then is Then.REMOVED:
            raise SupervisionError("restart", f"child {id!r} is being removed")
        ticket = self._ticket(id)
        self._apply(lambda now: self._machine.restart(id, now))
        await self._await(ticket)

    @trio.lowlevel.enable_ki_protection
    async def stop(self, id: str) -> None:
        """Stops a child, and waits until nothing is left of it. It stays among the children; `restart` starts it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._find(id, "stop")
        await self._end(id, lambda now: self._machine.stop(id, now))

    @trio.lowlevel.enable_ki_protection
    async def remove(self, id: str) -> None:
        """Stops a child, waits until nothing is left of it, and forgets it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._find(id, "remove")
        await self._end(id, lambda now: self._machine.remove(id, now))

    @trio.lowlevel.enable_ki_protection
    async def shutdown(self) -> None:
        """Stops all children, the last one first, and waits for that; `supervise` returns then. No effect after it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._over:
            self._apply(self._machine.close)
        while not self._over:
            await self._news.wait()

    async def _end(self, id: str, command: Callable[[float], list[Order]]) -> None:
        current = self._current.get(id)
        self._apply(command)
        if current is not None:
            await current.gone.wait()
        else:
            await trio.lowlevel.checkpoint()

    def _check_open(self, verb: str) -> None:
        if self._over or self._machine.closing:
            raise SupervisionError(verb, "the supervisor has ended" if self._over else "the supervisor is ending")

    def _find(self, id: str, verb: str) -> Node:
        if not isinstance(id, str):
            raise TypeError(f"id must be a str, not {id!r}")
        self._check_open(verb)
        if id not in self._machine:
            names = [node.id for node in self._machine]
            near = difflib.get_close_matches(id, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(map(repr, names)) or 'none'}"
            raise ValueError(f"there is no child {id!r}; {hint}")
        return self._machine[id]

    def _ticket(self, id: str) -> _Ticket:
        ticket = _Ticket()
        self._tickets.setdefault(id, []).append(ticket)
        return ticket

    async def _await(self, ticket: _Ticket) -> None:
        await ticket.over.wait()
        if ticket.error is not None:
            raise ticket.error

    def _settle(self, id: str, error: BaseException | None) -> None:
        for ticket in self._tickets.pop(id, ()):
            ticket.settle(error)

    # ---- what happens ---------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def _apply(self, event: Callable[[float], list[Order]]) -> None:
        """One event or command, and what follows from it. No other one can come between."""
        for order in event(trio.current_time()):
            if isinstance(order, Start):
                self._start(order)
            else:
                self._current[order.id].stop()
        for id in list(self._tickets):
            if id not in self._machine or self._machine[id].phase in (Phase.STOPPED, Phase.FINISHED):
                self._settle(id, SupervisionError("start", f"child {id!r} was stopped before it was up"))
        for id in self._specs.keys() - {node.id for node in self._machine}:
            del self._specs[id]
            self._last.pop(id, None)
        news, self._news = self._news, trio.Event()
        news.set()

    def _start(self, order: Start) -> None:
        incarnation = Incarnation(self._specs[order.id], order.number)
        self._current[order.id] = incarnation
        assert self._nursery is not None
        self._nursery.start_soon(self._live, incarnation, name=f"linx: {order.id} #{order.number}")

    @trio.lowlevel.enable_ki_protection
    async def _live(self, incarnation: Incarnation) -> None:
        """The task of one incarnation. Raises nothing."""
        id = incarnation.spec.id
        with trio.CancelScope(shield=True):
            try:
                await incarnation.live(self._on_checkpoint, lambda: self._up(incarnation))
            except BaseException as exc:  # a callback's SystemExit, say: raised by `_run`, when all has been stopped
                self._fatal = self._fatal or exc
                self._apply(self._machine.close)
        incarnation.gone.set()
        incarnation.close_streams()
        del self._current[id]
        self._last[id] = incarnation
        self._ended(incarnation)

    def _up(self, incarnation: Incarnation) -> None:
        id = incarnation.spec.id
        self._apply(lambda now: self._machine.up(id, incarnation.number, now))
        if self._machine[id].phase is Phase.RUNNING:
            self._settle(id, None)

    def _ended(self, incarnation: Incarnation) -> None:
        id = incarnation.spec.id
        end = policy.end_of(incarnation.outcome, incarnation.error)
        by_itself = self._machine[id].phase is not Phase.STOPPING
        if by_itself:
            self._report(incarnation, end)
            self._settle(id, _error_of(incarnation) if end is End.ABNORMAL else None)
        self._apply(lambda now: self._machine.ended(id, incarnation.number, end, now))

    def _report(self, incarnation: Incarnation, end: End) -> None:
        what = incarnation.error or incarnation.outcome
        level = logging.WARNING if end is End.ABNORMAL else logging.INFO
        _log.log(level, "child %r ended: %s", incarnation.spec.id, what)

    # ---- the whole ------------------------------------------------------------------------------------------------

    async def _run(self, task_status: trio.TaskStatus[Supervisor]) -> tuple[Child, ...]:
        interrupts: list[BaseException] = []
        try:
            async with trio.open_nursery() as self._nursery:
                children = [(spec.id, spec.restart_kind) for spec in self._specs.values()]
                self._apply(lambda now: self._machine.begin(children, now))
                try:
                    await self._attend(task_status)
                except (Exception, trio.Cancelled, KeyboardInterrupt) as exc:
                    interrupts.append(exc)
                self._apply(self._machine.close)
                await self._finish(interrupts)
        except BaseExceptionGroup as group:  # a ^C at the very end; the tasks raise nothing
            interrupts += group.exceptions
        self._raise(interrupts)
        return self.children()

    async def _attend(self, task_status: trio.TaskStatus[Supervisor]) -> None:
        """Until all is over by itself, or by too many restarts."""
        alone = task_status is trio.TASK_STATUS_IGNORED
        started = False
        while not self._machine.over and not (alone and not self._specs):
            if not started and self._machine.settled and not self._machine.closing:
                started = True
                task_status.started(self)
            with trio.move_on_at(self._machine.deadline):
                await self._news.wait()
            self._apply(self._machine.tick)
        if not started and not self._machine.closing:
            task_status.started(self)

    async def _finish(self, interrupts: list[BaseException]) -> None:
        with trio.CancelScope(shield=True):
            while not self._machine.over:
                try:
                    await self._news.wait()
                except KeyboardInterrupt as exc:  # trio delivers it to the main task wherever that waits
                    interrupts.append(exc)
        self._over = True
        self._news.set()

    def _raise(self, interrupts: list[BaseException]) -> None:
        """What comes out of `supervise`, if anything does: of several things the one that nobody else would tell."""
        for exc in interrupts:
            if not isinstance(exc, trio.Cancelled):
                raise exc
        if self._fatal is not None:
            raise self._fatal
        if self._machine.culprit is not None:
            last = self._last[self._machine.culprit]
            raise RestartLimitExceeded(
                last.spec.id, self._intensity.max_restarts, self._intensity.max_seconds, last.outcome
            ) from last.error
        if interrupts:
            raise interrupts[0]


def _error_of(incarnation: Incarnation) -> BaseException:
    """Why it could not come up, for whoever waits for that."""
    if incarnation.error is not None:
        return incarnation.error
    outcome = incarnation.outcome
    assert outcome is not None
    session = cast("Session", incarnation.session)
    return CalledProcessError(session.returncode, list(session.workload.arguments), outcome=outcome)
