"""Capabilities as data: `Capability`, `CapSets`, and `Policy` with the one order of steps that works.

A thread has five sets. ``execve(2)`` computes them anew (``capabilities(7)``, *Transformation of capabilities during
execve()*; P before, P' after, F the file's)::

    P'(ambient)     = 0 if the file has capabilities or a set-id bit, else P(ambient)
    P'(permitted)   = P(inheritable) & F(inheritable)  |  F(permitted) & P(bounding)  |  P'(ambient)
    P'(effective)   = P'(permitted) if F(effective), else P'(ambient)
    P'(inheritable) = P(inheritable)        P'(bounding) = P(bounding)

with all of F set for uid 0. So what is permitted before does not last: what the workload may have for good is decided
by bounding, inheritable and ambient. From that, and from what each change needs, follows the order:

1. *Bounding, before the ids change.* ``PR_CAPBSET_DROP`` needs CAP_SETPCAP in the effective set, which a change from
   uid 0 to another clears. Nothing else may be lowered yet: CAP_SETUID and CAP_SETGID are still to be used.
2. *SECBIT_KEEP_CAPS, before the ids change*, where something is kept: else the change clears the permitted set too.
   ``execve(2)`` clears the flag.
3. *setgroups, setgid, setuid*: the caller's part.
4. *Effective, permitted, inheritable, after it.* Lowering needs no capability, and neither does raising the effective
   and inheritable sets within the permitted (and bounding) one.
5. *Ambient, last.* Changing the ids clears it even with SECBIT_KEEP_CAPS, and it may hold only what is both permitted
   and inheritable. Without it no uid but 0 keeps anything through ``execve(2)``.

The same order does for uid 0, which regains inheritable | bounding: both are what was to be kept. So no SECBIT_NOROOT
is needed, and a set-user-ID-root program is worth no more inside. Lowering the inheritable set matters as much as
bounding, which does not limit P(inheritable) & F(inheritable).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from linx_trio.errors import setup_error

LIMIT = 63
"""Bits 0 to 62 can be named: the kernel's masks have 64, and a signed number travels best without the last."""

SECBIT_KEEP_CAPS = 1 << 4
SETS = ("effective", "permitted", "inheritable", "bounding", "ambient")
_STATUS = dict(zip(("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"), SETS, strict=True))


class Capability(IntEnum):
    """The capabilities of ``capabilities(7)``; their values are the bits' numbers (``linux/capability.h``)."""

    CAP_CHOWN = 0
    CAP_DAC_OVERRIDE = 1
    CAP_DAC_READ_SEARCH = 2
    CAP_FOWNER = 3
    CAP_FSETID = 4
    CAP_KILL = 5
    CAP_SETGID = 6
    CAP_SETUID = 7
    CAP_SETPCAP = 8
    CAP_LINUX_IMMUTABLE = 9
    CAP_NET_BIND_SERVICE = 10
    CAP_NET_BROADCAST = 11
    CAP_NET_ADMIN = 12
    CAP_NET_RAW = 13
    CAP_IPC_LOCK = 14
    CAP_IPC_OWNER = 15
    CAP_SYS_MODULE = 16
    CAP_SYS_RAWIO = 17
    CAP_SYS_CHROOT = 18
    CAP_SYS_PTRACE = 19
    CAP_SYS_PACCT = 20
    CAP_SYS_ADMIN = 21
    CAP_SYS_BOOT = 22
    CAP_SYS_NICE = 23
    CAP_SYS_RESOURCE = 24
    CAP_SYS_TIME = 25
    CAP_SYS_TTY_CONFIG = 26
    CAP_MKNOD = 27
    CAP_LEASE = 28
    CAP_AUDIT_WRITE = 29
    CAP_AUDIT_CONTROL = 30
    CAP_SETFCAP = 31
    CAP_MAC_OVERRIDE = 32
    CAP_MAC_ADMIN = 33
    CAP_SYSLOG = 34
    CAP_WAKE_ALARM = 35
    CAP_BLOCK_SUSPEND = 36
    CAP_AUDIT_READ = 37
    CAP_PERFMON = 38
    CAP_BPF = 39
    CAP_CHECKPOINT_RESTORE = 40


AnyCapability = Capability | int | str
"""A member, its name (``"CAP_NET_ADMIN"``, ``"net_admin"``), or the number of a bit, known or not."""

Caps = frozenset[Capability | int]
"""Capabilities as they are kept: an int is a bit that has no name here."""

Step = tuple[Any, ...]

_BY_NUMBER: Mapping[int, Capability] = {int(member): member for member in Capability}
_BY_NAME: Mapping[str, Capability] = Capability.__members__


