"""Rules to a program, by libseccomp through pyseccomp. Both are needed here only, and looked for only when used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from linx_trio import _seccomp_bpf as bpf
from linx_trio._seccomp_filter import Machine, native, nearest
from linx_trio._seccomp_make import by_number, chain
from linx_trio._seccomp_shorten import shorten
from linx_trio.errors import NotSupported

_LOWEST_API = 3
"""The libseccomp API level with KILL_PROCESS and LOG, both of Linux 4.14."""

_SCAN = 1024

UNIFIED_FROM = 424
"""Since Linux 5.1 a new syscall has one number on all architectures, from here on."""

_NEW = [
    "cachestat", "fchmodat2", "map_shadow_stack", "futex_wake", "futex_wait", "futex_requeue", "statmount", "listmount",
    "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules", "mseal", "setxattrat", "getxattrat", "listxattrat",
    "removexattrat", "open_tree_attr", "file_getattr", "file_setattr",
]  # fmt: skip
_NEW_NUMBERS = {name: 451 + i for i, name in enumerate(_NEW)}
"""What the libseccomp of a stable distribution does not know yet."""


class Comparison(NamedTuple):
    """A condition on an argument. `op` as in ``enum scmp_compare``; MASKED_EQ has the mask in `value`."""

    argument: int
    op: int
    value: int
    second: int = 0


NE, LT, LE, EQ, GE, GT, MASKED_EQ = range(1, 8)


class Rule(NamedTuple):
    """An action for a syscall where all comparisons are true. `number` is negative for one of other machines."""

    number: int
    action: int
    comparisons: tuple[Comparison, ...] = ()


@lru_cache(maxsize=1)
def library() -> Any:
    """The module pyseccomp. Raises `NotSupported`, saying what to install."""
    machine = native()
    feature = "compiling seccomp filters"
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError, AttributeError) as exc:  # it is not there, or libseccomp is not
        raise NotSupported(
            feature, f"pip install linx-trio[seccomp], and the system's libseccomp (Debian: libseccomp2): {exc}"
        ) from None
    if machine is None or pyseccomp.system_arch() != machine.token:
        raise NotSupported(feature, "it needs Linux on x86_64 or aarch64")
    if pyseccomp.get_api() < _LOWEST_API:
        # It found the level by trying seccomp(2), which the filter of a container may forbid to this process.
        pyseccomp.set_api(_LOWEST_API)
    return pyseccomp


def machine() -> Machine:
    """The one that is compiled for. Raises `NotSupported`."""
    library()
    found = native()
    assert found is not None
    return found


def number_of(name: str) -> int | None:
    """A syscall's number here, negative if only other machines have it, `None` if nobody has."""
    number: int = library().resolve_syscall(machine().token, name)
    return _NEW_NUMBERS.get(name) if number == -1 else number


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    seccomp, token = library(), machine().token
    names = set(_NEW)
    for number in range(_SCAN):
        try:
            names.add(seccomp.resolve_syscall(token, number).decode())
        except ValueError:
            continue
    return frozenset(names)


def strict_number_of(name: Any, argument: str) -> int:
    """The same for what the user wrote. Raises `TypeError` or `ValueError`, with the argument and the nearest name."""
    if not isinstance(name, str):
        raise TypeError(f"{argument}: a syscall's name must be str, not {name!r}")
    number = number_of(name) if name.isascii() and name.isidentifier() else None
    if number is None:
        raise ValueError(f"unknown syscall {name!r} in {argument}{nearest(name, _known())}")
    return number


def compile_rules(default: int, rules: Iterable[Rule], before: Iterable[bytes] = ()) -> bytes:
    """The program, made short: of other architectures and of x32 it kills the process.

    It decides about what all the programs `before` allow. The last one of those is asked first.
    """
    here = machine()
    program = by_number(here.token, _leaves(default, rules), default, x32=here.go == "amd64")
    for first in before:
        program = chain(first, program)
    return shorten(program, here.token)


def _leaves(default: int, rules: Iterable[Rule]) -> dict[int, bytes]:
    """The programs by number.

    Where several rules match, the strictest wins, as among several filters in ``seccomp(2)``; where none does,
    `default`. libseccomp makes the programs of single conditions only. It forgets those of a syscall that has a rule
    without one, and merges several of a syscall so that some ranges are missed and others match too much (2.5.4).
    """
    wanted = sorted(set(rules), key=lambda rule: (_strictness(rule.action), rule))
    always: dict[int, int] = {}
    for rule in wanted:
        if not rule.comparisons:
            always.setdefault(rule.number, rule.action)
    sometimes: dict[int, list[Rule]] = {}
    for rule in wanted:
        if rule.comparisons and _is_stricter(rule.action, always.get(rule.number)):
            sometimes.setdefault(rule.number, []).append(rule)
    leaves = {}
    for number in sorted({*always, *sometimes}):
        if number < 0:
            continue  # of other machines
        program = bpf.encode([bpf.Instruction(bpf.Op.RET_K, 0, 0, always.get(number, default))])
        for rule in sorted(sometimes.get(number, ()), key=lambda rule: _strictness(rule.action), reverse=True):
            program = chain(_conditional(rule), program, _UNDECIDED)
        leaves[number] = program
    return leaves


_UNDECIDED = bpf.TRACE | bpf.DATA_MASK
"""Which no rule has for its action."""


def _is_stricter(action: int, other: int | None) -> bool:
    return other is None or _strictness(action) < _strictness(other)


def permits(action: int) -> bool:
    """Whether the syscall is made."""
    return action in (bpf.ALLOW, bpf.LOG)


def _strictness(action: int) -> int:
    """The kernel's order, the strictest first: as signed numbers. Among errors, the smaller number."""
    return action - (1 << 32) if action >> 31 else action


@lru_cache(maxsize=256)
def _conditional(rule: Rule) -> bytes:
    """The rule's action where its conditions are true."""
    seccomp = library()
    made = seccomp.SyscallFilter(_UNDECIDED)
    made.set_attr(seccomp.Attr.ACT_BADARCH, bpf.KILL_PROCESS)
    made.add_rule(rule.action, rule.number, *(seccomp.Arg(*comparison) for comparison in rule.comparisons))
    with open(os.memfd_create("linx-seccomp", os.MFD_CLOEXEC), "w+b", buffering=0) as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
