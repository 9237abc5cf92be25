"""Every error of the package, by who is at fault.

- The caller: `TypeError` and `ValueError`, before any system call, naming the argument and the value.
- The caller, about time: `StateError` (a verb that is illegal now).
- The kernel: `SetupError`, an `OSError` with the place (`stage`), the thing (`filename`) and a `hint`.
- The agent: `AgentDied`, `AgentError`.
- The machine: `NotSupported`.
- The workload: `CalledProcessError`, from `run` with `check`; `RestartLimitExceeded`, from `supervise`.
"""

from __future__ import annotations

import errno as _errno
import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from linx_trio._events import Outcome, Usage

__all__ = [
    "AgentDied",
    "AgentError",
    "AlreadyRunning",
    "CalledProcessError",
    "Hint",
    "LinxError",
    "NoProcess",
    "NoPty",
    "NotReady",
    "NotSupported",
    "RestartLimitExceeded",
    "SetupError",
    "StateError",
]


class LinxError(Exception):
    """The base of all errors of this package."""


class Hint(str):
    """The hint of an error whose cause has been recognised: a `str` for people, with parts for programs. Picklable.

    Attributes:
        cause: a stable name (``"apparmor-userns"``), the same wherever this cause shows itself.
        why: what stands in the way.
        remedy: what to do about it; empty where nothing can be done.
    """

    cause: str
    why: str
    remedy: str

    def __new__(cls, cause: str, why: str, remedy: str = "", joint: str = ": ") -> Hint:
        self = super().__new__(cls, f"{why}{joint}{remedy}" if remedy else why)
        self.cause, self.why, self.remedy = cause, why, remedy
        return self

    def __reduce__(self) -> tuple[object, ...]:
        joint = self[len(self.why) : len(self) - len(self.remedy)]
        return Hint, (self.cause, self.why, self.remedy, joint or ": ")


