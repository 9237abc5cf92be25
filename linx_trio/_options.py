"""The values that a workload's options take: namespaces, standard streams, policies, and the options' types."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import trio


class Namespace(StrEnum):
    """The kinds of ``namespaces(7)``; their names as plain strings do as well."""

    NET = "net"
    MOUNT = "mount"
    PID = "pid"
    UTS = "uts"
    IPC = "ipc"
    USER = "user"
    CGROUP = "cgroup"
    TIME = "time"


class Stdio(Enum):
    """What a standard stream of the workload is, unless it is an fd."""

    INHERIT = "inherit"
    DEVNULL = "devnull"
    PIPE = "pipe"
    STDOUT = "stdout"
    PTY = "pty"

    def __repr__(self) -> str:
        return f"linx.{self.name}"


INHERIT = Stdio.INHERIT
"""The caller's own stream."""
DEVNULL = Stdio.DEVNULL
"""``/dev/null``."""
PIPE = Stdio.PIPE
"""A new ``pipe(7)``; its other end is a trio stream on the session."""
STDOUT = Stdio.STDOUT
"""For stderr: the same as stdout."""
PTY = Stdio.PTY
"""For ``stdio=``: a new terminal, ``Pty()``."""


def _dimension(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not 0 <= value <= 65535:
        raise ValueError(f"{name} must be between 0 and 65535 (TIOCSWINSZ, ioctl_tty(2)), not {value!r}")


@dataclass(frozen=True, slots=True)
class WindowSize:
    """The size of a terminal's window: in characters, and in pixels where that is known (``TIOCSWINSZ``)."""

    rows: int
    cols: int
    xpixel: int = 0
    ypixel: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "xpixel", "ypixel"):
            _dimension(getattr(self, name), name)


@dataclass(frozen=True, slots=True)
class Pty:
    """For ``stdio=``: a new terminal (``pty(7)``) of that size, for all three streams. The workload is its session
    leader, and it is the workload's controlling terminal; this side's end is `Session.pty`.
    """

    rows: int = 24
    cols: int = 80

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            _dimension(getattr(self, name), name)


@dataclass(frozen=True, slots=True)
class ConnectUnix:
    """For one stream: a connection to the ``unix(7)`` stream socket at `path` of the host, made before the workload
    exists. A path that begins with a NUL byte is in the abstract namespace.
    """

    path: str | bytes | os.PathLike[str] | os.PathLike[bytes]

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, bytes, os.PathLike)):
            raise TypeError(f"path must be str, bytes or a path, not {self.path!r}")
        text = os.fsdecode(self.path)
        if not text:
            raise ValueError("path is the empty string")
        if "\0" in text[1:] and not text.startswith("\0"):
            raise ValueError(f"path contains a NUL byte: {self.path!r}")
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            raise ValueError(f"path cannot be encoded for the kernel: {self.path!r}") from None
        object.__setattr__(self, "path", text)


class Linger(Enum):
    LINGER = "linger"

    def __repr__(self) -> str:
        return "linx.LINGER"


LINGER = Linger.LINGER
"""Orphan policy: a workload that has been running when Python vanished is left running. It is still reaped when it
ends.
"""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGTERM to the workload, `grace` seconds to end by itself, then SIGKILL to all that is left of the session.

    With a grace of 0 it is SIGKILL at once.
    """

    grace: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.grace, bool) or not isinstance(self.grace, (int, float)):
            raise TypeError(f"grace must be a number of seconds, not {self.grace!r}")
        if not 0 <= self.grace <= 4e6:  # a NaN is not; the agent counts milliseconds in 32 bits
            raise ValueError(f"grace must be between 0 and 4e6 seconds, not {self.grace!r}")


DEFAULT_ORPHAN_POLICY = Kill(grace=5.0)
DEFAULT_SHUTDOWN = Kill(grace=0.0)


class HasFileno(Protocol):
    def fileno(self) -> int: ...


Argument = str | bytes | os.PathLike[str] | os.PathLike[bytes]
StdioSpec = Stdio | ConnectUnix | int | HasFileno

RLIMITS: Mapping[str, int] = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8, "as": 9,
    "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
"""The kernel's numbers for the limits of ``getrlimit(2)``."""

OPTIONAL = frozenset(
    {
        *("cgroup", "cpu_affinity", "domainname", "groups", "hostname", "limits", "nice", "no_new_privs"),
        *("oom_score_adj", "rlimits", "sysctls", "time_offsets"),
    }
)
"""The options that can be given up one by one where the kernel refuses them."""

PASS_FDS_LIMIT = 240
"""``unix(7)`` passes 253 at a time, and the standard streams and the directory need some."""


if TYPE_CHECKING:
    from linx_trio._capabilities import Policy
    from linx_trio._cgroup_group import Cgroup
    from linx_trio._idmaps import Maps
    from linx_trio._limits import Limits
    from linx_trio._mount_entries import Tmpfs
    from linx_trio._mount_steps import Entry
    from linx_trio._seccomp_filter import Filter


class CommonOptions(TypedDict, total=False):
    """The keyword arguments that all ways to start something have in common; each is a field of `Workload`."""

    env: Mapping[str, str] | Mapping[bytes, bytes] | None
    cwd: Argument | None
    stdout: StdioSpec
    stderr: StdioSpec
    stdio: Stdio | Pty | None
    auto_proceed: bool
    owner: trio.MemorySendChannel[Any] | None
    orphan_policy: Kill | Linger
    shutdown: Kill
    uid: int | None
    gid: int | None
    groups: Iterable[int] | None
    umask: int | None
    nice: int
    rlimits: Mapping[str, tuple[int, int]]
    oom_score_adj: int | None
    cpu_affinity: Iterable[int] | None
    new_session: bool
    pass_fds: Iterable[int | HasFileno]
    no_new_privs: bool
    cgroup: Cgroup | Argument | None
    limits: Limits | None
    capabilities: Policy | None
    seccomp: Filter | None
    optional: Iterable[str]


class RunOptions(CommonOptions, total=False):
    """The keyword arguments of `run` and `run_sync`, their own ``stdin`` aside."""

    namespaces: Iterable[str | Namespace]
    hostname: str | None
    domainname: str | None
    sysctls: Mapping[str, str | int]
    time_offsets: Mapping[str, float]
    init: bool
    user: Maps | None
    root: Argument | Tmpfs | None
    mounts: Iterable[Entry]


class Options(RunOptions, total=False):
    """The keyword arguments of `spawn`; each is a field of `Workload`, documented there."""

    stdin: StdioSpec


class SandboxOptions(CommonOptions, total=False):
    """The keyword arguments of `sandbox`: those that it does not decide itself."""

    stdin: StdioSpec
    hostname: str | None
    domainname: str | None
    sysctls: Mapping[str, str | int]
    time_offsets: Mapping[str, float]
    init: bool
    mounts: Iterable[Entry]


class EnteringOptions(CommonOptions, total=False):
    """The keyword arguments of what runs to its end inside of others' namespaces, its own ``stdin`` aside."""

    hostname: str | None
    domainname: str | None
    sysctls: Mapping[str, str | int]
    root: Argument | Tmpfs | None
    mounts: Iterable[Entry]


class EnterOptions(EnteringOptions, total=False):
    """The keyword arguments of `enter`, its own ``namespaces`` aside."""

    stdin: StdioSpec


class ProgramOptions(CommonOptions, total=False):
    """The keyword arguments of a program whose namespaces others have decided."""

    stdin: StdioSpec
