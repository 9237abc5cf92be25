"""The JSON profiles of the OCI runtime specification, of Docker and of Podman, to rules.

Docker's and Podman's files are templates: ``includes`` and ``excludes`` choose by architecture, by capability and by
kernel, and what is left is the specification's form. Here it is one pass. Everything unknown is refused, since a
condition that is overlooked changes what a rule means.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from linx_trio import _capabilities
from linx_trio import _seccomp_bpf as bpf
from linx_trio import _seccomp_compile as compiler
from linx_trio._seccomp_compile import Comparison, Rule
from linx_trio._seccomp_filter import FLAG_LOG, FLAG_SPEC_ALLOW, Filter, Machine, errno_number
from linx_trio._seccomp_make import not_above

_EPERM = 1
_ENOSYS = 38
_ACTIONS = {
    "SCMP_ACT_ALLOW": bpf.ALLOW,
    "SCMP_ACT_ERRNO": bpf.ERRNO,
    "SCMP_ACT_KILL": bpf.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": bpf.KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": bpf.KILL_THREAD,
    "SCMP_ACT_LOG": bpf.LOG,
    "SCMP_ACT_TRAP": bpf.TRAP,
}
_UNSUPPORTED = {
    "SCMP_ACT_TRACE": "nothing traces the workload",
    "SCMP_ACT_NOTIFY": "nothing listens for its notifications",
}
_OPERATORS = {
    "SCMP_CMP_NE": compiler.NE,
    "SCMP_CMP_LT": compiler.LT,
    "SCMP_CMP_LE": compiler.LE,
    "SCMP_CMP_EQ": compiler.EQ,
    "SCMP_CMP_GE": compiler.GE,
    "SCMP_CMP_GT": compiler.GT,
    "SCMP_CMP_MASKED_EQ": compiler.MASKED_EQ,
}
_FLAGS = {
    "SECCOMP_FILTER_FLAG_LOG": FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # the workload has one thread before execve
}
_PROFILE = {"defaultAction", "defaultErrnoRet", "defaultErrno", "architectures", "archMap", "syscalls", "flags"}
_SYSCALL = {"names", "name", "action", "errnoRet", "errno", "args", "includes", "excludes", "comment"}
_CONDITIONS = {"arches", "caps", "minKernel"}
_ARGUMENT = {"index", "value", "valueTwo", "op"}


class Circumstances(NamedTuple):
    """What ``includes`` and ``excludes`` ask about."""

    machine: Machine
    capabilities: frozenset[str]
    kernel: tuple[int, int]


def kernel_version(release: str) -> tuple[int, int]:
    """The first two numbers of ``uname -r``."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise ValueError(f"no kernel version: {release!r}")
    return int(found[1]), int(found[2])


def capabilities_of(value: Any) -> frozenset[str]:
    """The names of what the workload will have. Raises `TypeError` or `ValueError` for what is no capability."""
    return frozenset(name for name in _capabilities.names(_capabilities.parse(value)) if isinstance(name, str))


def _capability_names(capabilities: Iterable[str]) -> frozenset[str]:
    """``CAP_SYS_ADMIN`` for what a profile writes ``"sys_admin"``. Those of later kernels too, which nobody has."""
    return frozenset("CAP_" + name.upper().removeprefix("CAP_") for name in capabilities)


def compile_profile(profile: Any, around: Circumstances, label: str) -> Filter:
    """Raises `TypeError` or `ValueError`, naming the place."""
    root = _mapping(profile, "profile", _PROFILE)
    default = _action(root, "profile", "defaultAction", "defaultErrnoRet", "defaultErrno")
    _check_architectures(root)
    flags = 0
    for flag in _list(root, "flags", "profile"):
        if _word(flag, "profile.flags") not in _FLAGS:
            raise ValueError(f"profile.flags: {flag!r} is not supported; there are: {', '.join(_FLAGS)}")
        flags |= _FLAGS[flag]
    rules: list[Rule] = []
    for i, entry in enumerate(_list(root, "syscalls", "profile")):
        rules += _rules(entry, f"profile.syscalls[{i}]", around, default)
    before = []
    if default & bpf.ACTION_MASK == bpf.ERRNO and default != bpf.ERRNO | _ENOSYS:
        # What is younger than the profile says ENOSYS, as with runc: a libc falls back then, and with EPERM it fails.
        # The kernels before UNIFIED_FROM are older than all profiles.
        last = max([compiler.UNIFIED_FROM - 1, *(rule.number for rule in rules)])
        before.append(not_above(around.machine.token, last, bpf.ERRNO | _ENOSYS))
    return Filter(compiler.compile_rules(default, rules, before), flags, label)


def _rules(entry: Any, where: str, around: Circumstances, default: int) -> Iterator[Rule]:
    call = _mapping(entry, where, _SYSCALL)
    names = _list(call, "names", where)
    if "name" in call:  # before Docker 1.13
        if names:
            raise ValueError(f"{where} has both 'name' and 'names'")
        names = [call["name"]]
    if not names:
        raise ValueError(f"{where} has no names")
    for name in names:
        _word(name, f"{where}.names")
    action = _action(call, where, "action", "errnoRet", "errno")
    comparisons = tuple(_comparison(item, f"{where}.args[{i}]") for i, item in enumerate(_list(call, "args", where)))
    if len({comparison.argument for comparison in comparisons}) < len(comparisons):
        raise ValueError(f"{where}.args compares one argument twice, which libseccomp cannot do in one rule")
    _check_masks(comparisons, names, where)
    if not _applies(call, where, around):
        return
    for name in names:
        number = compiler.number_of(name) if name.isascii() else None
        if number is None and compiler.permits(default) and not compiler.permits(action):
            compiler.strict_number_of(name, where)  # raises: skipping it would leave it open
        if number is not None and number >= 0:
            yield Rule(number, action, comparisons)


