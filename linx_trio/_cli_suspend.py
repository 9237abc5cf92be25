"""Job control: what ``^Z`` does to a workload that has no terminal of its own.

The terminal sends SIGTSTP to the process group that is in its foreground. This command is in it; the workload is not:
it has a session of its own, and would run on while the shell says "Stopped". To pass SIGTSTP on would not do, as the
kernel lets it stop nobody whom nobody could continue (orphaned process groups, see ``setpgid(2)``). So the workload's
process group gets SIGSTOP, all at once, as a job of the shell would be stopped.

Then the command stops itself, by the signal's own action, so that the shell gets to know. When that returns somebody
has continued it (``fg``, ``bg``, ``kill``), and the workload is continued as well. Where nobody could, the kernel does
not stop us either, and it returns at once.

What has left the workload's process group runs on, as it would below a shell.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

import linx_trio as linx

_PROCESS_GROUP = 4
"""PIDFD_SIGNAL_PROCESS_GROUP of ``pidfd_send_signal(2)``, since Linux 6.9."""


def wanted(tty: bool) -> tuple[signal.Signals, ...]:
    """The signal, unless it has been decided what it does. With a terminal of its own all this is its own affair."""
    return () if tty or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL else (signal.SIGTSTP,)


def suspend(session: linx.Session | None) -> None:
    """Stops the workload and this process. Returns when that is continued, with the workload."""
    if session is not None:
        _to_group(session, signal.SIGSTOP)
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    try:
        signal.raise_signal(signal.SIGTSTP)
    finally:
        signal.signal(signal.SIGTSTP, handler)
        if session is not None:
            _to_group(session, signal.SIGCONT)


def _to_group(session: linx.Session, number: signal.Signals) -> None:
    """It leads its process group for as long as it lives. Nobody is signalled who has taken its number since."""
    with contextlib.suppress(linx.StateError, ProcessLookupError, PermissionError):
        pidfd = session.pidfd
        if pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(pidfd, number, None, _PROCESS_GROUP)
        except OSError as exc:
            if isinstance(exc, (ProcessLookupError, PermissionError)):
                raise
            if not select.select([pidfd], [], [], 0)[0]:  # an older kernel, and it lives
                os.killpg(session.host_pid, number)
