"""The real command, run as a process of its own: what its tests share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linx_trio import _cli_app
from tests.support import DEADLINE, TOKEN, eventually, with_token

ROOT = Path(__file__).resolve().parents[2]
LINX = (sys.executable, "-m", "linx_trio")


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    return {**os.environ, "PYTHONPATH": path, "LC_ALL": "C.UTF-8", **more}


def linx(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [*LINX, *arguments],
        **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": DEADLINE, **options},
        env=environment() if env is None else env,
        check=False,
    )
    return done


class Running:
    """The command, running; its descendants are known by a token in their environment."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        self.token = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [*LINX, *arguments],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            env=environment(**{TOKEN: self.token}),
        )

    def reads(self, word: bytes) -> bytes:
        """A line of its standard output, which is that."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.strip() == word, (line, self.process.stderr.read() if self.process.stderr and not line else b"")
        return bytes(line)

    def leaves_nothing(self) -> None:
        eventually(lambda: with_token(self.token) == [], "nothing of it is left")

    def ends(self) -> tuple[int, str]:
        """Its exit status and what it said on stderr."""
        _, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, err.decode() if err else ""


@contextlib.contextmanager
def running(*arguments: str, **options: Any) -> Iterator[Running]:
    command = Running(*arguments, **options)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
        command.process.wait(DEADLINE)
        for stream in (command.process.stdout, command.process.stderr):
            if stream is not None:
                stream.close()
        command.leaves_nothing()


class Command:
    """The command in this process, which is quicker; the streams are captured."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, output, and what is on stderr."""
        self._capfd.readouterr()
        status = _cli_app.run(arguments)
        out, err = self._capfd.readouterr()
        return status, out, err


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("LINX_DEBUG", raising=False)
    return Command(capfd)
