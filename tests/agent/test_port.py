"""The agent as an Erlang Port: what it takes, what it answers, and what it leaves, which is nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from linx_trio._proto import etf
from tests.agent.port import RUNNING, SLEEP, Port, Raw, frame, listing, mapping, pair, shell, spawn, string
from tests.support import exists, stat_of


def output_of(request: Any, outcome: object = ("status", "exited", 0)) -> bytes:
    """What the workload of `request` writes to the agent's fd 1."""
    reader, writer = os.pipe()
    with open(reader, "rb") as stream:
        try:
            port = Port(stdio={1: writer})
        finally:
            os.close(writer)
        with port:
            port.send(request, "proceed")
            port.started()
            assert port.rest() == [RUNNING, outcome]
            assert port.wait() == 0
        return stream.read()


# --- events, in order, in their exact shapes ------------------------------------------------------------------------


def test_a_life() -> None:
    with Port() as port:
        port.send(spawn(argv=shell("exit 7")))
        tag, kind, pid = port.receive()
        assert (tag, kind) == ("status", "spawned")
        assert port.receive() == ("status", "ready", pid)
        fields = stat_of(pid)
        assert fields is not None
        assert int(fields[1]) == port.pid
        assert "linx-agent" in os.readlink(f"/proc/{pid}/exe")  # none of the workload has run
        port.send("proceed")
        assert port.rest() == [RUNNING, ("status", "exited", 7)]
        assert port.wait() == 0


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exited(code: int) -> None:
    with Port() as port:
        port.send(spawn(argv=shell(f"exit {code}")), "proceed")
        port.started()
        assert port.rest() == [RUNNING, ("status", "exited", code)]
        assert port.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL, signal.SIGPIPE, signal.SIGRTMAX])
def test_signaled(number: int) -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        port.runs()
        port.send(("signal", int(number)))
        assert port.rest() == [("status", "signaled", number)]
        assert port.wait() == 0


def test_a_workload_killed_from_outside() -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        os.kill(port.runs(), signal.SIGUSR1)
        assert port.rest() == [("status", "signaled", signal.SIGUSR1)]
        assert port.wait() == 0


def test_killed_while_parked_it_never_ran() -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        os.kill(port.started(), signal.SIGKILL)
        assert port.rest() == [("status", "signaled", signal.SIGKILL)]
        assert port.wait() == 0


def test_aborted() -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        pid = port.started()
        port.send("abort")
        assert port.rest() == [("status", "aborted", pid)]
        assert port.wait() == 0
        assert not exists(pid)


# --- the request ----------------------------------------------------------------------------------------------------

ECHO = b'for x; do echo "<$x>"; done'


@pytest.mark.parametrize(
    "argv",
    [
        [b"/bin/sh", b"-c", ECHO, b"sh", b"a b", b"", b"\xff"],
        listing(
            string(b"/bin/sh"), string(b"-c"), string(ECHO), string(b"sh"), string(b"a b"), string(b""), string(b"\xff")
        ),
        listing(b"/bin/sh", string(b"-c"), ECHO, string(b"sh"), b"a b", Raw(b"\x6a"), string(b"\xff")),
    ],
    ids=["binaries", "strings", "mixed"],
)
def test_argv(argv: Any) -> None:
    assert output_of(spawn(argv=argv)) == b"<a b>\n<>\n<\xff>\n"


def test_a_large_argv() -> None:
    argv = [*shell("echo $# ${#1}"), b"sh", *[b"x" * 100_000] * 10]
    assert output_of(spawn(argv=argv)) == b"10 100000\n"


@pytest.mark.parametrize(
    "env",
    [
        [b"A=1", b"B=x=y", b"E="],
        [(b"A", b"1"), (b"B", b"x=y"), (b"E", b"")],
        listing(pair(string(b"A"), string(b"1")), pair(string(b"B"), string(b"x=y")), pair(string(b"E"), string(b""))),
        listing(b"A=1", pair(b"B", string(b"x=y")), string(b"E=")),
        {b"A": b"1", b"B": b"x=y", b"E": b""},
        mapping([(string(b"A"), b"1"), (string(b"B"), string(b"x=y")), (b"E", Raw(b"\x6a"))]),
    ],
    ids=["binaries", "tuples", "tuples of strings", "mixed", "map", "map of strings"],
)
def test_env(env: Any) -> None:
    assert sorted(output_of(spawn(argv=[b"/usr/bin/env"], env=env)).split()) == [b"A=1", b"B=x=y", b"E="]


def test_env_of_its_own_or_of_the_agent(nothing_is_left: str) -> None:
    assert output_of(spawn(argv=[b"/usr/bin/env"], env=[])) == b""
    assert nothing_is_left.encode() in output_of(spawn(argv=[b"/usr/bin/env"]))


def test_the_program_is_looked_up_in_the_workloads_path(tmp_path: Path) -> None:
    program = tmp_path / "linx-test-program"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    env = [b"PATH=/nowhere:" + os.fsencode(tmp_path)]
    assert output_of(spawn(argv=[b"linx-test-program"], env=env)) == b"found\n"