def parse(value: Any, name: str = "capabilities") -> Caps:
    """The capabilities in an iterable of members, names and numbers.

    Raises `TypeError` or `ValueError`, naming the argument and the value; an unknown name gets the nearest valid one.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(
            f"{name} must be an iterable of capabilities, not {value!r}; for a single one write {{{value!r}}}"
        )
    return frozenset(_one(item, name) for item in value)


def _one(value: Any, name: str) -> Capability | int:
    if isinstance(value, Capability):
        return value
    if isinstance(value, str):
        upper = value.upper()
        full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
        if full not in _BY_NAME:
            import difflib

            (nearest,) = difflib.get_close_matches(full, _BY_NAME, n=1, cutoff=0.0)
            raise ValueError(f"{name}: unknown capability {value!r}; the nearest name is {nearest!r}")
        return _BY_NAME[full]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: a capability is a Capability, a name or the number of a bit, not {value!r}")
    if not 0 <= value < LIMIT:
        raise ValueError(f"{name}: unknown capability {value!r}; the numbers go from 0 to {LIMIT - 1}")
    return _BY_NUMBER.get(value, int(value))


def mask_of(caps: Iterable[int]) -> int:
    """The bit mask of parsed capabilities, as the kernel takes it."""
    return sum(1 << int(cap) for cap in frozenset(caps))


def caps_of(mask: int) -> Caps:
    """The capabilities in a kernel's bit mask."""
    return frozenset(_BY_NUMBER.get(bit, bit) for bit in range(mask.bit_length()) if mask >> bit & 1)


def existing(last_cap: int) -> Caps:
    """All capabilities of a kernel whose ``/proc/sys/kernel/cap_last_cap`` is `last_cap`: no set can hold others."""
    return caps_of((1 << last_cap + 1) - 1)


def names(caps: Iterable[int]) -> list[str | int]:
    """Names in the order of the bits, numbers where there is no name: the JSON-able form that `parse` takes."""
    return [_BY_NUMBER[cap].name if cap in _BY_NUMBER else int(cap) for cap in sorted(frozenset(caps))]


def describe(caps: Iterable[int]) -> str:
    """For an error's text: a few of them by name."""
    known = [str(name) for name in names(caps)]
    rest = f" and {len(known) - 4} more" if len(known) > 5 else ""
    return ", ".join(known[:4] if rest else known) + rest if known else "none"


def _display(caps: Iterable[int]) -> str:
    return f"{{{', '.join(map(repr, names(caps)))}}}" if caps else "()"


def refuse_unknown(caps: Iterable[int], last_cap: int, stage: str = "cap_set_thread") -> None:
    """``capset(2)`` forgets without a word what the kernel does not know. Raises `SetupError` (EINVAL) instead."""
    if unknown := [cap for cap in caps if cap > last_cap]:
        hint = f"this kernel has capabilities up to {last_cap} only (/proc/sys/kernel/cap_last_cap)"
        raise setup_error(errno.EINVAL, stage, describe(unknown), hint)


@dataclass(frozen=True, slots=True, repr=False)
class CapSets:
    """The five sets of a thread, see ``capabilities(7)``. Takes whatever `parse` takes.

    Attributes:
        effective: what the kernel checks.
        permitted: what the effective set can be raised to.
        inheritable: what a file with inheritable capabilities can give.
        bounding: what a file's permitted capabilities, uid 0 among them, can give.
        ambient: what is kept through ``execve(2)`` without a file's or uid 0's help.
    """

    effective: Caps = frozenset()
    permitted: Caps = frozenset()
    inheritable: Caps = frozenset()
    bounding: Caps = frozenset()
    ambient: Caps = frozenset()

    def __post_init__(self) -> None:
        for name in SETS:
            object.__setattr__(self, name, parse(getattr(self, name), name))

    def __repr__(self) -> str:
        return f"CapSets({', '.join(f'{name}={_display(getattr(self, name))}' for name in SETS)})"

    @classmethod
    def from_status(cls, text: str) -> CapSets:
        """From the text of ``/proc/<pid>/status`` (``proc(5)``)."""
        pairs = (line.split(":", 1) for line in text.splitlines() if line.startswith("Cap"))
        return cls(**{_STATUS[key]: caps_of(int(value, 16)) for key, value in pairs if key in _STATUS})

    @classmethod
    def in_new_user_namespace(cls, last_cap: int) -> CapSets:
        """What the first process of a user namespace, or one that joins it, has in there (``user_namespaces(7)``)."""
        every = existing(last_cap)
        return cls(effective=every, permitted=every, bounding=every)


