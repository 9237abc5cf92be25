"""`probe`: what works here, why the rest does not, and what to do about it."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from linx_trio import _probe_cgroups, _probe_nets, _probe_trials
from linx_trio._machine import Machine
from linx_trio._probe_bench import Bench, Trial
from linx_trio._probe_report import Feature, Probe
from linx_trio._version import __version__

__all__ = ["Feature", "Probe", "probe"]

TRIALS: dict[str, Trial] = {
    trial.name: trial
    for trial in (
        *_probe_trials.AGENT_TRIALS,
        *_probe_trials.NAMESPACE_TRIALS,
        *_probe_trials.ID_TRIALS,
        *_probe_trials.MOUNT_TRIALS,
        *_probe_nets.TRIALS,
        *_probe_cgroups.TRIALS,
        *_probe_trials.PRIVILEGE_TRIALS,
        *_probe_trials.SANDBOX_TRIALS,
    )
}


def probe(*features: str) -> Probe:
    """Tries what this package can do, each feature in a throw-away child, and says of each whether it works here; if it
    does not, why, and what to do.

    It is for this process as it is now: its ids, capabilities, namespaces, cgroup. Nothing of it is left: children,
    namespaces and links are gone when it returns. It takes a second, and blocks: so it does in a task of `trio.run`,
    where ``await trio.to_thread.run_sync(linx.probe)`` lets the others go on. It needs no `trio.run`.

    Args:
        features: names of those to try (``"user"``, ``"net:veth"``), see docs/doctor.md; what they need is tried as
            well, and not reported. None: all.

    Raises `ValueError` for a name that is none. What goes wrong otherwise is what it reports.
    """
    wanted = _checked(features)

    async def main() -> Probe:
        bench = Bench(TRIALS, Machine())
        found = [await bench.feature(name) for name in wanted]
        return Probe(tuple(found), __version__, _release(), _uid())

    if trio.lowlevel.in_trio_run():
        return _in_a_thread(main)
    return trio.run(main)


def _checked(features: tuple[Any, ...]) -> tuple[str, ...]:
    for name in features:
        if not isinstance(name, str):
            raise TypeError(f"features are names, not {name!r}")
        if name not in TRIALS:
            near = difflib.get_close_matches(name, TRIALS, 1)
            more = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown feature {name!r}{more} (one of {', '.join(TRIALS)})")
    return tuple(dict.fromkeys(features)) or tuple(TRIALS)


def _release() -> str:
    return os.uname().release if hasattr(os, "uname") else "unknown"


def _uid() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else -1


def _in_a_thread(main: Callable[[], Awaitable[Probe]]) -> Probe:
    """Where this thread is busy with a `trio.run` of its own. The new one inherits what it is: ids, namespaces."""
    found: list[Probe] = []
    failed: list[BaseException] = []
    scope = trio.CancelScope()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def run() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        with scope:
            found.append(await main())

    over = threading.Event()

    def call() -> None:
        try:
            trio.run(run)
        except BaseException as exc:
            failed.append(exc)
        finally:
            over.set()

    threading.Thread(target=call, name="linx-probe").start()
    try:
        over.wait()  # not join(): once that has been interrupted, it takes the thread for ended (3.11, 3.12)
    except BaseException:  # KeyboardInterrupt: leave nothing behind
        for token in tokens:
            token.run_sync_soon(scope.cancel)
        over.wait()
        raise
    for exc in failed:
        raise exc
    return found[0]