@pytest.mark.parametrize("form", [bytes, string], ids=["binary", "string"])
def test_cwd(tmp_path: Path, form: Any) -> None:
    expected = os.fsencode(tmp_path.resolve()) + b"\n"
    assert output_of(spawn(argv=shell("pwd"), cwd=form(os.fsencode(tmp_path)))) == expected


@pytest.mark.parametrize(("value", "expected"), [(True, b"1"), (False, b"0"), (None, b"0")])
def test_no_new_privs(value: bool | None, expected: bytes) -> None:
    options = {} if value is None else {"no_new_privs": value}
    lines = output_of(spawn(argv=[b"/bin/cat", b"/proc/self/status"], **options)).splitlines()
    own = [
        line.split()[1]
        for line in Path("/proc/self/status").read_bytes().splitlines()
        if line.startswith(b"NoNewPrivs")
    ]
    found = [line.split()[1] for line in lines if line.startswith(b"NoNewPrivs")]
    assert found == [expected] or (own == [b"1"] and found == own)


# what the agent's 1 and 2 receive of "out" and "err"
STDIO: list[tuple[str, Any, bytes, bytes]] = [
    ("inherit", "inherit", b"out\n", b"err\n"),
    ("nothing", [], b"out\n", b"err\n"),
    ("devnull", "devnull", b"", b""),
    ("list", [("stdout", "devnull")], b"", b"err\n"),
    ("longer list", [("stdin", "devnull"), ("stdout", "inherit"), ("stderr", "devnull")], b"out\n", b""),
    ("map", {"stderr": "devnull"}, b"out\n", b""),
    ("merged", [("stderr", "stdout")], b"out\nerr\n", b""),
    ("merged map", {"stdout": "inherit", "stderr": "stdout"}, b"out\nerr\n", b""),
    ("merged into nothing", [("stderr", "stdout"), ("stdout", "devnull")], b"", b""),
]


@pytest.mark.parametrize(("stdio", "out", "err"), [case[1:] for case in STDIO], ids=[case[0] for case in STDIO])
def test_stdio(tmp_path: Path, stdio: Any, out: bytes, err: bytes) -> None:
    with (
        open(tmp_path / "out", "w+b") as stdout,
        open(tmp_path / "err", "w+b") as stderr,
        Port(stdio={1: stdout.fileno(), 2: stderr.fileno()}) as port,
    ):
        port.send(spawn(argv=shell("echo out; echo err >&2"), stdio=stdio), "proceed")
        port.started()
        assert port.rest() == [RUNNING, ("status", "exited", 0)]
    assert (tmp_path / "out").read_bytes() == out
    assert (tmp_path / "err").read_bytes() == err


@pytest.mark.parametrize(("stdio", "expected"), [("inherit", b"hello"), ({"stdin": "devnull"}, b"")])
def test_stdin(stdio: Any, expected: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    os.close(writer)
    out, out_writer = os.pipe()
    try:
        port = Port(stdio={0: reader, 1: out_writer})
    finally:
        os.close(reader)
        os.close(out_writer)
    with port, open(out, "rb") as stream:
        port.send(spawn(argv=[b"/bin/cat"], stdio=stdio), "proceed")
        port.started()
        assert port.rest() == [RUNNING, ("status", "exited", 0)]
        assert stream.read() == expected


def test_the_workload_has_its_three_fds_and_no_other() -> None:
    assert output_of(spawn(argv=[b"/bin/ls", b"/proc/self/fd"])).split() == [b"0", b"1", b"2", b"3"]  # 3: ls's own


# --- namespaces -----------------------------------------------------------------------------------------------------

KINDS = {
    "mount": "mnt",
    "uts": "uts",
    "ipc": "ipc",
    "net": "net",
    "pid": "pid",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}


def different(pid: int) -> set[str]:
    links = {kind: os.readlink(f"/proc/{pid}/ns/{link}") for kind, link in KINDS.items()}
    return {kind for kind, link in KINDS.items() if links[kind] != os.readlink(f"/proc/self/ns/{link}")}


@pytest.mark.parametrize(
    "kinds", [*([kind] for kind in KINDS), list(KINDS), []], ids=lambda kinds: "+".join(kinds) or "none"
)
def test_namespaces(kinds: list[str]) -> None:
    """Root needs no user namespace for the others; anybody else does."""
    wanted = kinds if os.geteuid() == 0 or not kinds or "user" in kinds else ["user", *kinds]
    with Port() as port:
        port.send(spawn(argv=SLEEP, namespaces=wanted))
        tag, kind, pid = port.receive()
        assert (tag, kind) == ("status", "spawned")
        assert port.receive() == ("status", "ready", 1 if "pid" in wanted else pid)
        assert different(pid) == set(wanted)
        port.send("proceed")
        assert port.receive() == RUNNING
        assert different(pid) == set(wanted)
        port.send(("signal", 9))
        assert port.rest() == [("status", "signaled", 9)]


def test_namespaces_as_text() -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP, namespaces=listing(b"user", string(b"uts"))))
        assert different(port.started()) == {"user", "uts"}


