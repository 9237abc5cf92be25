"""`Workload`: the one validated description behind `spawn`, `run` and `run_sync`.

Everything wrong with it is a `TypeError` or `ValueError` here, before any system call, naming the argument and the
value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import trio

from linx_trio._checks import CHECKS
from linx_trio._options import (
    DEFAULT_ORPHAN_POLICY,
    DEFAULT_SHUTDOWN,
    INHERIT,
    LINGER,
    Argument,
    ConnectUnix,
    HasFileno,
    Kill,
    Linger,
    Namespace,
    Pty,
    Stdio,
    StdioSpec,
)


@dataclass(frozen=True)
class Workload:
    """What to run, and how. Frozen; picklable and `to_dict`-able whenever its stdio is no fd and it has no owner.

    Args:
        argv: the program and its arguments. ``argv[0]`` with a slash is the path; without one it is looked up in the
            workload's ``PATH``.
        namespaces: created fresh for the workload, see ``namespaces(7)``.
        env: its environment; `None` is the caller's, ``{}`` an empty one.
        cwd: its working directory; `None` is the caller's. Entered with the workload's own ids.
        stdin, stdout, stderr: `INHERIT`, `DEVNULL`, `PIPE`, `STDOUT` (stderr only), `ConnectUnix`, an fd, or an
            object with ``fileno()``.
        stdio: `INHERIT`, `DEVNULL` or `PIPE` for all three; or `PTY` or `Pty`, a terminal.
        auto_proceed: pass the checkpoint without `Session.proceed`.
        owner: a `trio.MemorySendChannel` that receives the session's events.
        orphan_policy: what becomes of a running workload when Python vanishes: `Kill` or `LINGER`.
        shutdown: what leaving the ``async with`` block does to a running workload.
        uid, gid: user and group ids, real, effective and saved (``credentials(7)``).
        groups: supplementary groups. `None`: the caller's, or none at all where `uid` makes the workload somebody else.
        umask: see ``umask(2)``; `None` is the caller's.
        nice: added to the caller's, see ``nice(2)``.
        rlimits: ``{"nofile": (soft, hard)}``, see ``getrlimit(2)``; -1 is unlimited. What is not named is the caller's.
        hostname: with a fresh uts namespace, its name.
        new_session: its own session (``setsid(2)``); else the caller's session, in a background process group of its
            own.
        pass_fds: fds that the workload sees under the same numbers.
        no_new_privs: see ``PR_SET_NO_NEW_PRIVS`` in ``prctl(2)``.
        optional: names of options that may be given up where this machine cannot grant them. What was given up is in
            ``info().degraded``; without this it is a `SetupError`.

    Raises:
        TypeError, ValueError: naming the argument and the value.
    """

    argv: Sequence[Argument]
    _: KW_ONLY
    namespaces: Iterable[str | Namespace] = frozenset()
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None
    cwd: Argument | None = None
    stdin: StdioSpec = INHERIT
    stdout: StdioSpec = INHERIT
    stderr: StdioSpec = INHERIT
    stdio: Stdio | Pty | None = None
    auto_proceed: bool = False
    owner: trio.MemorySendChannel[Any] | None = None
    orphan_policy: Kill | Linger = DEFAULT_ORPHAN_POLICY
    shutdown: Kill = DEFAULT_SHUTDOWN
    uid: int | None = None
    gid: int | None = None
    groups: Iterable[int] | None = None
    umask: int | None = None
    nice: int = 0
    rlimits: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    hostname: str | None = None
    new_session: bool = True
    pass_fds: Iterable[int | HasFileno] = ()
    no_new_privs: bool = False
    optional: Iterable[str] = frozenset()

    def __post_init__(self) -> None:
        for field, check in CHECKS.items():
            value = getattr(self, field)
            if value is not _CHECKED.get(field, _CHECKED):  # most options are at their defaults
                object.__setattr__(self, field, check(value, field))
        self._expand_stdio()
        if self.hostname is not None and "uts" not in self.namespaces:
            raise ValueError(
                f"hostname={self.hostname!r} needs a namespace to be set in: add 'uts' to namespaces "
                "(otherwise the host itself would be renamed)"
            )

    def _expand_stdio(self) -> None:
        if self.stdio is None:
            return
        for name in ("stdin", "stdout", "stderr"):
            if getattr(self, name) is not INHERIT:
                raise ValueError(
                    f"stdio={self.stdio!r} is for all three streams: {name}={getattr(self, name)!r} contradicts it"
                )
        if isinstance(self.stdio, Pty):
            if not self.new_session:
                raise ValueError(
                    f"stdio={self.stdio!r} and new_session=False contradict each other: the terminal is "
                    "the controlling one of a session of its own"
                )
            return
        for name in ("stdin", "stdout", "stderr"):
            object.__setattr__(self, name, self.stdio)
        object.__setattr__(self, "stdio", None)

    @property
    def arguments(self) -> tuple[str, ...]:
        """`argv`, validated: bytes decoded as `os.fsdecode` does."""
        return cast("tuple[str, ...]", self.argv)

    @property
    def namespace_names(self) -> frozenset[str]:
        """`namespaces`, validated."""
        return cast("frozenset[str]", self.namespaces)

    def replace(self, **changes: Any) -> Workload:
        """The same workload with other options, validated again. Raises `TypeError` for an unknown one."""
        if changes.get("stdio") is not None:
            changes = {"stdin": INHERIT, "stdout": INHERIT, "stderr": INHERIT, **changes}
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of what differs from the defaults.

        Raises `TypeError` where it holds an fd or a channel, which mean nothing elsewhere.
        """
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            default = field.default_factory() if callable(field.default_factory) else field.default
            if value == default:
                continue
            plain[field.name] = _to_plain(field.name, value)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Workload:
        """The workload that `to_dict` described. Raises `TypeError` or `ValueError`, naming what is wrong."""
        if not isinstance(plain, Mapping) or "argv" not in plain:
            raise ValueError(f"a workload needs 'argv': {plain!r}")
        return cls(**{name: _from_plain(name, value) for name, value in plain.items()})


