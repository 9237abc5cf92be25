"""Workloads on terminals: what the tests of `Session.pty` share."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trio

import linx_trio as linx
from linx_trio._pty import PtyStream, name_of
from tests.support import DEADLINE, children_of, eventually_async, stat_of
from tests.support import name_of as name_of_process

PROMPT = b"ready> "
INTR, EOF, SUSP = b"\x03", b"\x04", b"\x1a"
"""The characters of ``termios(3)``, as a new terminal has them: ^C, ^D, ^Z."""


@contextlib.asynccontextmanager
async def on_terminal(argv: Sequence[str] | str, **options: Any) -> AsyncIterator[linx.Session]:
    """That workload, running on a terminal; a string is for the shell."""
    arguments = ["sh", "-c", argv] if isinstance(argv, str) else argv
    async with linx.spawn(arguments, **{"stdio": linx.PTY, "auto_proceed": True, **options}) as session:
        yield session


@contextlib.asynccontextmanager
async def shell() -> AsyncIterator[linx.Session]:
    """An interactive shell that has said its prompt."""
    env = {**os.environ, "PS1": PROMPT.decode()}
    env.pop("ENV", None)
    async with on_terminal(["sh"], env=env) as session:
        await read_until(session.pty, PROMPT)
        yield session


async def read_until(pty: PtyStream, needle: bytes) -> bytes:
    """All that comes up to and including `needle`, and not a byte more."""
    seen = bytearray()
    with trio.move_on_after(DEADLINE):
        while not seen.endswith(needle):
            byte = await pty.receive_some(1)
            assert byte, f"the end, and no {needle!r} in {seen!r}"
            seen += byte
    assert seen.endswith(needle), f"no {needle!r} in {seen!r}"
    return bytes(seen)


async def read_to_end(pty: PtyStream) -> bytes:
    with trio.fail_after(DEADLINE):
        return b"".join([chunk async for chunk in pty])


def make_raw(pty: PtyStream) -> None:
    """No echo, no lines, no special characters: from here on every byte is itself (``cfmakeraw``, ``termios(3)``)."""
    tty.setraw(pty.fileno())


def echo_off(pty: PtyStream) -> None:
    """What is typed does not come back; all else stays."""
    settings = termios.tcgetattr(pty.fileno())
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(pty.fileno(), termios.TCSANOW, settings)


def slave_of(session: linx.Session) -> str:
    """The name of the workload's end, as this process knows it."""
    return name_of(session.pty.fileno())


def foreground_of(pid: int) -> int:
    """The foreground process group of that process' terminal (``tcgetpgrp(3)``)."""
    fields = stat_of(pid)
    return int(fields[5]) if fields is not None else -1


async def foreground_job(shell_pid: int, name: str) -> int:
    """Waits until a child of the shell with that name is the foreground process group; its pid."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [
            pid for pid in children_of(shell_pid) if name_of_process(pid) == name and foreground_of(shell_pid) == pid
        ]
        return bool(found)

    await eventually_async(is_there, f"{name} is in the foreground")
    return found[0]
