"""Capabilities (``capabilities(7)``): reading anybody's, and deciding a workload's before its first instruction.

Declarative, and right for any uid, is the option ``capabilities=keep({…})`` or ``drop({…})`` of a `Workload`. The verbs
`drop_bounding`, `set_thread_sets` and `set_ambient` do one thing each to a parked session, at once: the ids that its
options ask for are changed later, and a change from uid 0 to another clears the effective, permitted and ambient sets.

Wherever capabilities are taken, they are members of `Capability`, names with or without ``CAP_`` in any case, or the
numbers of bits up to 62, for those that have no name here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from linx_trio._capabilities import (
    AnyCapability,
    Capability,
    Caps,
    CapSets,
    Policy,
    describe,
    drop,
    keep,
    mask_of,
    parse,
    refuse_unknown,
)
from linx_trio._fd import FdBag
from linx_trio._parked import as_verb, check_session
from linx_trio._target import check_target
from linx_trio.errors import NotSupported, setup_error

if TYPE_CHECKING:
    from linx_trio._session import Session

__all__ = [
    "CapSets",
    "Capability",
    "Policy",
    "drop",
    "drop_bounding",
    "keep",
    "last_cap",
    "read",
    "set_ambient",
    "set_thread_sets",
]


def last_cap() -> int:
    """The number of the last capability that this kernel has. Raises `NotSupported` where ``/proc`` does not say it."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
            return int(file.read())
    except FileNotFoundError:
        hint = "it needs /proc/sys/kernel/cap_last_cap: mount -t proc proc /proc"
        raise NotSupported("capabilities", hint) from None


def read(target: Any) -> CapSets:
    """The five sets of a process, from its ``/proc/<pid>/status``; those of its main thread, if it has several.

    Args:
        target: a pid, a pidfd object, a `Session` or a ``/proc/<pid>``-like path (``/proc/thread-self``, too).

    Raises:
        SetupError: there is no such process (ENOENT, stage ``open_ns_user``), or it may not be looked at.
        NotReady, NoProcess: for a session that has no process yet, or no more.
        TypeError, ValueError: `target` is none.
    """
    checked = check_target(target, None, False)
    with as_verb("read"), FdBag() as bag:
        directory = checked.open(bag).fd
        try:
            status = bag.adopt(os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory))
            text = b"".join(iter(lambda: os.read(status, 65536), b""))
        except OSError as exc:
            gone = exc.errno in (errno.ENOENT, errno.ESRCH)
            number = errno.ENOENT if gone else exc.errno or errno.EIO
            hint = "there is no such process (any more)" if gone else None
            raise setup_error(number, "open_ns_user", checked.name, hint) from None
    return CapSets.from_status(text.decode(errors="replace"))


async def drop_bounding(session: Session, caps: Iterable[AnyCapability]) -> None:
    """Drops `caps` from a parked session's bounding set (``PR_CAPBSET_DROP``), for good.

    Raises:
        SetupError: stage ``cap_drop_bounding``; EPERM without CAP_SETPCAP in the effective set.
        NotReady, AlreadyRunning, NoProcess: the session is not parked.
        TypeError, ValueError: no session; an unknown capability.

    Cancelling stops the waiting only: what has been sent is done.
    """
    checked = parse(caps, "caps")
    check_session(session)
    with as_verb("drop_bounding"):
        await session.take_steps([(("cap_drop_bounding", mask_of(checked)), describe(checked))])


async def set_thread_sets(
    session: Session,
    *,
    effective: Iterable[AnyCapability] | None = None,
    permitted: Iterable[AnyCapability] | None = None,
    inheritable: Iterable[AnyCapability] | None = None,
) -> None:
    """Sets a parked session's effective, permitted and inheritable sets (``capset(2)``); `None` leaves one as it is.

    The ambient set is lowered with the permitted and the inheritable one. A set that the others do not allow is
    refused, not adjusted: to lower the permitted set, lower the effective one too.

    Raises:
        SetupError: stage ``cap_set_thread``; EPERM for what ``capset(2)`` does not allow, EINVAL for a capability that
            this kernel does not have.
        NotReady, AlreadyRunning, NoProcess: the session is not parked.
        TypeError, ValueError: no session; an unknown capability.

    Cancelling stops the waiting only: what has been sent is done.
    """
    given = {"effective": effective, "permitted": permitted, "inheritable": inheritable}
    asked = {name: parse(caps, name) for name, caps in given.items() if caps is not None}
    check_session(session)
    refuse_unknown(frozenset[int]().union(*asked.values()), last_cap())
    sets: dict[str, Caps] = {}
    thing = "; ".join(f"{name}: {describe(caps)}" for name, caps in asked.items())
    with as_verb("set_thread_sets"):
        if len(asked) < len(given):
            now = read(session)
            sets = {name: getattr(now, name) for name in given}
        sets |= asked
        await session.take_steps([(("cap_set_thread", *(mask_of(sets[name]) for name in given)), thing)])


async def set_ambient(session: Session, caps: Iterable[AnyCapability]) -> None:
    """Makes `caps` a parked session's ambient set: exactly these are in it afterwards (``PR_CAP_AMBIENT``).

    They have to be permitted and inheritable (`set_thread_sets`). A ``uid=`` of the workload's own is set later and
    clears them again, if it leaves uid 0: then use ``capabilities=keep({…})``.

    Raises:
        SetupError: stage ``cap_set_ambient``; EPERM for one that is not both permitted and inheritable: those before
            it may have been raised. EINVAL for one that this kernel does not have: then nothing has been done.
        NotReady, AlreadyRunning, NoProcess: the session is not parked.
        TypeError, ValueError: no session; an unknown capability.

    Cancelling stops the waiting only: what has been sent is done.
    """
    checked = parse(caps, "caps")
    check_session(session)
    refuse_unknown(checked, last_cap(), "cap_set_ambient")
    with as_verb("set_ambient"):
        await session.take_steps([(("cap_set_ambient", mask_of(checked)), describe(checked))])
