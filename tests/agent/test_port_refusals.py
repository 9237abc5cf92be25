"""What the agent refuses as an Erlang Port: programs, requests, frames, terms and commands; by name, and at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from linx_trio._proto import etf
from tests.agent.port import SLEEP, TRUE, Port, Raw, frame, mapping, pair, spawn, string
from tests.support import children_of, eventually, exists, stat_of


def test_errors_of_execve(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no program\n")
    (tmp_path / "text").write_text("no program\n")
    (tmp_path / "text").chmod(0o755)
    cases: list[tuple[bytes, int]] = [
        (b"/does/not/exist", errno.ENOENT),
        (b"linx-no-such-program", errno.ENOENT),
        (b"", errno.ENOENT),
        (os.fsencode(tmp_path / "plain"), errno.EACCES),
        (os.fsencode(tmp_path), errno.EACCES),
        (os.fsencode(tmp_path / "text"), errno.ENOEXEC),
        (os.fsencode(tmp_path / "text" / "below"), errno.ENOTDIR),
        (b"/" + b"x" * 300, errno.ENAMETOOLONG),
    ]
    for program, number in cases:
        with Port() as port:
            port.send(spawn(argv=[program]), "proceed")
            port.started()
            assert port.rest() == [("error", number, "execve")], program
            assert port.wait() == 0


def test_too_large_an_argv() -> None:
    with Port() as port:
        port.send(spawn(argv=[b"/bin/true", b"x" * (1 << 20)]), "proceed")
        port.started()
        assert port.rest() == [("error", errno.E2BIG, "execve")]


def test_error_of_chdir() -> None:
    with Port() as port:
        port.send(spawn(argv=TRUE, cwd=b"/does/not/exist"), "proceed")
        port.started()
        assert port.rest() == [("error", errno.ENOENT, "chdir")]
        assert port.wait() == 0


def test_kept_signals_do_not_matter_to_what_cannot_run() -> None:
    with Port() as port:
        port.send(spawn(argv=[b"/does/not/exist"]), ("signal", 9), "proceed")
        port.started()
        assert port.rest() == [("error", errno.ENOENT, "execve")]


NO_REQUEST: list[tuple[str, Any]] = [
    ("an atom", "spawn"),
    ("a command", "proceed"),
    ("a signal", ("signal", 9)),
    ("an empty tuple", ()),
    ("no map", ("spawn", [("argv", TRUE)])),
    ("three elements", ("spawn", {"argv": TRUE}, 1)),
    ("another verb", ("spown", {"argv": TRUE})),
    ("a binary verb", (b"spawn", {"argv": TRUE})),
    ("no argv", ("spawn", {})),
    ("an empty argv", spawn(argv=[])),
    ("argv an atom", spawn(argv="true")),
    ("argv a string", spawn(argv=string(b"/bin/true"))),
    ("argv of atoms", spawn(argv=["true"])),
    ("argv of numbers", spawn(argv=[1])),
    ("argv improper", spawn(argv=etf.ImproperList((b"/bin/true",), b"x"))),
    ("argv with NUL", spawn(argv=[b"/bin/true\0"])),
    ("argv with code points", spawn(argv=[[8364]])),
    ("argv twice", pair("spawn", mapping([("argv", TRUE), ("argv", TRUE)]))),
    ("env of numbers", spawn(argv=TRUE, env=[1])),
    ("env with NUL", spawn(argv=TRUE, env=[b"A=\0"])),
    ("env with a NUL in a name", spawn(argv=TRUE, env=[(b"\0", b"")])),
    ("env of triples", spawn(argv=TRUE, env=[(b"A", b"1", b"2")])),
    ("env an atom", spawn(argv=TRUE, env="none")),
    ("unknown namespace", spawn(argv=TRUE, namespaces=["typo"])),
    ("namespaces an atom", spawn(argv=TRUE, namespaces="net")),
    ("namespaces improper", spawn(argv=TRUE, namespaces=etf.ImproperList(("uts",), "net"))),
    ("cwd an atom", spawn(argv=TRUE, cwd="tmp")),
    ("cwd with NUL", spawn(argv=TRUE, cwd=b"/tmp\0")),
    ("stdio unknown", spawn(argv=TRUE, stdio="pipes")),
    ("stdio a number", spawn(argv=TRUE, stdio=1)),
    ("stdout to stdout", spawn(argv=TRUE, stdio=[("stdout", "stdout")])),
    ("stdio of something else", spawn(argv=TRUE, stdio={"stdfoo": "devnull"})),
    ("no_new_privs a number", spawn(argv=TRUE, no_new_privs=1)),
    ("spawn into a target", spawn(argv=TRUE, target=1)),
    ("enter without a target", ("enter", {"argv": TRUE})),
    ("enter without argv", ("enter", {"target": 1})),
    ("enter no map", ("enter", [("argv", TRUE), ("target", 1)])),
    ("target zero", ("enter", {"argv": TRUE, "target": 0})),
    ("target negative", ("enter", {"argv": TRUE, "target": -1})),
    ("target too large", ("enter", {"argv": TRUE, "target": 2**31})),
    ("target much too large", ("enter", {"argv": TRUE, "target": 2**70})),
    ("target text", ("enter", {"argv": TRUE, "target": b"1"})),
    ("target an atom", ("enter", {"argv": TRUE, "target": "self"})),
    ("target a float", ("enter", {"argv": TRUE, "target": 1.0})),
    ("target twice", pair("enter", mapping([("argv", TRUE), ("target", 1), ("target", 1)]))),
    ("target twice nobody", pair("enter", mapping([("argv", TRUE), ("target", 99999999), ("target", 99999999)]))),
    ("enter an unknown namespace", ("enter", {"argv": TRUE, "target": 1, "namespaces": ["typo"]})),
    ("enter a namespaces atom", ("enter", {"argv": TRUE, "target": 1, "namespaces": "some"})),
    ("spawn all namespaces", spawn(argv=TRUE, namespaces="all")),
    ("a term too many", Raw(spawn(argv=TRUE) + b"\x6a")),
]


@pytest.mark.parametrize("request_", [case[1] for case in NO_REQUEST], ids=[case[0] for case in NO_REQUEST])
def test_what_is_no_request(request_: Any) -> None:
    with Port() as port:
        port.send(request_, "proceed")
        assert port.rest() == [("error", errno.EINVAL, "request")]
        assert port.wait() == 0
        assert children_of(port.pid) == []


# --- nonsense -------------------------------------------------------------------------------------------------------

NO_FRAMES: dict[str, bytes] = {
    "no bytes": b"",
    "half a header": b"\0\0",
    "half a frame": frame(spawn(argv=TRUE))[:-1],
    "too long a frame": b"\xff\xff\xff\xff",
    "one byte too long": b"\x01\x00\x00\x01",
}
NO_TERMS: dict[str, bytes] = {
    "an empty frame": b"\0\0\0\0",
    "no version": b"\0\0\0\1\x6a",
    "a version alone": b"\0\0\0\1\x83",
    "an unknown tag": b"\0\0\0\2\x83\xff",
    "half a term": b"\0\0\0\3\x83\x68\x02",
    "a compressed term": b"\0\0\0\x06\x83\x50\0\0\0\1",
    "text": b"\0\0\0\5hello",
}
NO_COMMANDS: dict[str, Any] = {
    "unknown": "typo",
    "an argument too many": ("proceed", 1),
    "an argument missing": "signal",
    "no number": ("signal", "kill"),
    "a large number": ("signal", 2**70),
    "three elements": ("signal", 9, 9),
    "a binary": b"proceed",
    "a list": ["proceed"],
    "a session's kill": "kill",
    "a session's shutdown": ("shutdown", 0),
    "a second request": spawn(argv=TRUE),
    "two terms": Raw(b"\x77\x07proceed\x6a"),
}
NONSENSE = NO_TERMS | {what: frame(term) for what, term in NO_COMMANDS.items()}


@pytest.mark.parametrize("data", NO_FRAMES.values(), ids=NO_FRAMES.keys())
def test_an_end_before_a_request(data: bytes) -> None:
    with Port() as port:
        port.send_bytes(data)
        port.close_input()
        assert port.rest() == []
        assert port.wait() == 0


@pytest.mark.parametrize("data", NO_TERMS.values(), ids=NO_TERMS.keys())
def test_no_term_for_a_request(data: bytes) -> None:
    with Port() as port:
        port.send_bytes(data)
        assert port.rest() == [("error", errno.EINVAL, "request")]
        assert port.wait() == 0


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_at_the_checkpoint(data: bytes) -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        pid = port.started()
        port.send_bytes(data)
        assert port.rest() == [("status", "aborted", pid)]
        assert port.wait() == 0
        assert not exists(pid)


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_while_it_runs(data: bytes) -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        pid = port.runs()
        port.send_bytes(data)
        assert port.rest() == [("status", "signaled", 9)]
        assert port.wait() == 0
        assert not exists(pid)


@pytest.mark.parametrize("phase", ["request", "behind the request", "parked", "running", "behind a command"])
def test_too_long_a_frame_is_noticed_at_once(phase: str) -> None:
    """fd 3 stays open and nothing follows: only the agent can end this."""
    with Port() as port:
        bad = NO_FRAMES["one byte too long"]
        if phase == "request":
            port.send_bytes(bad)
        elif phase == "behind the request":
            port.send_bytes(frame(spawn(argv=SLEEP)) + bad)
        else:
            port.send(spawn(argv=SLEEP))
            if phase == "parked":
                port.started()
                port.send_bytes(bad)
            else:
                port.runs()
                port.send_bytes(bad if phase == "running" else frame(("signal", 0)) + bad)
        try:
            eventually(
                lambda: stat_of(port.pid) is None or (stat_of(port.pid) or "Z")[0] == "Z", "the agent has ended", 10
            )
        finally:
            port.close_input()
        assert port.wait() == 0
