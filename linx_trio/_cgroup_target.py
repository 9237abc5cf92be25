"""Who is to be moved into a cgroup: a pid, a pidfd or a session, and that it is still the same after it has been."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from linx_trio.errors import NoProcess, NotReady


@contextlib.contextmanager
def pinned(target: Any) -> Iterator[tuple[int, Callable[[], bool]]]:
    """The pid of a target, and whether it is still alive."""
    if hasattr(type(target), "host_pid"):
        pidfd = _pidfd_of_session(target)
        yield target.host_pid, lambda: _is_alive(pidfd)
    elif hasattr(target, "fileno"):
        pidfd = target.fileno()
        yield _pid_of(pidfd, target), lambda: _is_alive(pidfd)
    elif isinstance(target, bool) or not isinstance(target, int):
        raise TypeError(f"target must be a pid, a pidfd object or a Session, not {target!r}")
    elif target < 1:
        raise ValueError(f"target must be a pid, at least 1, not {target!r}")
    else:
        yield target, lambda: True  # a number is what the caller trusts


def _pidfd_of_session(session: Any) -> int:
    state = session.state
    if state == "starting":
        raise NotReady("add", state)
    if state not in ("ready", "running") or session.pidfd < 0:
        raise NoProcess("add", state)
    return int(session.pidfd)


def _pid_of(pidfd: int, target: Any) -> int:
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        raise ValueError(f"target={target!r}: its fd {pidfd} is not open") from None
    pid = next((int(line[5:]) for line in lines if line.startswith(b"Pid:\t")), None)
    if pid is None:
        raise ValueError(f"target={target!r}: its fd {pidfd} is no pidfd (pidfd_open(2))")
    return pid


def _is_alive(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # not ours to signal
    return True