@dataclass(frozen=True, slots=True, repr=False)
class Policy:
    """What `keep` and `drop` return: frozen, picklable, and JSON-able by `to_dict`."""

    action: Literal["keep", "drop"]
    caps: Caps

    def __post_init__(self) -> None:
        if self.action not in ("keep", "drop"):
            raise ValueError(f"action must be 'keep' or 'drop', not {self.action!r}")
        object.__setattr__(self, "caps", parse(self.caps, "caps"))

    def __repr__(self) -> str:
        return f"linx.capabilities.{self.action}({_display(self.caps)})"

    def to_dict(self) -> dict[str, list[str | int]]:
        """``{"keep": ["CAP_KILL", 41]}``, or the same with ``"drop"``."""
        return {self.action: names(self.caps)}

    @classmethod
    def from_dict(cls, plain: Any) -> Policy:
        """The policy that `to_dict` described. Raises `TypeError` or `ValueError`, naming what is wrong."""
        if not isinstance(plain, Mapping) or len(plain) != 1 or not plain.keys() <= {"keep", "drop"}:
            raise ValueError(f"capabilities={plain!r} must be {{'keep': [name, …]}} or {{'drop': [name, …]}}")
        ((action, caps),) = plain.items()
        return cls(action, parse(caps))

    def steps(self, caller: CapSets, *, leaves_root: bool, last_cap: int) -> tuple[list[Step], list[Step]]:
        """The child's steps before and after those that change its ids; nothing is read.

        Args:
            caller: the sets of the child when it comes here (`CapSets.in_new_user_namespace` in a fresh one).
            leaves_root: whether its ids, as it sees them, change from 0 to another in between. Where that cannot be
                known, `True` does too: then `drop` clears the ambient set as well.
            last_cap: ``/proc/sys/kernel/cap_last_cap``.

        Raises `SetupError` (EINVAL, stage ``cap_set_thread``) for a capability to be kept that the kernel lacks.
        """
        every = mask_of(existing(last_cap))
        if self.action == "keep":
            refuse_unknown(self.caps, last_cap)
            return self._keep(mask_of(self.caps), every, leaves_root=leaves_root)
        return self._drop(mask_of(self.caps) & every, caller, leaves_root=leaves_root)

    def _keep(self, kept: int, every: int, *, leaves_root: bool) -> tuple[list[Step], list[Step]]:
        before: list[Step] = [("cap_drop_bounding", every & ~kept)] if every & ~kept else []
        if leaves_root and kept:
            before.append(("securebits", SECBIT_KEEP_CAPS))
        return before, [("cap_set_thread", kept, kept, kept), ("cap_set_ambient", kept)]

    def _drop(self, dropped: int, caller: CapSets, *, leaves_root: bool) -> tuple[list[Step], list[Step]]:
        """Ambient follows by itself: it is lowered with the permitted and the inheritable set."""
        if not dropped:
            return [], []
        effective, permitted, inheritable = (
            mask_of(caps) & ~dropped for caps in (caller.effective, caller.permitted, caller.inheritable)
        )
        if leaves_root:  # which has cleared these two, unless the caller's securebits say otherwise
            effective = permitted = 0
        return [("cap_drop_bounding", dropped)], [("cap_set_thread", effective, permitted, inheritable)]


def keep(caps: Iterable[AnyCapability]) -> Policy:
    """``capabilities=keep({…})``: the workload has exactly these, in all five sets, whatever its uid; ``keep(())``
    leaves none, those among them that are not named here.

    Neither uid 0, nor a set-user-ID program, nor a file with capabilities gives more to it or its descendants; only a
    new user namespace does, inside itself. A program with file capabilities of its own starts with those of them that
    are kept (or not at all: EPERM, *capability-dumb binaries*).

    Args:
        caps: members of `Capability`, names with or without ``CAP_`` in any case, or bits' numbers up to 62.

    What the caller lacks cannot be kept, and dropping the others needs CAP_SETPCAP (a fresh user namespace has it):
    `SetupError` (EPERM) at stage ``cap_set_thread`` and ``cap_drop_bounding``. Raises `TypeError` or `ValueError` here.
    """
    return Policy("keep", parse(caps))


def drop(caps: Iterable[AnyCapability]) -> Policy:
    """``capabilities=drop({…})``: these are taken from all five sets, for the workload and all its descendants.

    It gives nothing: a workload whose uid is not 0 has as few of the others as without it. Capabilities that the
    kernel does not have are dropped already. See `keep` for the arguments and errors; ``keep(())`` drops everything.
    """
    return Policy("drop", parse(caps))


def check_policy(value: Any, name: str) -> Policy | None:
    """For the option ``capabilities=``. Raises `TypeError`, naming it."""
    if value is not None and not isinstance(value, Policy):
        raise TypeError(f"{name} must be linx.capabilities.keep({{...}}) or .drop({{...}}), not {value!r}")
    return value
