"""Somebody in front of a terminal: one that a test made, or a real one (``tmux(1)``)."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio import _pty
from linx_trio._fd import FdBag
from linx_trio._options import WindowSize
from tests.agent.terminals import read_until
from tests.support import eventually

ROOT = Path(__file__).resolve().parents[2]


class Person:
    """Sits in front of a terminal, which is no process' controlling one, and whose other end is `terminal`."""

    def __init__(self, rows: int = 33, cols: int = 99) -> None:
        with FdBag() as bag:
            master, slave = _pty.open_pair(bag, WindowSize(rows, cols))
            self.terminal = bag.take(slave)
            self.pty = _pty.PtyStream(bag.take(master))
        self.first_modes = self.modes()

    def modes(self) -> list[Any]:
        """Of ``termios(3)``."""
        return termios.tcgetattr(self.terminal)

    def has_raw_modes(self) -> bool:
        return not self.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    async def types(self, data: bytes) -> None:
        await self.pty.send_all(data)

    async def sees(self, needle: bytes) -> bytes:
        return await read_until(self.pty, needle)

    def looks_away(self) -> bytes:
        """From here on the terminal is full. What it is full of."""
        shown = b""
        os.set_blocking(self.terminal, False)
        while not self.is_full(0.1):  # the kernel moves it on a bit later
            with contextlib.suppress(BlockingIOError):
                shown += bytes(os.write(self.terminal, bytes(1024)))
        os.set_blocking(self.terminal, True)
        return shown

    def is_full(self, seconds: float = 0.0) -> bool:
        """Whether nothing more can be shown, for so long."""
        return not select.select([], [self.terminal], [], seconds)[1]

    def sees_now(self) -> bytes:
        """All that is there already."""
        return b"".join(iter(lambda: self.pty.receive_now(65536) or b"", b""))

    def hangs_up(self) -> None:
        self.pty.close()

    def close(self) -> None:
        self.pty.close()
        with contextlib.suppress(OSError):
            os.close(self.terminal)


class Attached:
    """An `attach` in a task of its own."""

    def __init__(self) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self.scope = trio.CancelScope()
        self.done = trio.Event()

    async def run(
        self, session: linx.Session, terminal: Any, options: dict[str, Any], task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            with self.scope:
                self.result = await linx.tty.attach(session, terminal=terminal, task_status=task_status, **options)
        except Exception as exc:
            self.error = exc
        finally:
            self.done.set()


@contextlib.asynccontextmanager
async def attached(session: linx.Session, person: Person, **options: Any) -> AsyncIterator[Attached]:
    """Attached, from the first line of the block on. Leaving the block waits for the end."""
    terminal = options.pop("terminal", person.terminal)
    attaching = Attached()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await attaching.run(session, terminal, options, task_status)

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            yield attaching
            await attaching.done.wait()


@pytest.fixture
def person() -> Iterator[Person]:
    somebody = Person()
    yield somebody
    somebody.close()


needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is needed: it is the real terminal")


INSIDE = "inside> "
"""The prompt of a workload that is a shell."""


class RealTerminal:
    """A window of ``tmux(1)`` with an interactive shell in it."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "tmux"
        self.directory = directory
        environment = {
            **os.environ,
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        environment.pop("TMUX", None)
        shell = f"cd {shlex.quote(str(directory))} && PS1='$ ' exec bash --norc --noprofile -i"
        self._tmux("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", shell, env=environment)

    def _tmux(self, *arguments: str, **options: Any) -> str:
        command = ["tmux", "-S", str(self._socket), *arguments]
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command, capture_output=True, text=True, check=True, **options
        )
        return done.stdout

    def types(self, *keys: str) -> None:
        """Names of keys as ``tmux(1)`` knows them (``C-c``, ``Enter``); all else is text."""
        self._tmux("send-keys", *keys)

    def enters(self, line: str) -> None:
        self._tmux("send-keys", "-l", line)
        self.types("Enter")

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-J", "-S", "-")

    def lines(self) -> list[str]:
        """Without the prompts in front of them."""
        return [re.sub(f"^([$] |{INSIDE})?", "", line) for line in self.screen().splitlines()]

    def prompts(self, prompt: str) -> None:
        """Waits until there is nothing behind the last prompt."""
        eventually(lambda: self.screen().rstrip("\n").splitlines()[-1:] == [prompt], f"the prompt {prompt!r}")

    def shows(self, text: str) -> None:
        """Waits until a line begins with it, perhaps behind a prompt."""
        try:
            eventually(lambda: any(line.startswith(text) for line in self.lines()), text)
        except AssertionError:
            pytest.fail(f"no {text!r} on the screen:\n{self.screen()}")

    def modes(self) -> list[Any]:
        """The terminal's, at this moment: with a shell at its prompt they are those of its line editor."""
        fd = os.open(self.tells("#{pane_tty}"), os.O_RDWR | os.O_NOCTTY)
        try:
            return termios.tcgetattr(fd)
        finally:
            os.close(fd)

    def tells(self, what: str) -> str:
        """One of tmux' own variables."""
        return self._tmux("display-message", "-p", what).strip()

    def resizes(self, cols: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(cols), "-y", str(rows))

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._tmux("kill-server")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealTerminal]:
    terminal = RealTerminal(tmp_path)
    try:
        terminal.prompts("$ ")
        yield terminal
    finally:
        terminal.close()
