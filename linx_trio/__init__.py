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
    SetupError,
    StateError,
)

if TYPE_CHECKING:
    from linx_trio import capabilities, mount, seccomp, user

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
    "CalledProcessError",
    "Completed",
    "ConnectUnix",
    "Event",
    "Exited",
    "Failed",
    "Info",
    "Kill",
    "LinxError",
    "Namespace",
    "NoProcess",
    "NoPty",
    "NotReady",
    "NotSupported",
    "Outcome",
    "Pty",
    "PtyStream",
    "Ready",
    "Running",
    "Session",
    "SetupError",
    "Signaled",
    "StateError",
    "Usage",
    "WindowSize",
    "Workload",
    "__version__",
    "capabilities",
    "enter",
    "mount",
    "run",
    "run_sync",
    "sandbox",
    "sandboxed",
    "seccomp",
    "spawn",
    "tty",
    "user",
]


def __getattr__(name: str) -> object:
    """The modules for what is decided at the checkpoint, imported when they are first used."""
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_LAZY = frozenset({"capabilities", "mount", "seccomp", "user"})