_CHECKED = {field.name: field.default for field in dataclasses.fields(Workload) if field.name != "argv"}
"""Defaults are as they are kept."""


def as_workload(argv_or_workload: Any, options: Mapping[str, Any]) -> Workload:
    """What the public functions take: argv and options, or a `Workload` and changes to it."""
    if isinstance(argv_or_workload, Workload):
        return argv_or_workload.replace(**options) if options else argv_or_workload
    return Workload(argv_or_workload, **options)


# ---- plain data ------------------------------------------------------------------------------------------------


def _to_plain(name: str, value: Any) -> Any:
    match value:
        case Kill(grace):
            return {"kill": grace}
        case Stdio() | Linger():
            return value.value
        case Pty(rows, cols):
            return {"pty": [rows, cols]}
        case ConnectUnix(path):
            return {"connect_unix": path}
        case frozenset():
            return sorted(value)
        case tuple():
            if name == "pass_fds":
                raise TypeError(
                    f"pass_fds={value!r}: an fd means nothing elsewhere, so this workload has no plain form"
                )
            return list(value)
        case dict():
            return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}
        case None | bool() | str():
            return value
        case int() if name not in {"stdin", "stdout", "stderr"}:
            return value
    raise TypeError(f"{name}={value!r} means nothing elsewhere, so this workload has no plain form")


def _from_plain(name: str, value: Any) -> Any:
    if name in {"stdin", "stdout", "stderr", "stdio"} and isinstance(value, Mapping):
        match dict(value):
            case {"pty": [rows, cols], **rest} if not rest:
                return Pty(rows, cols)
            case {"connect_unix": path, **rest} if not rest:
                return ConnectUnix(path)
        raise ValueError(f"{name}={value!r} must be {{'pty': [rows, cols]}} or {{'connect_unix': path}}")
    if name in {"stdin", "stdout", "stderr", "stdio"} and isinstance(value, str):
        if value not in {member.value for member in Stdio}:
            raise ValueError(f"{name}={value!r} is none of {', '.join(member.value for member in Stdio)}")
        return Stdio(value)
    if name == "orphan_policy" and value == LINGER.value:
        return LINGER
    if name in {"shutdown", "orphan_policy"}:
        if not isinstance(value, Mapping) or value.keys() != {"kill"}:
            raise ValueError(f"{name}={value!r} must be {{'kill': seconds}}")
        return Kill(grace=value["kill"])
    if name == "rlimits" and isinstance(value, Mapping):
        return {key: tuple(pair) if isinstance(pair, list) else pair for key, pair in value.items()}
    return value
