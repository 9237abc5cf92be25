"""``linx supervise``: runs what a file says, until all children have ended for good or a signal says so."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import trio

import linx_trio as linx
from linx_trio import _cli_toml
from linx_trio._cli_errors import Complaint, in_words, report, warn
from linx_trio._cli_session import ENDING
from linx_trio._cli_show import printable, table

GAVE_UP = 1
"""A child had to be started again too often."""

Say = Callable[[str, str | None, dict[str, Any]], None]


def supervise(path: str, *, check: bool, as_json: bool) -> int:
    """The exit status."""
    found = _cli_toml.read(path)
    if check:
        _list(found, as_json=as_json)
        return 0
    say = _as_json if as_json else _in_words
    handler = _Handler(say)
    logger = logging.getLogger("linx_trio")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return trio.run(_main, found, say)
    except linx.RestartLimitExceeded as exc:
        if os.environ.get("LINX_DEBUG"):
            raise
        report(Complaint(str(exc)), as_json=as_json)
        return GAVE_UP
    finally:
        logger.removeHandler(handler)


async def _main(found: _cli_toml.Supervision, say: Say) -> int:
    failure: Exception | None = None
    children = [_told(spec, say) for spec in found.children]
    ids: dict[tuple[str, ...], list[str]] = {}
    for spec in found.children:
        ids.setdefault(_argv(spec), []).append(spec.id)

    async def on_checkpoint(session: linx.Session) -> None:
        pid, argv = session.info().host_pid, tuple(map(str, session.info().argv))
        id = " or ".join(ids[argv])  # two that run the same cannot be told apart here
        say(f"starts, pid {pid}: {shlex.join(argv)}", id, {"event": "starting", "pid": pid, "argv": argv})

    wanted = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    with trio.open_signal_receiver(*wanted) as arrived:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(_stop, arrived, scope, say)
            try:
                with scope:
                    await linx.supervise(children, on_checkpoint=on_checkpoint, **found.options)
            except (linx.LinxError, TypeError, ValueError, OSError) as exc:
                failure = exc
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return 0


async def _stop(arrived: AsyncIterator[int], scope: trio.CancelScope, say: Say) -> None:
    """Children are stopped in the reverse order, each with its own time; so a second signal has nothing to add."""
    async for number in arrived:
        if not scope.cancel_called:
            say(f"{signal.Signals(number).name}: stopping all", None, {"event": "stopping"})
            scope.cancel()


class _Told:
    """A child's ``ready``, which says so."""

    def __init__(self, id: str, check: Any, say: Say) -> None:
        self._id, self._check, self._say = id, check, say
        if hasattr(check, "drain"):
            self.drain = check.drain

    async def __call__(self, session: linx.Session) -> None:
        await self._check(session)
        self._say("is ready", self._id, {"event": "ready", "pid": session.info().host_pid})


def _told(spec: linx.ChildSpec, say: Say) -> linx.ChildSpec:
    return spec if spec.ready is None else dataclasses.replace(spec, ready=_Told(spec.id, spec.ready, say))


def _argv(spec: linx.ChildSpec) -> tuple[str, ...]:
    assert isinstance(spec.workload, linx.Workload)
    return spec.workload.arguments


class _Handler(logging.Handler):
    """What the library logs: how children end."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage(), None, {"event": "log", "level": record.levelname})


def _in_words(text: str, id: str | None, _data: dict[str, Any]) -> None:
    told, sign, hint = in_words(text).partition("\n  hint: ")
    lines = [f"linx: {told}" if id is None else f"linx: child {id!r} {told}", *([f"  hint: {hint}"] if sign else [])]
    warn("\n".join(map(printable, lines)))


def _as_json(text: str, id: str | None, data: dict[str, Any]) -> None:
    warn(json.dumps({**data, **({} if id is None else {"id": id}), "message": text}))


def _list(found: _cli_toml.Supervision, *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"id": spec.id, "restart": spec.restart, "shutdown": spec.shutdown, "argv": _argv(spec)}
            for spec in found.children
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table(["ID", "RESTART", "COMMAND"], [[spec.id, spec.restart, shlex.join(_argv(spec))] for spec in found.children])