class SetupError(LinxError, OSError):
    """The kernel refused something before the workload ran.

    With ENOENT it is also a `FileNotFoundError`, with EACCES and EPERM a `PermissionError`, with ENOTDIR a
    `NotADirectoryError`, so that ``except`` works as with `subprocess`.

    Attributes:
        errno: the kernel's error number, see ``errno(3)``.
        strerror: its text.
        stage: the step that was refused: ``clone``, ``chdir``, ``rlimit``, ``execve``, …
        filename: the thing that it was about (the program, the directory, the limit), or `None`.
        hint: the likely cause and the remedy where one is known, or `None`. A `Hint` where the machine shows the cause.
    """

    def __init__(self, errno: int, stage: str, filename: str | bytes | None = None, hint: str | None = None) -> None:
        if filename is None:
            OSError.__init__(self, errno, os.strerror(errno))
        else:
            OSError.__init__(self, errno, os.strerror(errno), filename)
        self.stage = stage
        self.hint = hint

    def __str__(self) -> str:
        thing = "" if self.filename is None else f": {self.filename!r}"
        hint = "" if self.hint is None else f"\n  hint: {self.hint}"
        return (
            f"[{_errno.errorcode.get(self.errno or 0, self.errno)}] {self.strerror}{thing} (stage {self.stage}){hint}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_setup_error, (self.errno, self.stage, self.filename, self.hint)


class _SetupFileNotFoundError(SetupError, FileNotFoundError):
    pass


class _SetupPermissionError(SetupError, PermissionError):
    pass


class _SetupNotADirectoryError(SetupError, NotADirectoryError):
    pass


_BY_ERRNO: dict[int, type[SetupError]] = {
    _errno.ENOENT: _SetupFileNotFoundError,
    _errno.EACCES: _SetupPermissionError,
    _errno.EPERM: _SetupPermissionError,
    _errno.ENOTDIR: _SetupNotADirectoryError,
}

for _variant in _BY_ERRNO.values():  # a traceback shows the name that the documentation has
    _variant.__name__ = _variant.__qualname__ = "SetupError"


def setup_error(errno: int, stage: str, filename: str | bytes | None = None, hint: str | None = None) -> SetupError:
    """The `SetupError` that is also the built-in class for this errno."""
    return _BY_ERRNO.get(errno, SetupError)(errno, stage, filename, hint)


def _rebuild_setup_error(errno: int, stage: str, filename: str | bytes | None, hint: str | None) -> SetupError:
    return setup_error(errno, stage, filename, hint)


class StateError(LinxError, RuntimeError):
    """A verb that is illegal in the session's present state.

    Attributes:
        verb: what was asked.
        state: the state it was asked in.
    """

    _why = "is illegal"

    def __init__(self, verb: str, state: str) -> None:
        super().__init__(verb, state)
        self.verb = verb
        self.state = state

    def __str__(self) -> str:
        return f"{self.verb}: {self._why} (the session is {self.state})"


class NotReady(StateError):
    """It is too early: the kernel has not yet told what was asked for."""

    _why = "not known yet"


class AlreadyRunning(StateError):
    """It is too late: the workload runs, and this belongs before its first instruction."""

    _why = "the workload is past the checkpoint"


class NoProcess(StateError):
    """It is too late: the workload has ended, or never was."""

    _why = "there is no process any more"


class NoPty(StateError):
    """The session has no terminal."""

    _why = "the session was started without a terminal"


class AgentDied(LinxError):
    """The session's agent vanished without a terminal event. Its processes were killed.

    Attributes:
        exit_status: of the agent, negative for a signal as in `subprocess`; `None` where nobody could tell.
        state: the session's last state before.
    """

    def __init__(self, exit_status: int | None, state: str) -> None:
        super().__init__(exit_status, state)
        self.exit_status = exit_status
        self.state = state

    def __str__(self) -> str:
        how = "for unknown reasons"
        if self.exit_status is not None:
            how = f"with exit status {self.exit_status}"
            if self.exit_status < 0:
                how = f"by signal {-self.exit_status}"
        return f"the agent of this session died {how} while the session was {self.state}; its processes were killed"


class AgentError(LinxError):
    """The agent is missing, cannot be executed, is of another version, or spoke nonsense.

    Attributes:
        subject: its path, or what it said.
    """

    def __init__(self, message: str, subject: object = None) -> None:
        super().__init__(message, subject)
        self.subject = subject

    def __str__(self) -> str:
        return str(self.args[0])


class NotSupported(LinxError, OSError):
    """This kernel, or this caller, can never do that.

    Attributes:
        feature: what was asked for.
        hint: what would be needed.
    """

    def __init__(self, feature: str, hint: str) -> None:
        OSError.__init__(self, _errno.ENOSYS, os.strerror(_errno.ENOSYS))
        self.feature = feature
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.feature} is not supported here\n  hint: {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return NotSupported, (self.feature, self.hint)


class CalledProcessError(LinxError, subprocess.CalledProcessError):
    """`run` with ``check=True``: the workload exited with a status other than 0, or was killed by a signal.

    A `subprocess.CalledProcessError` with two attributes more:

    Attributes:
        outcome: `Exited`, `Signaled` or `Aborted`.
        usage: what it used, or `None`.
        truncated: whether captured output was cut at ``max_output``.
    """

    outcome: Outcome
    usage: Usage | None
    truncated: bool

    def __init__(  # the shape of subprocess.CalledProcessError, whose pickling calls this again
        self,
        returncode: int | None,
        cmd: object,
        output: bytes | None = None,
        stderr: bytes | None = None,
        *,
        outcome: Outcome,
        usage: Usage | None = None,
        truncated: bool = False,
    ) -> None:
        subprocess.CalledProcessError.__init__(self, returncode, cmd, output, stderr)  # type: ignore[arg-type]
        self.outcome = outcome
        self.usage = usage
        self.truncated = truncated

    def __str__(self) -> str:
        if self.returncode is None:
            return f"Command {self.cmd!r} was aborted before it ran."
        return subprocess.CalledProcessError.__str__(self)

    def __reduce__(self) -> tuple[object, ...]:
        values = (
            self.returncode,
            self.cmd,
            self.output,
            self.stderr,
            self.outcome,
            self.usage,
            self.truncated,
        )
        return _rebuild_called_process_error, values


def _rebuild_called_process_error(
    returncode: int | None,
    cmd: object,
    output: bytes | None,
    stderr: bytes | None,
    outcome: Outcome,
    usage: Usage | None,
    truncated: bool,
) -> CalledProcessError:
    return CalledProcessError(returncode, cmd, output, stderr, outcome=outcome, usage=usage, truncated=truncated)


class RestartLimitExceeded(LinxError):
    """A supervised child ended too often: all children have been stopped, in the reverse order.

    Its ``__cause__`` is what the child's last incarnation failed with, if it did (a `SetupError`, say).

    Attributes:
        id: the child.
        max_restarts, max_seconds: the limit: so many restarts of any children within so many seconds.
        outcome: how its last incarnation ended, or `None`.
    """

    def __init__(self, id: str, max_restarts: float, max_seconds: float, outcome: Outcome | None = None) -> None:
        super().__init__(id, max_restarts, max_seconds, outcome)
        self.id = id
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self.outcome = outcome

    def __str__(self) -> str:
        last = "" if self.outcome is None else f", the last time with {self.outcome!r}"
        cause = "" if self.__cause__ is None else f"\n  because: {self.__cause__}"
        return (
            f"child {self.id!r} ended{last}, and may not be started again: "
            f"more than {self.max_restarts} restarts within {self.max_seconds:g} s{cause}"
        )
