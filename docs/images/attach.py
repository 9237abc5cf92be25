"""Makes attach.svg, from what a real terminal shows: ``python docs/images/attach.py``. It needs tmux(1) and rich."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
COLS, ROWS = 76, 17
DEADLINE = 60.0

SCRIPT = [
    ("$ ", "python docs/examples/attach.py"),
    ("workload# ", "tty; stty size"),
    ("workload# ", "sleep 1000"),
    ("sleep 1000", "^C"),
    ("workload# ", "^P^Q"),
    ("again? ", "yes"),
    ("again? yes", ""),
    ("workload# ", "echo still $((6 * 7))"),
    ("workload# ", "^D"),
]
"""What has to be the end of the last line, and what is typed then."""


def tmux(directory: str, *arguments: str) -> str:
    command = ["tmux", "-S", f"{directory}/socket", "-f", os.devnull, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def capture(directory: str, script: Sequence[tuple[str, str]], rows: int) -> str:
    """The screen after the script, with its colours."""
    environment = f"PYTHONPATH={ROOT} PATH={Path(sys.executable).parent}:$PATH PS1='$ '"
    shell = f"cd {ROOT} && {environment} exec bash --norc --noprofile -i"
    tmux(directory, "new-session", "-d", "-x", str(COLS), "-y", str(rows), shell)

    def shows(end: str) -> bool:
        return (tmux(directory, "capture-pane", "-p", "-J").rstrip("\n").splitlines() or [""])[-1].endswith(end)

    for end, typed in script:
        wait_until(partial(shows, end), f"{end!r} on the screen")
        if typed.startswith("^"):
            tmux(directory, "send-keys", *(f"C-{key.lower()}" for key in typed.split("^")[1:]))
        else:
            tmux(directory, "send-keys", "-l", typed)
            tmux(directory, "send-keys", "Enter")
    wait_until(lambda: shows("$ "), "the shell's prompt")
    return tmux(directory, "capture-pane", "-e", "-p")


def picture(name: str, title: str, script: Sequence[tuple[str, str]], rows: int) -> None:
    """Makes the file `name`.svg, beside this one."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            screen = capture(directory, script, rows)
        finally:
            tmux(directory, "kill-server")
    screen = screen.replace(os.uname().release, "6.12.9")  # which it is here says nothing
    console = Console(record=True, width=COLS, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.rstrip("\n")))
    svg = console.export_svg(title=title, unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fetched from elsewhere; there are fonts enough
    Path(__file__).with_name(f"{name}.svg").write_text(svg)


if __name__ == "__main__":
    picture("attach", "linx.tty.attach", SCRIPT, ROWS)
