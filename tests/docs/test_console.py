"""The shell sessions in the documentation are as they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.commands import environment
from tests.support import DEADLINE

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
SESSIONS = [
    pytest.param(found.group(1), id=f"{page.name}:{page.read_text()[: found.start()].count(chr(10)) + 2}")
    for page in PAGES
    for found in BLOCK.finditer(page.read_text())
]
MARK = "-- what is above was said by the line before --"


def commands_of(session: str) -> list[tuple[str, list[str]]]:
    """Each command, with what is shown below it. ``$`` begins one, ``>`` goes on with it."""
    found: list[tuple[str, list[str]]] = []
    for line in session.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line == ">" or line.startswith("> "):
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
        else:
            found[-1][1].append(line)
    return found


def matches(shown: list[str], said: list[str]) -> bool:
    """``…`` stands for any text, a line with nothing else for any lines."""
    lines = [r"(.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n" for line in shown]
    return re.fullmatch("".join(lines), "".join(f"{line}\n" for line in said)) is not None


@pytest.mark.parametrize("session", SESSIONS)
def test_a_session_is_as_it_is_shown(session: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    name = tmp_path / "bin" / "linx"
    name.write_text(f'#!/bin/sh\nexec {sys.executable} -m linx_trio "$@"\n')
    name.chmod(0o755)
    commands = commands_of(session)
    script = "".join(f"{command}\necho '{MARK}'\n" for command, _ in commands)
    (name.parent / "session").write_text(script)
    env = environment()
    env["PATH"] = f"{name.parent}:{env['PATH']}"
    done = subprocess.run(
        ["sh", name.parent / "session"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=env, cwd=tmp_path, timeout=DEADLINE, check=True,
    )  # fmt: skip
    said = done.stdout.split(f"{MARK}\n")
    for (command, shown), lines in zip(commands, said, strict=False):
        assert matches(shown, lines.splitlines()), f"$ {command}\n{lines}"


def test_the_check_above_can_fail() -> None:
    assert SESSIONS
    assert matches(["a…c", "…", "d"], ["abc", "x", "y", "d"])
    assert matches(["a", "…", "b"], ["a", "b"])
    for shown, said in ((["a"], ["b"]), (["a"], []), ([], ["a"]), (["a…"], ["b"]), (["a", "…"], ["b"])):
        assert not matches(shown, said)