def _applies(call: Mapping[str, Any], where: str, around: Circumstances) -> bool:
    wanted, unwanted = _conditions(call, "includes", where), _conditions(call, "excludes", where)
    own = around.machine.go
    if own in unwanted.arches or unwanted.capabilities & around.capabilities:
        return False
    if unwanted.kernel is not None and around.kernel >= unwanted.kernel:
        return False
    if wanted.arches and own not in wanted.arches:
        return False
    return wanted.capabilities <= around.capabilities and (wanted.kernel is None or around.kernel >= wanted.kernel)


class _Conditions(NamedTuple):
    arches: frozenset[str]
    capabilities: frozenset[str]
    kernel: tuple[int, int] | None


def _conditions(call: Mapping[str, Any], key: str, where: str) -> _Conditions:
    where = f"{where}.{key}"
    plain = _mapping({} if call.get(key) is None else call[key], where, _CONDITIONS)
    arches, capabilities = _list(plain, "arches", where), _list(plain, "caps", where)
    for item in (*arches, *capabilities):
        _word(item, where)
    kernel = plain.get("minKernel")
    if kernel is not None and not (isinstance(kernel, str) and re.fullmatch(r"\d+\.\d+", kernel)):
        raise ValueError(f"{where}.minKernel must be like '4.8', not {kernel!r}")
    return _Conditions(
        frozenset(arches), _capability_names(capabilities), None if kernel is None else kernel_version(kernel)
    )


def _comparison(item: Any, where: str) -> Comparison:
    plain = _mapping(item, where, _ARGUMENT)
    op = _word(plain.get("op"), f"{where}.op")
    if op not in _OPERATORS:
        raise ValueError(f"{where}.op: unknown {op!r}; there are: {', '.join(_OPERATORS)}")
    index = _number(plain.get("index"), f"{where}.index", 5)
    value = _number(plain.get("value"), f"{where}.value", 2**64 - 1)
    second = _number(plain.get("valueTwo", 0), f"{where}.valueTwo", 2**64 - 1)
    return Comparison(index, _OPERATORS[op], value, second)


def _check_masks(comparisons: tuple[Comparison, ...], names: list[str], where: str) -> None:
    """Bits outside of the mask are never equal, says the specification; libseccomp leaves them out of it."""
    for i, (argument, op, mask, value) in enumerate(comparisons):
        if op == compiler.MASKED_EQ and value & ~mask:
            raise ValueError(
                f"{where}.args[{i}], argument {argument} of {', '.join(names)}: valueTwo {value:#x} has bits "
                f"outside of the mask, value {mask:#x}, and so it would never match"
            )


def _action(plain: Mapping[str, Any], where: str, key: str, number_key: str, name_key: str) -> int:
    name = _word(plain.get(key), f"{where}.{key}")
    if name in _UNSUPPORTED:
        raise ValueError(f"{where}.{key}: {name} is not supported: {_UNSUPPORTED[name]}")
    if name not in _ACTIONS:
        raise ValueError(f"{where}.{key}: unknown {name!r}; there are: {', '.join(_ACTIONS)}")
    given = {field: plain[field] for field in (number_key, name_key) if plain.get(field) not in (None, "")}
    values = {errno_number(value, f"{where}.{field}") for field, value in given.items()}
    if values and name != "SCMP_ACT_ERRNO":
        raise ValueError(f"{where} has {next(iter(given))!r}, but {name} returns no error")
    if len(values) > 1:
        raise ValueError(f"{where}: {given} are two errors")
    return _ACTIONS[name] | (values.pop() if values else _EPERM if name == "SCMP_ACT_ERRNO" else 0)


def _check_architectures(root: Mapping[str, Any]) -> None:
    """They are names; all but the own one stay closed."""
    names = list(_list(root, "architectures", "profile"))
    for i, entry in enumerate(_list(root, "archMap", "profile")):
        where = f"profile.archMap[{i}]"
        plain = _mapping(entry, where, {"architecture", "subArchitectures"})
        names += [plain.get("architecture"), *_list(plain, "subArchitectures", where)]
    for name in names:
        if not isinstance(name, str) or not name.startswith("SCMP_ARCH_"):
            raise ValueError(f"profile: an architecture is like 'SCMP_ARCH_X86_64', not {name!r}")


def _mapping(value: Any, where: str, known: Collection[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be a mapping, not {value!r}")
    for key in value:
        if not isinstance(key, str) or (key not in known and not key.startswith(("_", "$", "comment"))):
            raise ValueError(f"{where}: unknown key {key!r}; there are: {', '.join(sorted(known))}")
    return value


def _list(plain: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = plain.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{where}.{key} must be a list, not {value!r}")
    return list(value)


def _word(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{where} must be a string, not {value!r}")
    return value


def _number(value: Any, where: str, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where} must be an int, not {value!r}")
    if not 0 <= value <= limit:
        raise ValueError(f"{where} must be between 0 and {limit}, not {value!r}")
    return value


def read_profile(path: str | bytes | os.PathLike[Any]) -> Any:
    """A JSON file. Raises `OSError`, or `ValueError` naming the path."""
    import json

    if "\0" in os.fsdecode(path):
        raise ValueError(f"path_or_dict contains a NUL byte: {path!r}")
    with open(path, "rb") as file:
        text = file.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{os.fsdecode(path)} is no JSON: {exc}") from None
