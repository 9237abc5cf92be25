"""`Limits`: what a cgroup may use, checked and turned into what is written to its files. Pure.

Everything wrong is a `TypeError` or `ValueError` that names the limit and the value, before any system call.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

MAX = "max"
"""No limit, in the kernel's word."""

Size = int | str
"""Bytes: a number, ``"256M"`` (K, M, G, T, P and E are powers of 1024), or ``"max"``."""

_SIZE = re.compile(r"\s*(\d{1,19}(?:\.\d{1,9})?)\s*(?:([KMGTPE])i?B?|B)?\s*", re.ASCII | re.IGNORECASE)
_DECIMAL_UNIT = re.compile(r".*\d\s*[KMGTPE]B\s*", re.IGNORECASE | re.DOTALL)
_UNITS = "KMGTPE"
_LARGEST = 2**63 - 1


class Setting(NamedTuple):
    """One file of a cgroup, and what is written to it."""

    controller: str
    file: str
    value: bytes


def size(value: Any, name: str, *, least: int = 0) -> int | str:
    """Bytes, or ``"max"``."""
    number: Any = value
    if isinstance(value, str) and value != MAX:
        found = _SIZE.fullmatch(value)
        if found is None or _DECIMAL_UNIT.fullmatch(value):
            raise ValueError(f"{name}={value!r}: a size is a number of bytes, '256M' (powers of 1024) or 'max'")
        whole, _, fraction = found[1].partition(".")
        factor = 1024 ** (_UNITS.index(found[2].upper()) + 1) if found[2] else 1
        scale = 10 ** len(fraction)
        number, rest = divmod(int(whole + fraction) * factor, scale)
        if rest and factor == 1:
            raise ValueError(f"{name}={value!r} is no whole number of bytes")
    elif value == MAX:
        return MAX
    elif isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a size like '256M', a number of bytes or 'max', not {value!r}")
    if not least <= number <= _LARGEST:
        raise ValueError(f"{name}={value!r} must be between {least} and {_LARGEST} bytes")
    return int(number)


def count(value: Any, name: str, *, least: int = 0) -> int | str:
    """A whole number, or ``"max"``."""
    if value == MAX:
        return MAX
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number or 'max', not {value!r}")
    if not least <= value <= _LARGEST:
        raise ValueError(f"{name}={value!r} must be between {least} and {_LARGEST}")
    return value


def cpus(value: Any, name: str) -> float:
    """How many CPUs' time: 0.5 is half of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of CPUs like 0.5, not {value!r}")
    if not 0.001 <= value <= 8192:  # a NaN is not
        raise ValueError(f"{name}={value!r} must be between 0.001 and 8192 CPUs")
    return value


def bandwidth(value: float) -> tuple[int, int]:
    """The quota and the period, in microseconds, of so many CPUs. The kernel takes quotas from 1 ms on."""
    period = 100_000 if value >= 0.01 else 1_000_000
    return round(value * period), period


def quota(value: Any, period: Any) -> bytes:
    """What is written to ``cpu.max``."""
    if isinstance(period, bool) or not isinstance(period, int):
        raise TypeError(f"period must be a number of microseconds, not {period!r}")
    if not 1000 <= period <= 1_000_000:
        raise ValueError(f"period={period!r} must be between 1000 and 1000000 microseconds")
    if value is None or value == MAX:
        return b"max %d" % period
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"quota must be a number of microseconds or 'max', not {value!r}")
    if not 1000 <= value <= 8192 * 1_000_000:
        raise ValueError(f"quota={value!r} must be at least 1000 microseconds")
    return b"%d %d" % (value, period)


def weight(value: Any, name: str) -> int:
    """A share among siblings."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not 1 <= value <= 10000:
        raise ValueError(f"{name}={value!r} must be between 1 and 10000")
    return value


_CPU_LIST = re.compile(r"\d{1,4}(?:-\d{1,4})?(?:,\d{1,4}(?:-\d{1,4})?)*", re.ASCII)


def cpu_list(value: Any, name: str) -> str:
    """``"0-3,5"``, or the numbers themselves."""
    if isinstance(value, str):
        if not _CPU_LIST.fullmatch(value) or any(_is_backwards(part) for part in value.split(",")):
            raise ValueError(f"{name}={value!r} must be a list of CPUs like '0-3,5'")
        return value
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of CPUs like '0-3,5', or their numbers, not {value!r}")
    numbers = set()
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int):
            raise TypeError(f"{name} must have the numbers of CPUs, not {item!r}")
        if not 0 <= item <= 8191:
            raise ValueError(f"{name} has the CPU {item!r}; there are 0 to 8191")
        numbers.add(item)
    if not numbers:
        raise ValueError(f"{name} is empty: it needs at least one CPU")
    return ",".join(map(str, sorted(numbers)))


