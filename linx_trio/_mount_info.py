"""``/proc/<pid>/mountinfo`` as data (``proc_pid_mountinfo(5)``). Pure functions of its text."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_OCTAL = re.compile(rb"\\([0-7]{3})")
_SPECIAL = re.compile(rb"[ \t\n\\#]")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One mount of a mount namespace.

    Attributes:
        mount_id: unique while it is mounted.
        parent_id: the mount that it is mounted on; its own, or one that cannot be seen, at the top.
        device: major and minor number, as in ``st_dev``.
        root: the directory, within the file system, that is mounted; ``"/"`` unless it is a bind mount.
        mount_point: where, as seen from the process' root.
        options: of this mount: ``("rw", "nosuid", "relatime")``.
        optional: tags that tell about propagation: ``("shared:2",)``.
        fstype: the file system's type.
        source: what it was mounted from; means something to the file system only.
        super_options: of the file system.
    """

    mount_id: int
    parent_id: int
    device: tuple[int, int]
    root: str
    mount_point: str
    options: tuple[str, ...]
    optional: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def readonly(self) -> bool:
        """Whether nothing can be written here."""
        return "ro" in self.options or "ro" in self.super_options

    @property
    def propagation(self) -> str:
        """``"private" "shared" "slave" "unbindable"``, or ``"shared,slave"`` (``mount_namespaces(7)``)."""
        tags = {tag.partition(":")[0] for tag in self.optional}
        found = [name for tag, name in _TAGS.items() if tag in tags]
        return ",".join(found) or "private"

    @property
    def peer_group(self) -> int | None:
        """The group that mounts are propagated to and from; `None` if it is not shared."""
        return self._number("shared")

    @property
    def master(self) -> int | None:
        """The group that mounts are propagated from; `None` if it is no slave."""
        return self._number("master")

    def _number(self, wanted: str) -> int | None:
        for tag in self.optional:
            name, _, number = tag.partition(":")
            if name == wanted:
                return int(number)
        return None


_TAGS = {"shared": "shared", "master": "slave", "unbindable": "unbindable"}


def parse(text: bytes) -> tuple[MountInfo, ...]:
    """All lines, in their order. Raises `ValueError`, naming a line that is none."""
    return tuple(_entry(line) for line in text.split(b"\n") if line)


def render(entries: tuple[MountInfo, ...]) -> bytes:
    """The text that `parse` reads."""
    return b"".join(_line(entry) for entry in entries)


def unescape(field: bytes) -> bytes:
    """Space, tab, newline, backslash, and some more, are written as octal numbers."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def _entry(line: bytes) -> MountInfo:
    fields = line.split(b" ")
    try:
        end = fields.index(b"-", 6)  # of the tags, of which there may be any number
        rest = line.split(b" ", end + 3)[end + 1 :]
        if len(rest) != 3:
            raise ValueError("too few fields")
        major, minor = map(int, fields[2].split(b":"))
        return MountInfo(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=(major, minor),
            root=_text(fields[3]),
            mount_point=_text(fields[4]),
            options=_words(fields[5]),
            optional=tuple(_text(field) for field in fields[6:end]),
            fstype=_text(rest[0]),
            source=_text(rest[1]),
            super_options=_words(rest[2]),
        )
    except ValueError as exc:
        raise ValueError(f"no line of a mountinfo: {line!r} ({exc})") from None


def _text(field: bytes) -> str:
    return os.fsdecode(unescape(field))


def _words(field: bytes) -> tuple[str, ...]:
    """Split first: a comma within an option is an octal number."""
    return tuple(_text(word) for word in field.split(b",") if word)


def _line(entry: MountInfo) -> bytes:
    fields = [
        b"%d %d %d:%d" % (entry.mount_id, entry.parent_id, *entry.device),
        _field(entry.root),
        _field(entry.mount_point),
        _options(entry.options),
        *map(_field, entry.optional),
        b"-",
        _field(entry.fstype),
        _field(entry.source),
        _options(entry.super_options),
    ]
    return b" ".join(fields) + b"\n"


def _field(text: str) -> bytes:
    return _SPECIAL.sub(lambda match: b"\\%03o" % ord(match[0]), os.fsencode(text))


def _options(words: tuple[str, ...]) -> bytes:
    return b",".join(_field(word).replace(b",", b"\\054") for word in words)
