"""`Workload`: the one validated description behind `spawn`, `run` and `run_sync`.

Everything wrong with it is a `TypeError` or `ValueError` here, before any system call, naming the argument and the
value.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, cast

import trio

from linx_trio._checks import CHECKS, sysctl_namespace
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

if TYPE_CHECKING:
    from linx_trio._capabilities import Policy
    from linx_trio._cgroup_group import Cgroup
    from linx_trio._idmaps import Maps
    from linx_trio._limits import Limits
    from linx_trio._mount_entries import Tmpfs
    from linx_trio._mount_steps import Entry
    from linx_trio._seccomp_filter import Filter


@dataclass(frozen=True)
class Workload:
    """What to run, and how. Frozen; picklable and `to_dict`-able whenever it has no fds and no owner. A `Cgroup` is
    pickled as its path.

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
        oom_score_adj: how readily the kernel kills it for want of memory, -1000..1000 (``proc(5)``); `None`: as the
            caller. Lowering it needs CAP_SYS_RESOURCE.
        cpu_affinity: the numbers of the CPUs it may run on, see ``sched_setaffinity(2)``; `None`: as the caller.
        hostname, domainname: with a fresh uts namespace, its names.
        sysctls: ``{"net.ipv4.ip_forward": 1}``, settings of the workload's fresh namespaces (``net``, ``ipc``,
            ``user``).
        time_offsets: ``{"monotonic": 3600, "boottime": 3600}``, seconds that are added to these clocks in a fresh time
            namespace, see ``time_namespaces(7)``. Imply that namespace.
        init: with a fresh PID namespace: a small process of ours is pid 1 there. It reaps, passes signals on to the
            workload, and ends the namespace with it. Else the workload itself is pid 1.
        new_session: its own session (``setsid(2)``); else the caller's session, in a background process group of its
            own.
        pass_fds: fds that the workload sees under the same numbers.
        no_new_privs: see ``PR_SET_NO_NEW_PRIVS`` in ``prctl(2)``.
        user: the ids of a fresh user namespace, `linx_trio.user.root_map()` or `linx_trio.user.Maps`. Implies that
            namespace.
        root: a directory that becomes the workload's root (``pivot_root(2)``; nothing of the old one remains), or
            ``linx.mount.Tmpfs("/")``, an empty one. Implies a mount namespace.
        mounts: entries of `linx_trio.mount`, in their order, below that root. Imply a mount namespace.
        cgroup: a `linx_trio.cgroup.Cgroup`, or the name or path of one (v2), which it is born into. With `limits` the
            fresh group is made below it.
        limits: `linx_trio.Limits`: what it may use, all its descendants included. A fresh cgroup is made for it, and
            removed with it.
        capabilities: `linx_trio.capabilities.keep` or `drop`.
        seccomp: a filter of `linx_trio.seccomp`, installed as the last act before ``execve(2)``. An installer without
            CAP_SYS_ADMIN gets ``no_new_privs`` with it.
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
    oom_score_adj: int | None = None
    cpu_affinity: Iterable[int] | None = None
    hostname: str | None = None
    domainname: str | None = None
    sysctls: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    time_offsets: Mapping[str, float] = dataclasses.field(default_factory=dict)
    init: bool = False
    new_session: bool = True
    pass_fds: Iterable[int | HasFileno] = ()
    no_new_privs: bool = False
    user: Maps | None = None
    root: Argument | Tmpfs | None = None
    mounts: Iterable[Entry] = ()
    cgroup: Cgroup | Argument | None = None
    limits: Limits | None = None
    capabilities: Policy | None = None
    seccomp: Filter | None = None
    optional: Iterable[str] = frozenset()

    def __post_init__(self) -> None:
        self._check({field: getattr(self, field) for field in CHECKS})

    def _check(self, given: Mapping[str, Any]) -> None:
        """Checks these options, and what all of them are together."""
        for field, value in given.items():
            if value is not _CHECKED.get(field, _CHECKED):  # most options are at their defaults
                value = CHECKS[field](value, field)
            object.__setattr__(self, field, value)
        self._expand_stdio()
        self._add_namespaces()
        self._check_namespaces()
        if self.root is not None and self.mounts:
            from linx_trio import _mount_tree

            _mount_tree.check_root_and_mounts(cast("str | Tmpfs", self.root), cast("tuple[Entry, ...]", self.mounts))

    def _add_namespaces(self) -> None:
        """Those that an option makes no sense without."""
        implied = set()
        if self.user is not None:
            implied.add("user")
        if self.root is not None or self.mounts:
            implied.add("mount")
        if self.time_offsets:
            implied.add("time")
        if not implied <= self.namespace_names:
            object.__setattr__(self, "namespaces", self.namespace_names | implied)

    def _check_namespaces(self) -> None:
        """What would change the host needs a namespace of the workload's own."""
        for name in ("hostname", "domainname"):
            if getattr(self, name) is not None and "uts" not in self.namespace_names:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} needs a namespace to be set in: add 'uts' to namespaces "
                    "(otherwise the host itself would be renamed)"
                )
        for path in self.sysctls:
            kind = sysctl_namespace(path)
            if kind not in self.namespace_names:
                raise ValueError(
                    f"sysctls has {path!r}, which needs a namespace to be set in: add {kind!r} to namespaces"
                )
        if self.init and "pid" not in self.namespace_names:
            raise ValueError("init=True is about pid 1 of a fresh PID namespace: add 'pid' to namespaces")

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

    @property
    def optional_names(self) -> frozenset[str]:
        """`optional`, validated."""
        return cast("frozenset[str]", self.optional)

    def replace(self, **changes: Any) -> Workload:
        """The same workload with other options, which are validated. Raises `TypeError` for an unknown one."""
        if changes.get("stdio") is not None:
            changes = {"stdin": INHERIT, "stdout": INHERIT, "stderr": INHERIT, **changes}
        if not changes.keys() <= CHECKS.keys():
            return dataclasses.replace(self, **changes)  # which names it
        # Not `dataclasses.replace`: what stays has been checked, and there is much of it.
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        for remembered in ("variants", "last_request", "assignments"):
            copy.__dict__.pop(remembered, None)
        copy._check(changes)
        return copy

    @functools.cached_property
    def last_request(self) -> list[Any]:
        """What `_request.build` has made it into, and of what; it is likely to be asked for the same again."""
        return [None, None]

    @functools.cached_property
    def assignments(self) -> tuple[bytes, ...] | None:
        """`env` as ``execve(2)`` takes it; `None` where that is the caller's."""
        env = cast("Mapping[str, str] | None", self.env)
        return None if env is None else tuple([os.fsencode(f"{key}={value}") for key, value in env.items()])

    @functools.cached_property
    def variants(self) -> dict[tuple[tuple[str, Any], ...], Workload]:
        """What `as_variant` has made of it."""
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        """For `pickle`: the plain form, which refuses by name what means nothing in another process."""
        return type(self).from_dict, (self.to_dict(),)

    def __copy__(self) -> Workload:
        return self

    def __deepcopy__(self, memo: object) -> Workload:
        return self  # frozen, and its fds and its cgroup are those of this process

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


