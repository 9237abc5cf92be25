"""`Filter`: a compiled program for seccomp(2) as plain data, and what it decides. No library is needed for these."""

from __future__ import annotations

import binascii
import difflib
import errno as _errno
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from linx_trio import _seccomp_bpf as bpf

Action = str | tuple[str, str | int]
"""``"allow"``, ``"kill_process"``, ``"kill_thread"``, ``"trap"``, ``"log"`` or ``("errno", name_or_number)``."""

FLAG_LOG = 2  # SECCOMP_FILTER_FLAG_LOG
FLAG_SPEC_ALLOW = 4  # SECCOMP_FILTER_FLAG_SPEC_ALLOW

_ACTIONS = {
    "allow": bpf.ALLOW,
    "kill_process": bpf.KILL_PROCESS,
    "kill_thread": bpf.KILL_THREAD,
    "trap": bpf.TRAP,
    "log": bpf.LOG,
}
_NAMES = {number: name for name, number in _ACTIONS.items()}
_ERRNO_LIMIT = 4095  # MAX_ERRNO: the kernel cuts what is above, and libseccomp takes what is below


class Machine(NamedTuple):
    """What differs between the architectures, as far as it is needed without libseccomp."""

    token: int  # AUDIT_ARCH_*
    execve: int
    go: str  # how Docker's profiles call it
    scmp: str


MACHINES = {
    "x86_64": Machine(0xC000003E, 59, "amd64", "SCMP_ARCH_X86_64"),
    "aarch64": Machine(0xC00000B7, 221, "arm64", "SCMP_ARCH_AARCH64"),
}


def native() -> Machine | None:
    """This machine, `None` where nothing can be run anyway."""
    return MACHINES.get(os.uname().machine) if hasattr(os, "uname") else None


def action_number(action: Any, name: str) -> int:
    """The ``SECCOMP_RET_*`` value. Raises `TypeError` or `ValueError`, naming the argument and the value."""
    if isinstance(action, str):
        if action not in _ACTIONS:
            hint = "; write ('errno', 'EPERM')" if action.startswith(("errno", "E")) else ""
            raise ValueError(f"unknown {name} {action!r}; there are: {', '.join(_ACTIONS)}, ('errno', number){hint}")
        return _ACTIONS[action]
    if not isinstance(action, (tuple, list)) or len(action) != 2 or action[0] != "errno":
        raise TypeError(f"{name} must be one of {', '.join(_ACTIONS)} or ('errno', name or number), not {action!r}")
    return bpf.ERRNO | errno_number(action[1], name)


def errno_number(value: Any, name: str) -> int:
    """An error number by itself or by its name: 0 makes the syscall a success that does nothing."""
    if isinstance(value, str):
        number = getattr(_errno, value, None) if value.startswith("E") else None
        if not isinstance(number, int):
            raise ValueError(f"{name}: unknown errno {value!r}{nearest(value, _errno.errorcode.values())}")
        return number
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: errno must be a name like 'EPERM' or a number, not {value!r}")
    if not 0 <= value < _ERRNO_LIMIT:
        raise ValueError(f"{name}: errno must be between 0 and {_ERRNO_LIMIT - 1}, not {value!r}")
    return value


def action_of(number: int) -> Action:
    """What the kernel makes of a program's return value."""
    kind, data = number & bpf.ACTION_MASK, number & bpf.DATA_MASK
    if kind == bpf.ERRNO:
        value = min(data, _ERRNO_LIMIT)
        return ("errno", _errno.errorcode.get(value, value))
    if kind == bpf.USER_NOTIF:  # nobody can listen
        return ("errno", "ENOSYS")
    return "trace" if kind == bpf.TRACE else _NAMES.get(kind, "kill_process")


def nearest(word: str, known: Any) -> str:
    """For the end of an error's text."""
    found = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