def _is_backwards(part: str) -> bool:
    first, sign, last = part.partition("-")
    return bool(sign) and int(first) > int(last)


_DEVICE = re.compile(r"\d{1,9}:\d{1,9}|/[^\0\n ]*", re.ASCII)
_IO_KEYS = ("rbps", "wbps", "riops", "wiops")


def device(value: Any, name: str) -> str:
    """``"8:0"``, or the path of a block device."""
    text = os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else value
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a device like '8:0' or '/dev/sda', not {value!r}")
    if not _DEVICE.fullmatch(text):
        raise ValueError(f"{name}={value!r} must be a device like '8:0' or '/dev/sda'")
    return text


def io_limits(value: Any, name: str) -> dict[str, int | str]:
    """``{"rbps": "10M", "wiops": 100}``, see ``io.max``."""
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{name} must be a mapping like {{'rbps': '10M', 'wiops': 100}}, not {value!r}")
    checked = {}
    for key, limit in value.items():
        if key not in _IO_KEYS:
            raise ValueError(f"{name} has {key!r}; what can be limited is: {', '.join(_IO_KEYS)}")
        checked[key] = (size if key.endswith("bps") else count)(limit, f"{name}[{key!r}]", least=1)
    return checked


def io_line(where: str, limits: Mapping[str, int | str]) -> bytes:
    """What is written to ``io.max``, for the device with the numbers `where`."""
    return " ".join([where, *(f"{key}={limit}" for key, limit in limits.items())]).encode()


