"""What mount entries are made of: checked paths and flags, and the steps that the parked child takes.

A step is a tuple for the agent; with each goes the thing that it is about, for the error.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import re
from collections.abc import Iterable
from typing import Any, ClassVar

Step = tuple[Any, ...]
Steps = list[tuple[Step, str]]

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
NOATIME, STRICTATIME, NODIRATIME, NOSYMFOLLOW = 0x10, 0x20, 0x80, 0x200000
ATIME = 0x70
"""MOUNT_ATTR_* of ``mount_setattr(2)``. What happens to times of access is a number among the bits, cleared as one."""

FLAGS: dict[str, tuple[int, int]] = {
    "ro": (RDONLY, 0), "rw": (0, RDONLY), "nosuid": (NOSUID, 0), "suid": (0, NOSUID), "nodev": (NODEV, 0),
    "dev": (0, NODEV), "noexec": (NOEXEC, 0), "exec": (0, NOEXEC), "noatime": (NOATIME, ATIME),
    "relatime": (0, ATIME), "strictatime": (STRICTATIME, ATIME), "nodiratime": (NODIRATIME, 0),
    "diratime": (0, NODIRATIME), "nosymfollow": (NOSYMFOLLOW, 0), "symfollow": (0, NOSYMFOLLOW),
}  # fmt: skip
"""The flags of a mount, by their names in ``mount(8)``: the bits that each sets, and those that it clears."""

PROPAGATION = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}
"""MS_* of ``mount_namespaces(7)``."""

_AT_MOUNTING = RDONLY | NOSUID | NODEV | NOEXEC
"""What a mount has from its first moment on; ``mount(2)`` has other bits for the rest, which is set right after."""


class Entry:
    """One thing that a file system gets. Frozen, picklable, JSON-able by `to_dict`.

    The subclasses are dataclasses. `steps` is what the parked child does for it.
    """

    __slots__ = ()
    kind: ClassVar[str]
    """Its name in plain form."""

    def steps(self) -> Steps:
        """The steps, each with the thing that it is about."""
        raise NotImplementedError

    def _values(self) -> dict[str, Any]:
        """What differs from the defaults."""
        values = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                values[field.name] = value
        return values

    def __repr__(self) -> str:
        shown = (f"{name}={_shown(name, value)}" for name, value in self._values().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of what differs from the defaults."""
        return {"kind": self.kind, **{name: _plain(value) for name, value in self._values().items()}}

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check(self, *, root: bool = False) -> None:
        """What all have in common: `dst`, and all that is true or false, or an access mode. `root`: it may be "/"."""
        name = type(self).__name__
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name == "dst":
                self._set(dst=destination(value, f"{name}: dst", root=root))
            elif field.name == "mode":
                integer(value, f"{name}: mode", 0o7777, octal=True)
            elif field.type == "bool" or (field.type == "bool | None" and value is not None):
                truth(value, f"{name}: {field.name}")


def _shown(name: str, value: Any) -> str:
    """Contents belong into no log; a mode is read in octal."""
    if name == "mode" and isinstance(value, int):
        return f"{value:#05o}"
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return value


# ---- checks ----------------------------------------------------------------------------------------------------------


def text(value: Any, name: str, limit: str = "a path has 4095 at most") -> str:
    """A path, or a part of one; or what else has that `limit`. Raises `TypeError` or `ValueError`, naming it."""
    try:
        found = os.fsdecode(value)
        raw = os.fsencode(found)
    except TypeError:
        raise TypeError(f"{name} must be str, bytes or a path, not {value!r}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{name} cannot be encoded for the kernel: {value!r}") from None
    if not found:
        raise ValueError(f"{name} is the empty string")
    if "\0" in found:
        raise ValueError(f"{name} contains a NUL byte: {value!r}")
    if len(raw) > 4095:
        raise ValueError(f"{name} has {len(raw)} bytes; {limit}")
    return found


