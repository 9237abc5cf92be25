"""The errors: whose they are, what they carry, and that they survive a journey to another process."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import errors
from linx_trio._proto import messages as m
from linx_trio.errors import setup_error
from tests.proto.strategies import relaxed

BASES: dict[type[Exception], tuple[type[Exception], ...]] = {
    linx.LinxError: (Exception,),
    linx.SetupError: (linx.LinxError, OSError),
    linx.StateError: (linx.LinxError, RuntimeError),
    linx.NotReady: (linx.StateError,),
    linx.AlreadyRunning: (linx.StateError,),
    linx.NoProcess: (linx.StateError,),
    linx.NoPty: (linx.StateError,),
    linx.AgentDied: (linx.LinxError,),
    linx.AgentError: (linx.LinxError,),
    linx.NotSupported: (linx.LinxError, OSError),
    linx.CalledProcessError: (linx.LinxError, subprocess.CalledProcessError),
    linx.RestartLimitExceeded: (linx.LinxError,),
}


def test_the_table_is_complete() -> None:
    assert {cls.__name__ for cls in BASES} == set(errors.__all__) - {"Hint"}
    for cls in BASES:
        assert getattr(linx, cls.__name__) is getattr(errors, cls.__name__) is cls
        assert cls.__name__ in linx.__all__


@pytest.mark.parametrize("cls", BASES)
def test_bases(cls: type[Exception]) -> None:
    assert cls.__bases__ == BASES[cls]


def test_every_error_says_what_it_is_about() -> None:
    for cls in BASES:
        assert cls.__doc__


# ---- SetupError -------------------------------------------------------------------------------------------------

BUILT_IN = [
    (errno.ENOENT, FileNotFoundError),
    (errno.EACCES, PermissionError),
    (errno.EPERM, PermissionError),
    (errno.ENOTDIR, NotADirectoryError),
]


@pytest.mark.parametrize(("number", "built_in"), BUILT_IN)
def test_a_setup_error_is_the_built_in_one_too(number: int, built_in: type[OSError]) -> None:
    error = setup_error(number, "execve", "/bin/nothing")
    assert isinstance(error, linx.SetupError)
    assert isinstance(error, built_in)
    assert type(error).__name__ == "SetupError"
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, built_in)


numbers = st.sampled_from(sorted(errno.errorcode)) | st.integers(1, 4095)
things = st.none() | st.text(max_size=20) | st.binary(max_size=20)
hints = st.none() | st.text(min_size=1, max_size=40)


@relaxed
@given(numbers, st.sampled_from(m.STAGES), things, hints)
def test_a_setup_error_carries_and_says_everything(
    number: int, stage: str, thing: str | bytes | None, hint: str | None
) -> None:
    error = setup_error(number, stage, thing, hint)
    for one in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(one) is type(error)
        assert (one.errno, one.strerror) == (number, os.strerror(number))
        assert (one.stage, one.filename, one.hint) == (stage, thing, hint)
        text = str(one)
        assert os.strerror(number) in text
        assert f"stage {stage}" in text
        assert errno.errorcode.get(number, str(number)) in text
        assert thing is None or repr(thing) in text
        assert hint is None or f"hint: {hint}" in text
        assert hint is not None or "hint" not in text.replace(repr(thing), "")
        assert str(one) == str(error)


def test_the_words_of_a_setup_error() -> None:
    error = setup_error(errno.ENOENT, "execve", "ls-", "it is in no directory of the workload's PATH")
    assert str(error) == (
        "[ENOENT] No such file or directory: 'ls-' (stage execve)\n  hint: it is in no directory of the workload's PATH"
    )


def test_a_setup_error_is_caught_where_an_os_error_is() -> None:
    with pytest.raises(OSError, match="ENOSPC") as caught:
        raise setup_error(errno.ENOSPC, "clone")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename is None
    with pytest.raises(linx.LinxError):
        raise caught.value


# ---- the others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [linx.StateError, linx.NotReady, linx.AlreadyRunning, linx.NoProcess, linx.NoPty])
def test_a_state_error(cls: type[linx.StateError]) -> None:
    error = cls("proceed", "exited")
    for one in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(one) is cls
        assert (one.verb, one.state) == ("proceed", "exited")
        assert str(one).startswith("proceed: ")
        assert "(the session is exited)" in str(one)


def test_state_errors_do_not_say_the_same() -> None:
    kinds = [linx.StateError, linx.NotReady, linx.AlreadyRunning, linx.NoProcess, linx.NoPty]
    assert len({str(cls("signal", "ready")) for cls in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("status", "words"), [(None, "unknown"), (-9, "signal 9"), (3, "exit status 3"), (0, "status 0")]
)
def test_agent_died(status: int | None, words: str) -> None:
    error = linx.AgentDied(status, "running")
    for one in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(one) is linx.AgentDied
        assert (one.exit_status, one.state) == (status, "running")
        assert words in str(one)
        assert "running" in str(one)


@pytest.mark.parametrize("subject", [None, Path("/opt/linx-agent"), ("status", "exploded", 5), m.Exit(5), b"\x83"])
def test_agent_error(subject: object) -> None:
    error = linx.AgentError("the agent is missing; reinstall", subject)
    for one in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(one) is linx.AgentError
        assert one.subject == subject
        assert str(one) == "the agent is missing; reinstall"


def test_not_supported() -> None:
    error = linx.NotSupported("time namespaces", "Linux 5.6")
    for one in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(one) is linx.NotSupported
        assert (one.feature, one.hint, one.errno) == ("time namespaces", "Linux 5.6", errno.ENOSYS)
        assert str(one) == "time namespaces is not supported here\n  hint: Linux 5.6"


USAGE = linx.Usage(1.0, 2.0, 3.0, 4096)


@pytest.mark.parametrize(
    ("code", "outcome", "words"),
    [
        (7, linx.Exited(7), "exit status 7"),
        (-9, linx.Signaled(9), "SIGKILL"),
        (None, linx.Aborted(), "aborted before it ran"),
    ],
)
def test_called_process_error(code: int | None, outcome: linx.Outcome, words: str) -> None:
    error = linx.CalledProcessError(code, ["ls"], b"out", b"err", outcome=outcome, usage=USAGE, truncated=True)
    for one in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(one) is linx.CalledProcessError
        assert (one.returncode, one.cmd, one.output, one.stdout, one.stderr) == (code, ["ls"], b"out", b"out", b"err")
        assert (one.outcome, one.usage, one.truncated) == (outcome, USAGE, True)
        assert words in str(one)


VALUES = [
    linx.Ready(5), linx.Running(), linx.Exited(3), linx.Signaled(9, True), linx.Aborted(), linx.Failed(2, "execve"),
    USAGE, linx.Info("spawn", "ready", 5, 1, ("ls",), frozenset(), False, "pidns", None, None, ()),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_errors_and_events_carry_is_frozen_slotted_and_travels(value: object) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    assert not hasattr(value, "__dict__")
    with pytest.raises((AttributeError, TypeError)):
        value.state = "other"  # type: ignore[attr-defined]
    assert hash(value) == hash(copy.copy(value))


def test_a_restart_limit() -> None:
    error = linx.RestartLimitExceeded("web", 3, 5.0, linx.Exited(3))
    assert str(error) == (
        "child 'web' ended, the last time with Exited(code=3), and may not be started again: "
        "more than 3 restarts within 5 s"
    )
    back = pickle.loads(pickle.dumps(error))
    assert (back.id, back.max_restarts, back.max_seconds, back.outcome) == ("web", 3, 5.0, linx.Exited(3))
    caused = linx.RestartLimitExceeded("web", 0, 0.5)
    caused.__cause__ = setup_error(errno.ENOENT, "execve", "ls-")
    assert str(caused).endswith(
        "0 restarts within 0.5 s\n  because: [ENOENT] No such file or directory: 'ls-' (stage execve)"
    )