def _io(value: Any, name: str) -> dict[str, dict[str, int | str]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping like {{'/dev/sda': {{'rbps': '10M'}}}}, not {value!r}")
    return {device(key, f"a device in {name}"): io_limits(limits, f"{name}[{key!r}]") for key, limits in value.items()}


_PAGE = re.compile(r"\d{1,7}[KMG]B", re.ASCII)


def page_size(value: Any, name: str) -> str:
    """The kernel's name of a size of huge pages, like ``"2MB"``."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a size of huge pages like '2MB', not {value!r}")
    if not _PAGE.fullmatch(value):
        raise ValueError(f"{name}={value!r} must be a size of huge pages like '2MB' or '1GB'")
    return value


def _hugetlb(value: Any, name: str) -> dict[str, int | str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping like {{'2MB': '64M'}}, not {value!r}")
    return {page_size(key, f"a page size in {name}"): size(limit, f"{name}[{key!r}]") for key, limit in value.items()}


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


@dataclass(frozen=True)
class Limits:
    """What one session may use: a cgroup (v2) is made for it, and removed with it. See ``cgroups(7)``.

    Without any limit there is still the group: what it uses is measured, and it is killed at one stroke.

    Args:
        memory: bytes, ``"256M"``, or ``"max"``: above it the kernel reclaims, then kills (``memory.max``).
        memory_high: above it the kernel slows it down and reclaims (``memory.high``).
        swap: of swap, in addition (``memory.swap.max``); 0 is none.
        pids: how many processes and threads, the workload among them (``pids.max``).
        cpu: how many CPUs' time, 0.5 is half of one (``cpu.max``).
        cpu_weight: its share among siblings, 1..10000, 100 is usual (``cpu.weight``).
        cpuset: the CPUs it may run on, ``"0-3,5"`` or the numbers (``cpuset.cpus``).
        io: by device (``"8:0"`` or ``"/dev/sda"``) a mapping with ``rbps``, ``wbps`` (bytes a second), ``riops``,
            ``wiops`` (``io.max``).
        hugetlb: by size of page (``"2MB"``) bytes (``hugetlb.2MB.max``).
        oom_group: for want of memory the kernel kills all of it, not one process (``memory.oom.group``).

    Raises:
        TypeError, ValueError: naming the limit and the value.
    """

    _: KW_ONLY
    memory: Size | None = None
    memory_high: Size | None = None
    swap: Size | None = None
    pids: int | str | None = None
    cpu: float | None = None
    cpu_weight: int | None = None
    cpuset: str | Iterable[int] | None = None
    io: Mapping[str, Mapping[str, Size]] | None = None
    hugetlb: Mapping[str, Size] | None = None
    oom_group: bool = True

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check(value, name))
        if self.oom_group is None:
            raise TypeError("oom_group must be True or False, not None")

    @property
    def controllers(self) -> dict[str, str]:
        """Those of the kernel's controllers that it needs, each with a file that it is needed for."""
        files = {name: (controller, file) for name, controller, file in (*_PLAIN, *_COMPOSED)}
        return {files[name][0]: files[name][1] for name in files if getattr(self, name) is not None}

    def settings(self, device_number: Callable[[str], str]) -> list[Setting]:
        """What is written, in this order. `device_number` is asked for the numbers of a block device by its path."""
        found = [
            Setting(controller, file, str(getattr(self, name)).encode())
            for name, controller, file in _PLAIN
            if getattr(self, name) is not None
        ]
        if self.cpu is not None:
            found.append(Setting("cpu", "cpu.max", b"%d %d" % bandwidth(self.cpu)))
        for page, limit in (self.hugetlb or {}).items():
            found.append(Setting("hugetlb", f"hugetlb.{page}.max", str(limit).encode()))
        for where, limits in (self.io or {}).items():
            numbers = device_number(where) if where.startswith("/") else where
            found.append(Setting("io", "io.max", io_line(numbers, limits)))
        if "memory" in self.controllers:
            found.append(Setting("memory", "memory.oom.group", b"1" if self.oom_group else b"0"))
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of what is limited."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in plain.items() if value != (True if name == "oom_group" else None)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Limits:
        """What `to_dict` described. Raises `TypeError` or `ValueError`, naming what is wrong."""
        if not isinstance(plain, Mapping):
            raise TypeError(f"limits must be a mapping, not {plain!r}")
        unknown = sorted(str(name) for name in plain if name not in _CHECKS)
        if unknown:
            raise ValueError(f"unknown limit {unknown[0]!r}; there are: {', '.join(_CHECKS)}")
        return cls(**plain)


_PLAIN = (
    ("memory_high", "memory", "memory.high"),
    ("swap", "memory", "memory.swap.max"),
    ("memory", "memory", "memory.max"),
    ("pids", "pids", "pids.max"),
    ("cpu_weight", "cpu", "cpu.weight"),
    ("cpuset", "cpuset", "cpuset.cpus"),
)
"""The limits whose value stands in the file as it is, with controller and file."""

_COMPOSED = (("cpu", "cpu", "cpu.max"), ("io", "io", "io.max"), ("hugetlb", "hugetlb", "hugetlb.*.max"))
"""The others."""

_CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
    "memory": lambda value, name: size(value, name, least=1),
    "memory_high": lambda value, name: size(value, name, least=1),
    "swap": size,
    "pids": lambda value, name: count(value, name, least=1),
    "cpu": cpus,
    "cpu_weight": weight,
    "cpuset": cpu_list,
    "io": _io,
    "hugetlb": _hugetlb,
    "oom_group": _flag,
}


def check_limits(value: Any, name: str) -> Limits | None:
    """The option ``limits``."""
    if value is not None and not isinstance(value, Limits):
        raise TypeError(f"{name} must be linx.Limits(memory='256M', …), not {value!r}")
    return value


_NAME_BYTES = 255


def check_name(value: Any, name: str) -> str:
    """A cgroup's name, or a path of one: as it is, without a slash at its end."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be a name or a path, not {value!r}")
    text = os.fsdecode(value)
    if not text:
        raise ValueError(f"{name} is empty: a cgroup needs a name")
    if "\0" in text or "\n" in text:
        raise ValueError(f"{name}={value!r}: the name of a cgroup has no NUL byte and no newline")
    parts = [part for part in text.split("/") if part]
    if any(part in (".", "..") for part in parts) or (not parts and not text.startswith("/")):
        raise ValueError(f"{name}={value!r}: the name of a cgroup is neither '.' nor '..'")
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in parts):
        raise ValueError(f"{name}={value!r}: the name of a cgroup has at most {_NAME_BYTES} bytes")
    return ("/" if text.startswith("/") else "") + "/".join(parts)


def check_cgroup(value: Any, name: str) -> Any:
    """The option ``cgroup``: a `Cgroup`, which is known by what it can do, or a name or path."""
    if value is None or callable(getattr(type(value), "set_memory_max", None)):
        return value
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be a linx.cgroup.Cgroup, or its path or name, not {value!r}")
    return check_name(value, name)