def absolute(value: Any, name: str) -> str:
    """A path that means the same wherever one is."""
    found = text(value, name)
    if not found.startswith("/"):
        raise ValueError(f"{name} must be an absolute path, not {value!r}")
    return found


def destination(value: Any, name: str, *, root: bool = False) -> str:
    """A place below the root that is being built, without detours."""
    found = absolute(value, name)
    parts = [part for part in found.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"{name} must have no '..' in it: {value!r}")
    if not parts and not root:
        raise ValueError(f"{name} is '/': what the root is, root= says")
    return "/" + "/".join(parts)


def truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def integer(value: Any, name: str, high: int, *, low: int = 0, octal: bool = False) -> int:
    show = oct if octal else repr
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {show(high)}, not {show(value)}")
    return value


def size(value: Any, name: str) -> str:
    """As ``tmpfs(5)`` takes it."""
    if isinstance(value, str):
        if not re.fullmatch("0*[1-9][0-9]*[kKmMgG%]?", value):
            raise ValueError(f"{name} must be bytes, or like '64M' or '50%', not {value!r}")
        return value
    return str(integer(value, name, 2**63 - 1, low=1))


def flags(value: Any, name: str) -> tuple[str, ...]:
    """Names of flags. Raises `TypeError` or `ValueError`, naming what is wrong."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be an iterable of names, not {value!r}")
    words = tuple(value)
    for word in words:
        if not isinstance(word, str) or word not in FLAGS:
            raise ValueError(f"unknown mount flag {word!r} in {name}; there are: {', '.join(FLAGS)}")
    return words


def propagation(value: Any, name: str) -> int:
    if not isinstance(value, str) or value not in PROPAGATION:
        raise ValueError(f"{name} must be one of {', '.join(PROPAGATION)}, not {value!r}")
    return PROPAGATION[value]


# ---- flags as bits ---------------------------------------------------------------------------------------------------


_FIELDS = {
    "readonly": ("ro", "rw"), "nosuid": ("nosuid", "suid"), "nodev": ("nodev", "dev"), "noexec": ("noexec", "exec"),
}  # fmt: skip


def words(entry: Entry, options: Iterable[str] = ()) -> list[str]:
    """The flags that an entry names: by its fields, where they are not as by default, by `options` and by its `flags`.

    Raises `ValueError` for two that contradict each other: one of them would be dropped, perhaps a protection.
    """
    values = entry._values()
    said = [(_FIELDS[name][not value], f"{name}={value}") for name, value in values.items() if name in _FIELDS]
    said += [(word, f"{word!r} in options") for word in options if word in FLAGS]
    said += [(word, f"{word!r} in flags") for word in values.get("flags", ())]
    first: dict[int, tuple[str, str]] = {}
    for word, where in said:
        sets, clears = FLAGS[word]
        other, there = first.setdefault(sets | clears, (word, where))
        if other != word:
            raise ValueError(f"{type(entry).__name__}: {there} and {where} contradict each other")
    return [word for word, _ in said]


def bits(words: Iterable[str]) -> tuple[int, int]:
    """What the flags set and what they clear; no two of them contradict each other."""
    to_set = to_clear = 0
    for word in words:
        sets, clears = FLAGS[word]
        to_set |= sets
        to_clear |= clears
    return to_set, to_clear


def attributes(entry: Any) -> int:
    """The bits of its fields `readonly`, `nosuid`, `nodev`, `noexec`."""
    names = (("readonly", RDONLY), ("nosuid", NOSUID), ("nodev", NODEV), ("noexec", NOEXEC))
    return sum(bit for name, bit in names if getattr(entry, name))


def split(to_set: int, to_clear: int) -> tuple[int, tuple[int, int] | None]:
    """What a mount gets from the beginning on, and what is to be changed then."""
    later = to_set & ~_AT_MOUNTING, to_clear
    return to_set & _AT_MOUNTING, later if any(later) else None