# --- what it does not know ------------------------------------------------------------------------------------------

UNKNOWN: list[Any] = [
    1, -(2**70), 1.5, "atom", b"binary", [], [1, [2, {}]], (), {"a": {b"b": [(1,)]}}, etf.ImproperList((1, 2), "tail"),
    string(b"text"),
    Raw(b"\x58\x77\x01n" + bytes(12)),  # a pid
    Raw(b"\x5a\x00\x01\x77\x01n" + bytes(8)),  # a reference
    Raw(b"\x4d\x00\x00\x00\x01\x03\xe0"),  # a bitstring
]  # fmt: skip


def test_unknown_keys_are_skipped() -> None:
    pairs: list[tuple[Any, Any]] = [(f"key{number}", value) for number, value in enumerate(UNKNOWN)]
    pairs += [(value, number) for number, value in enumerate(UNKNOWN)]
    with Port() as port:
        port.send(pair("spawn", mapping([*pairs, ("argv", shell("exit 3")), ("last", [])])), "proceed")
        port.started()
        assert port.rest() == [RUNNING, ("status", "exited", 3)]


def test_a_sessions_keys_are_unknown_to_a_port() -> None:
    options = {"fds": [7], "steps": ["typo"], "auto_proceed": True, "orphan": "linger", "new_session": 1}
    with Port() as port:
        port.send(spawn(argv=SLEEP, **options))
        pid = port.started()
        port.send("abort")
        assert port.rest() == [("status", "aborted", pid)]  # auto_proceed did nothing


# --- commands, before and after the checkpoint ----------------------------------------------------------------------

EARLY: list[tuple[str, list[Any], list[Any]]] = [
    ("proceed", ["proceed"], [RUNNING, ("status", "exited", 5)]),
    ("abort", ["abort"], ["aborted"]),
    ("proceed, then abort", ["proceed", "abort"], [RUNNING, ("status", "exited", 5)]),
    ("abort, then proceed", ["abort", "proceed"], ["aborted"]),
    ("proceed twice", ["proceed", "proceed"], [RUNNING, ("status", "exited", 5)]),
    ("abort twice", ["abort", "abort"], ["aborted"]),
    ("signal, then abort", [("signal", 9), "abort"], ["aborted"]),
    ("signal no. 0 and 65", [("signal", 0), ("signal", 65), "proceed"], [RUNNING, ("status", "exited", 5)]),
]


@pytest.mark.parametrize("when", ["before ready", "after ready"])
@pytest.mark.parametrize(("commands", "outcome"), [case[1:] for case in EARLY], ids=[case[0] for case in EARLY])
def test_commands_up_to_the_checkpoint(commands: list[Any], outcome: list[Any], when: str) -> None:
    """Those that come before the checkpoint wait for it. The first of `proceed` and `abort` wins."""
    with Port() as port:
        request = spawn(argv=shell("exit 5"))
        if when == "before ready":
            port.send(request, *commands)
            pid = port.started()
        else:
            port.send(request)
            pid = port.started()
            port.send(*commands)
        assert port.rest() == [("status", "aborted", pid) if event == "aborted" else event for event in outcome]
        assert port.wait() == 0


@pytest.mark.parametrize("numbers", [(15, 9), (9, 15), (12, 10, 1), (0, 65, 14)])
def test_signals_are_kept_and_delivered_in_order(numbers: tuple[int, ...]) -> None:
    """All of them are fatal, so the first to arrive is the outcome. None is, before the workload runs."""
    first = next(number for number in numbers if 1 <= number <= 64)
    with Port() as port:
        port.send(spawn(argv=SLEEP), *[("signal", number) for number in numbers[:-1]])
        pid = port.started()
        port.send(("signal", numbers[-1]))
        assert exists(pid)
        port.send("proceed")
        assert port.rest() == [RUNNING, ("status", "signaled", first)]


def test_abort_is_too_late_for_a_running_workload() -> None:
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        port.runs()
        port.send("abort", "proceed", ("signal", 15))
        assert port.rest() == [("status", "signaled", 15)]


@pytest.mark.parametrize("number", [0, -1, -15, 65, 300, 2**31, 2**32, 2**32 + 9, 2**40 + 9, -(2**32) + 9])
def test_numbers_that_are_no_signal(number: int) -> None:
    """Nothing happens. Above all not what their lowest bits say."""
    with Port() as port:
        port.send(spawn(argv=SLEEP))
        port.runs()
        port.send(("signal", number), ("signal", 15))
        assert port.rest() == [("status", "signaled", 15)]


def test_byte_by_byte() -> None:
    with Port() as port:
        for byte in frame(spawn(argv=shell("exit 5"))) + frame("proceed"):
            port.send_bytes(bytes((byte,)))
        port.started()
        assert port.rest() == [RUNNING, ("status", "exited", 5)]