@dataclass(frozen=True, slots=True)
class Filter:
    """A program for ``seccomp(2)``, compiled for one architecture. Frozen, hashable, picklable.

    Made by `allow_list`, `deny_list`, `from_oci`, `from_bpf` and the presets.

    Attributes:
        program: an array of ``struct sock_filter``, as the kernel takes it.
        flags: ``SECCOMP_FILTER_FLAG_LOG`` (2) or 0; ``SECCOMP_FILTER_FLAG_SPEC_ALLOW`` (4) from a profile that has it.
        label: where it is from, for its repr and for errors.

    Raises:
        TypeError, ValueError: also for whatever the kernel would refuse with EINVAL.
    """

    program: bytes
    flags: int = 0
    label: str = field(default="from_bpf", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.program, bytes):
            raise TypeError(f"program must be bytes, not {type(self.program).__name__}")
        if isinstance(self.flags, bool) or not isinstance(self.flags, int):
            raise TypeError(f"flags must be an int, not {self.flags!r}")
        if self.flags & ~(FLAG_LOG | FLAG_SPEC_ALLOW):
            raise ValueError(f"flags may be SECCOMP_FILTER_FLAG_LOG (2) and _SPEC_ALLOW (4), not {self.flags:#x}")
        if not isinstance(self.label, str):
            raise TypeError(f"label must be str, not {self.label!r}")
        bpf.check(self.program)

    def __repr__(self) -> str:
        return f"<linx_trio.seccomp.Filter {self.label}: {len(self.program) // 8} instructions>"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary, the program in base64."""
        text = binascii.b2a_base64(self.program, newline=False).decode()
        return {"program": text, "flags": self.flags, "label": self.label}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Filter:
        """The filter that `to_dict` described. Raises `TypeError` or `ValueError`, naming what is wrong."""
        if not isinstance(plain, Mapping):
            raise TypeError(f"a filter's plain form is a mapping, not {plain!r}")
        if unknown := plain.keys() - {"program", "flags", "label"}:
            raise ValueError(f"a filter has no {min(map(str, unknown))!r}")
        if not isinstance(plain.get("program"), str):
            raise TypeError(f"a filter needs its program in base64, not {plain.get('program')!r}")
        try:
            program = binascii.a2b_base64(plain["program"], strict_mode=True)
        except ValueError as exc:
            raise ValueError(f"program is no base64: {exc}") from None
        return cls(program, plain.get("flags", 0), plain.get("label", "from_dict"))


def verdict_of(filter: Filter, nr: int, arguments: tuple[int, ...], machine: Machine) -> Action | None:
    """What it decides, `None` where that depends on what is not known."""
    found = {
        None if value is None else action_of(value)
        for value in bpf.outcomes(filter.program, bpf.words_of(nr, machine.token, arguments))
    }
    return found.pop() if len(found) == 1 else None


@functools.lru_cache(maxsize=64)
def refusal_of_execve(filter: Filter, machine: Machine) -> bool | None:
    """Whether ``execve(2)`` will be refused, whatever its arguments; `None` where that cannot be said."""
    refused = set()
    for value in bpf.outcomes(filter.program, bpf.words_of(machine.execve, machine.token)):
        action = None if value is None else action_of(value)
        # A tracer decides about "trace"; without one it is ENOSYS.
        refused.add(None if action in (None, "trace") else action not in ("allow", "log"))
    return refused.pop() if len(refused) == 1 else None


def must_be_filter(value: Any, name: str) -> Filter:
    """Raises `TypeError`, naming the argument and the value."""
    if not isinstance(value, Filter):
        raise TypeError(f"{name} must be a filter from linx.seccomp, not {value!r}")
    return value


def check_filter(value: Any, name: str) -> Filter:
    """For an argument that is to be a filter, and one under which a workload can start.

    Raises `TypeError` or `ValueError`, naming the argument and the value.
    """
    found = must_be_filter(value, name)
    machine = native()
    if machine is not None and refusal_of_execve(found, machine):
        how = verdict_of(found, machine.execve, (), machine)
        raise ValueError(
            f"{name}={found!r} refuses execve itself ({how}), so the workload could never start: allow 'execve'"
        )
    return found


def step_of(filter: Filter) -> tuple[tuple[str, bytes, int], str]:
    """The step that installs it, and what to call it in an error."""
    return ("seccomp", filter.program, filter.flags), filter.label
