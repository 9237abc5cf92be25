"""`supervise`: children that are started in order, restarted by policy, and stopped in the reverse order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio

from linx_trio import _restarts as policy
from linx_trio._child import Child, ChildSpec
from linx_trio._restarts import Backoff, Strategy
from linx_trio._supervision import Supervision
from linx_trio._supervisor import Supervisor
from linx_trio.ready import Check

__all__ = ["Backoff", "Child", "ChildSpec", "Supervisor", "supervise"]

DEFAULT_BACKOFF = Backoff()


@trio.lowlevel.enable_ki_protection
async def supervise(
    children: Iterable[ChildSpec],
    *,
    strategy: str = "one_for_one",
    max_restarts: float = 3,
    max_seconds: float = 5.0,
    backoff: Backoff | float = DEFAULT_BACKOFF,
    on_checkpoint: Check | None = None,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> tuple[Child, ...]:
    """Keeps children running, as ``supervisor(3)`` of OTP does::

        async with trio.open_nursery() as nursery:
            supervisor = await nursery.start(linx.supervise, [linx.ChildSpec(["nginx"], id="web")])
            ...
            await supervisor.restart("web")

    They are started in their order, each when the one before it is up. Whether a child that ended by itself is started
    again is said by its ``restart``. Exit status 0 is a normal end, an abort is a shutdown, and all else is abnormal:
    another status, a signal, a `SetupError`, the agent's death, an exception of `on_checkpoint` or ``ready``, and
    ``start_timeout``.

    Args:
        children: in the order of their start.
        strategy: who is stopped and started again together with a child: ``"one_for_one"``: nobody; ``"one_for_all"``:
            all the others; ``"rest_for_one"``: those after it.
        max_restarts, max_seconds: more restarts within so many seconds are too many. ``max_restarts=math.inf``: never.
        backoff: how long to wait before a restart: a `Backoff`, or always so many seconds.
        on_checkpoint: an async function that is called with each incarnation's session while that is parked.
        task_status: ``await nursery.start(linx.supervise, children)`` returns the `Supervisor`, once all are up.

    Returns the last snapshots, once every child has ended for good (with ``nursery.start`` a supervisor that has no
    children waits for some), or after `Supervisor.shutdown`.

    Raises:
        TypeError, ValueError: before anything is started, naming the argument and the value.
        RestartLimitExceeded: there were too many restarts.

    In whatever way it ends, all children have been stopped, the last one first, each with its own ``shutdown`` seconds.
    That is shielded from cancellation, and bounded by their sum. No exception is wrapped in an ``ExceptionGroup``.
    """
    specs = _checked(children)
    intensity = policy.check_intensity(max_restarts, max_seconds)
    checked = policy.check_backoff(backoff)
    machine = Supervision(
        policy.check_word(strategy, Strategy, "strategy"), intensity, checked.delays(), checked.reset_after
    )
    if on_checkpoint is not None and not callable(on_checkpoint):
        raise TypeError(f"on_checkpoint must be an async function of a session, or None, not {on_checkpoint!r}")
    await trio.lowlevel.checkpoint()
    return await Supervisor(machine, intensity, on_checkpoint, specs)._run(task_status)


def _checked(children: Any) -> list[ChildSpec]:
    specs: list[ChildSpec] = []
    if isinstance(children, (ChildSpec, str, bytes)):
        raise TypeError(f"children must be an iterable of linx.ChildSpec, not {children!r}")
    for i, spec in enumerate(children):
        if not isinstance(spec, ChildSpec):
            raise TypeError(f"children[{i}] must be a linx.ChildSpec, not {spec!r}")
        if any(spec.id == other.id for other in specs):
            raise ValueError(f"children[{i}]: there are two children with id={spec.id!r}")
        specs.append(spec)
    return specs