_PLAIN_FORMS = ("user", "limits", "capabilities", "seccomp")
"""Options whose values have `to_dict` and `from_dict` themselves."""

_CHECKED = {field.name: field.default for field in dataclasses.fields(Workload) if field.name != "argv"}
"""Defaults are as they are kept."""

_PLAIN = Workload(("true",))


def as_workload(argv_or_workload: Any, options: Mapping[str, Any]) -> Workload:
    """What the public functions take: argv and options, or a `Workload` and changes to it."""
    if isinstance(argv_or_workload, Workload):
        return argv_or_workload.replace(**options) if options else argv_or_workload
    options = {**options, "argv": argv_or_workload}
    return remembered(_plain, options) or _PLAIN.replace(**options)


def as_variant(argv_or_workload: Any, changes: Mapping[str, Any]) -> Workload:
    """The same for changes that are constants, of which there are few: the result is made once, and the same object."""
    own = as_workload(argv_or_workload, {})
    key = tuple(changes.items())
    if key not in own.variants:
        own.variants[key] = own.replace(**changes)
    return own.variants[key]


# The same few programs are run again and again, by the same few calls.

Key = tuple[tuple[str, type, Any], ...]
_ATOMS = frozenset({str, int, bool, type(None), Stdio})
_ONLY_TEXT = frozenset({str})
_LONG = 4096  # characters: more is not kept


def remembered(workload_of: Callable[[Key], Workload], options: Mapping[str, Any]) -> Workload | None:
    """The workload of these options from a cache; `None` where they are not to be kept there, or are wrong: the errors
    shall tell of what was really given.
    """
    key = _key(options)
    if key is not None:
        with suppress(TypeError, ValueError):
            return workload_of(key)
    return None


def options_of(key: Key) -> dict[str, Any]:
    """The options that it was made from."""
    return {name: value for name, _, value in key}


def _key(options: Mapping[str, Any]) -> Key | None:
    """What makes these options the same as others; `None` for those with a value that may change, that equals another
    which means something else, or that is long.
    """
    key = []
    for name, value in options.items():
        kind = type(value)
        if kind is list or kind is tuple or kind is set or kind is frozenset:
            if not _is_short_text(value):
                return None
            kind = frozenset if kind in (set, frozenset) else tuple
            value = kind(value)
        elif kind not in _ATOMS:
            return None
        key.append((name, kind, value))
    return tuple(key)


def _is_short_text(values: Collection[Any]) -> bool:
    """Whether a list or the like is worth remembering by its value: it is of nothing but strings, and not long."""
    return _ONLY_TEXT.issuperset(map(type, values)) and sum(map(len, values)) <= _LONG


@functools.lru_cache(maxsize=64)
def _plain(key: Key) -> Workload:
    return _PLAIN.replace(**options_of(key))


# ---- plain data ------------------------------------------------------------------------------------------------


def _to_plain(name: str, value: Any) -> Any:
    if name == "mounts":
        return [entry.to_dict() for entry in value]
    if name == "cgroup":
        return value if isinstance(value, str) else value.path
    if name in _PLAIN_FORMS or (name == "root" and not isinstance(value, str)):
        return value.to_dict()
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
        case Mapping():
            return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}
        case None | bool() | str():
            return value
        case int() if name not in {"stdin", "stdout", "stderr"}:
            return value
    raise TypeError(f"{name}={value!r} means nothing elsewhere, so this workload has no plain form")


def _from_plain(name: str, value: Any) -> Any:
    if name in ("mounts", "root", *_PLAIN_FORMS) and isinstance(value, (Mapping, list)):
        return _large_from_plain(name, value)
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


def _large_from_plain(name: str, value: Any) -> Any:
    """The values of modules that are imported only when somebody needs them."""
    match name:
        case "user":
            from linx_trio._idmaps import Maps

            return Maps.from_dict(value)
        case "limits":
            from linx_trio._limits import Limits

            return Limits.from_dict(value)
        case "capabilities":
            from linx_trio._capabilities import Policy

            return Policy.from_dict(value)
        case "seccomp":
            from linx_trio._seccomp_filter import Filter

            return Filter.from_dict(value)
        case "root":
            from linx_trio._mount_tree import entry_of

            return entry_of(value, "root")
    from linx_trio._mount_tree import entry_of

    return [entry_of(entry, f"mounts[{i}]") for i, entry in enumerate(value)]
