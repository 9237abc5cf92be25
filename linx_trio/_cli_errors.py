"""How the command fails: what it says, and its exit status. The statuses are those of ``docker run`` and ``env(1)``."""

from __future__ import annotations

import errno
import json
import re
import sys
from typing import Any

from linx_trio._events import Aborted, Exited, Outcome, Signaled
from linx_trio.errors import LinxError, NotSupported, SetupError

FAILED = 125
"""What went wrong before there was a workload."""
NOT_EXECUTABLE = 126
NOT_FOUND = 127
TIMED_OUT = 124
"""As with ``timeout(1)``."""


class Complaint(Exception):
    """Something wrong that the command itself has found out: the message, and what to do."""

    def __init__(self, message: str, hint: str | None = None, status: int = FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


def status_of(outcome: Outcome) -> int:
    """The exit status that tells of a workload's end, as a shell would."""
    match outcome:
        case Exited(code):
            return code
        case Signaled(signum):
            return 128 + signum
        case Aborted():
            return FAILED


def failure_status(exc: BaseException) -> int:
    if isinstance(exc, Complaint):
        return exc.status
    if isinstance(exc, SetupError) and exc.stage == "execve":
        return NOT_FOUND if exc.errno == errno.ENOENT else NOT_EXECUTABLE
    return FAILED


def describe(exc: BaseException) -> dict[str, Any]:
    """An error as data: what ``--json`` has below ``error``."""
    told: dict[str, Any] = {
        "type": type(exc).__name__,
        "message": in_words(str(exc).split("\n  hint: ")[0]),
    }
    if isinstance(exc, SetupError):
        told |= {"stage": exc.stage, "errno": errno.errorcode.get(exc.errno or 0), "filename": _text(exc.filename)}
    if isinstance(exc, (SetupError, NotSupported, Complaint)) and exc.hint is not None:
        told["hint"] = in_words(str(exc.hint))
    return told


_ADVICE = re.compile(r"add '(\w+)'(?: to namespaces)?")
_ARGUMENT = re.compile(r"\b(uid|gid|groups|root|cwd)=(?=[ ,)])")
_SPELLED = {"join_cgroup=False": "--no-cgroup", "no_new_privs=True": "--no-new-privs"}


def in_words(text: str) -> str:
    """What the library says, in the words of the command line."""
    for theirs, ours in _SPELLED.items():
        text = text.replace(theirs, ours)
    return _ARGUMENT.sub(r"--\1", _ADVICE.sub(_option, text))


def _option(found: re.Match[str]) -> str:
    """A user namespace is of use with a map only."""
    return "add --map-root-user" if found[1] == "user" else f"add --{found[1]}"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def explain(exc: BaseException) -> str:
    """An error for a person: the message, and below it the hint."""
    told = describe(exc)
    lines = [f"linx: {told['message']}"]
    lines += [f"  hint: {told['hint']}"] if "hint" in told else []
    return "\n".join(lines)


def report(exc: BaseException, *, as_json: bool = False) -> int:
    """Says it on stderr. Returns the exit status."""
    status = failure_status(exc)
    if as_json:
        warn(json.dumps({"exit_status": status, "error": describe(exc)}))
    else:
        warn(explain(exc))
    return status


def warn(text: str) -> None:
    """A line on stderr; where nobody listens any more, nothing."""
    try:
        sys.stderr.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


EXPECTED = (LinxError, OSError, ValueError, TypeError, Complaint)
"""What is told without a traceback."""
