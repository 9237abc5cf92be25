"""linx-trio: structured concurrency for Linux processes. ``import linx_trio as linx``."""

import importlib
from typing import TYPE_CHECKING

from linx_trio import tty
from linx_trio._events import Aborted, Event, Exited, Failed, Info, Outcome, Ready, Running, Signaled, Usage
from linx_trio._options import (
    DEVNULL,
    INHERIT,
    LINGER,
    PIPE,
    PTY,
    STDOUT,
    ConnectUnix,
    Kill,
    Namespace,
    Pty,
    WindowSize,
)
from linx_trio._pty import PtyStream
from linx_trio._run import Completed, enter, run, run_sync, sandbox, sandboxed, spawn
from linx_trio._session import Session
from linx_trio._version import __version__
from linx_trio._workload import Workload
from linx_trio.errors import (
    AgentDied,
    AgentError,
    AlreadyRunning,
    CalledProcessError,
    LinxError,
    NoProcess,
    NoPty,
    NotReady,
    NotSupported,
    RestartLimitExceeded,
    SetupError,
    StateError,
)

if TYPE_CHECKING:
    from linx_trio import capabilities, cgroup, mount, net, ready, seccomp, user
    from linx_trio._limits import Limits
    from linx_trio._probe import Feature, Probe, probe
    from linx_trio._supervise import Backoff, Child, ChildSpec, Supervisor, supervise

__all__ = [
    "DEVNULL",
    "INHERIT",
    "LINGER",
    "PIPE",
    "PTY",
    "STDOUT",
    "Aborted",
    "AgentDied",
    "AgentError",
    "AlreadyRunning",
    "Backoff",
    "CalledProcessError",
    "Child",
    "ChildSpec",
    "Completed",
    "ConnectUnix",
    "Event",
    "Exited",
    "Failed",
    "Feature",
    "Info",
    "Kill",
    "Limits",
    "LinxError",
    "Namespace",
    "NoProcess",
    "NoPty",
    "NotReady",
    "NotSupported",
    "Outcome",
    "Probe",
    "Pty",
    "PtyStream",
    "Ready",
    "RestartLimitExceeded",
    "Running",
    "Session",
    "SetupError",
    "Signaled",
    "StateError",
    "Supervisor",
    "Usage",
    "WindowSize",
    "Workload",
    "__version__",
    "capabilities",
    "cgroup",
    "enter",
    "mount",
    "net",
    "probe",
    "ready",
    "run",
    "run_sync",
    "sandbox",
    "sandboxed",
    "seccomp",
    "spawn",
    "supervise",
    "tty",
    "user",
]


def __getattr__(name: str) -> object:
    """The modules for what is decided at the checkpoint, and supervision, imported when they are first used."""
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_LAZY = frozenset({"capabilities", "cgroup", "mount", "net", "ready", "seccomp", "user"})
_HOMES = {
    "Limits": "_limits",
    **dict.fromkeys(("Backoff", "Child", "ChildSpec", "Supervisor", "supervise"), "_supervise"),
    **dict.fromkeys(("Feature", "Probe", "probe"), "_probe"),
}
