"""Whose files in ``/proc`` a function is about, and when it may be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from linx_trio._fd import FdBag
from linx_trio._proto.states import TERMINAL
from linx_trio._target import check_target
from linx_trio.errors import AlreadyRunning, NoProcess, NotReady, StateError

_NOT_PARKED: dict[str, type[StateError]] = {"starting": NotReady, "running": AlreadyRunning}


def check_session(value: Any) -> None:
    """For what only a session can do. Raises `TypeError`."""
    if not hasattr(type(value), "take_steps"):
        raise TypeError(f"session must be a linx.Session, not {value!r}")


@contextlib.contextmanager
def as_verb(name: str) -> Iterator[None]:
    """What is wrong with the session's state is told of the function that was called, not of what that is made of."""
    try:
        yield
    except StateError as exc:
        raise type(exc)(name, exc.state) from exc.__cause__


@contextlib.contextmanager
def pinned(target: Any, verb: str, *, parked: bool) -> Iterator[int]:
    """The fd of the target's directory in ``/proc``, for as long as the block lasts. With `parked`, a session has to
    be at its checkpoint.

    Raises `TypeError`, `ValueError`, `NotReady`, `AlreadyRunning`, `NoProcess`, `SetupError`.
    """
    if hasattr(type(target), "host_pid"):  # a session, whose property may say that it is not known yet
        _check_state(target, verb, parked=parked)
    checked = check_target(target, None, False)
    with FdBag() as bag:
        yield checked.open(bag).fd


def _check_state(session: Any, verb: str, *, parked: bool) -> None:
    state = session.state
    if state in TERMINAL:
        raise NoProcess(verb, state)
    if parked and state in _NOT_PARKED:
        raise _NOT_PARKED[state](verb, state)
    try:
        _ = session.host_pid
    except NotReady:
        raise NotReady(verb, state) from None
