"""``linx supervise``: what is wrong with a file, told with its line; and children that live and end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.agent.commands import Command, command, running

__all__ = ["command"]  # a fixture

CHILD = '[[child]]\nid = "one"\nargv = ["true"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = = 3", ["file.toml:1:5: "]),
        ('\n\n[[child]]\nid = "x', ["file.toml:4:"]),
        ("", ["file.toml: there are no children", "[[child]]"]),
        (CHILD + "restrat = 1", ["file.toml:4: unknown field 'restrat'", "'restart'"]),
        (CHILD + CHILD.replace("one", "two") + "# cwdd\ncwdd = 1", ["file.toml:8: unknown field 'cwdd'", "'cwd'"]),
        ("stratgy = 1\n" + CHILD, ["file.toml:1: unknown field 'stratgy'", "'strategy'"]),
        (CHILD + "backoff = 1", ["file.toml:4: 'backoff' belongs to the top"]),
        ("\n[[child]]\nid = 'x'\n", ["file.toml:2: the child has no argv"]),
        (CHILD + "nice = 'x'", ["file.toml:4: nice must be"]),
        (CHILD + "namespaces = ['nett']", ["file.toml:4: unknown namespace 'nett'"]),
        (CHILD + "restart = 'always'", ["file.toml:4: restart"]),
        (CHILD + "[child.ready]\ntpc = 80", ["file.toml:5: unknown field 'tpc'", "'tcp'"]),
        (CHILD + "ready = { tcp = 0 }", ["file.toml:4: port must be"]),
        (CHILD + "ready = { line = '(' }", ["file.toml:4: "]),
        (CHILD + "ready = 3", ["file.toml:4: ready must be one of"]),
        (CHILD + "writable = ['/x']", ["file.toml:4: writable belongs to a sandbox"]),
        (CHILD + "sandbox = true\nroot = '/x'", ["file.toml:5: root is what a sandbox decides"]),
        ("backoff = { facto = 1 }\n" + CHILD, ["file.toml:1: unknown field 'facto'", "'factor'"]),
        ("backoff = { factor = 0.1 }\n" + CHILD, ["file.toml:1: factor must be"]),
        (CHILD + CHILD, ["id='one'"]),
        ("strategy = 'one_for_too'\n" + CHILD, ["one_for_too"]),
    ],
)
def test_what_is_wrong_is_told_with_its_line(command: Command, tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "file.toml"
    file.write_text(text)
    status, out, err = command("supervise", str(file))
    assert (status, out) == (125, "")
    for word in words:
        assert word in err, err
    assert "Traceback" not in err


def test_no_file(command: Command, tmp_path: Path) -> None:
    assert "No such file" in command("supervise", str(tmp_path / "none"))[2]
    (tmp_path / "bad").write_bytes(b"\xff")
    assert "not UTF-8" in command("supervise", str(tmp_path / "bad"))[2]


def test_a_file_is_checked_without_running_anything(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(
        CHILD
        + """
        restart = "transient"
        user = "root"
        namespaces = ["net"]
        seccomp = "default"
        limits = { memory = "64M" }
        mounts = [{ kind = "tmpfs", dst = "/mnt" }]
        capabilities = { keep = ["CAP_KILL"] }
        ready = { path = "/run/x" }
        [[child]]
        id = "boxed"
        argv = ["sleep", "1"]
        sandbox = true
        network = true
        hostname = "box"
        """
    )
    assert command("supervise", "--check", str(file))[1].split("\n")[1:3] == [
        "one    transient  true",
        "boxed  permanent  sleep 1",
    ]
    assert json.loads(command("supervise", "--check", "--json", str(file))[1])[1]["id"] == "boxed"


def test_children_live_until_a_signal(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(
        """
        [[child]]
        id = "server"
        argv = ["sh", "-c", "trap 'echo bye; exit 0' TERM; echo serving; while :; do sleep 1000 & wait $!; done"]
        ready = { line = "serving" }
        [[child]]
        id = "client"
        argv = ["sh", "-c", "echo hello; exec sleep 1000"]
        """
    )
    with running("supervise", "--json", str(file)) as supervisor:
        supervisor.reads(b"serving")
        supervisor.reads(b"hello")
        supervisor.process.send_signal(signal.SIGTERM)
        status, err = supervisor.ends()
    events = [json.loads(line) for line in err.splitlines()]
    told = [(event["event"], event.get("id")) for event in events]
    assert (status, told) == (
        0,
        [("starting", "server"), ("ready", "server"), ("starting", "client"), ("stopping", None)],
    )


def test_one_that_cannot_be_started_has_a_hint(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text("max_restarts = 0\n" + CHILD.replace('"true"', '"no-such-program"'))
    status, _, err = command("supervise", str(file))
    lines = err.splitlines()
    assert status == 1
    assert "[ENOENT]" in lines[1]
    assert lines[2] == "  hint: it is in no directory of the workload's PATH"


def test_one_that_fails_too_often(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text("max_restarts = 1\nbackoff = 0.01\n" + CHILD.replace('"true"', '"sh", "-c", "exit 3"'))
    status, _, err = command("supervise", str(file))
    lines = err.splitlines()
    assert status == 1
    assert [line for line in lines if "starts, pid" in line][1:]
    assert "Exited(code=3)" in lines[-1]
    assert "more than 1 restarts" in lines[-1]


def test_all_have_ended_for_good(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(CHILD + "restart = 'temporary'")
    assert command("supervise", str(file))[0] == 0


def test_killed_with_9_it_takes_the_children_along(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(CHILD.replace('"true"', '"sh", "-c", "setsid sleep 1000 & echo up; wait"'))
    with running("supervise", str(file)) as supervisor:
        supervisor.reads(b"up")
        supervisor.process.kill()
        supervisor.process.wait()
        supervisor.leaves_nothing()
