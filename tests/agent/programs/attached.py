"""A program for a real terminal, which it attaches: ``python -m tests.agent.programs.attached WAY [ARGV…]``.

It writes its pid to a file, and says what became of it. On SIGUSR1 it leaves in its WAY: ``cancel`` or ``raise``. ARGV
is the workload, by default a shell.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import trio

import linx_trio as linx


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")


async def leave(way: str, scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as arrived:
        async for _ in arrived:
            if way == "raise":
                raise ZeroDivisionError
            scope.cancel()


async def main(way: str, argv: list[str]) -> None:
    async with linx.spawn(argv, stdio=linx.PTY, auto_proceed=True) as s, trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(leave, way, scope)
        with scope:
            say(f"result: {await linx.tty.attach(s)!r}")
        if scope.cancelled_caught:
            say("cancelled")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    Path("pid").write_text(str(os.getpid()))
    try:
        trio.run(main, sys.argv[1], sys.argv[2:] or ["sh"])
    except* ZeroDivisionError:
        say("raised")
    except* KeyboardInterrupt:
        say("interrupted")
