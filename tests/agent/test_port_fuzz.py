"""The whole agent under the address and undefined-behaviour sanitizers, against bytes that no Erlang would send.

Whatever comes: no report, events in their order or none, the end of the agent with status 0, nothing left. What is
run is ``/bin/true`` and nothing else: the pair with the argv is never mutated, and no other bytes say "argv".
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from linx_trio._proto.framing import encode_frame
from linx_trio._version import __version__
from tests.agent.port import Port, body, frame, listing, mapping, pair, spawn, string
from tests.proto.strategies import near_encodings
from tests.support import TOKEN, with_token

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", f'-DLINX_VERSION="{__version__}"', "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined", "-fsanitize-undefined-trap-on-error",
]  # fmt: skip
"""Undefined behaviour is a trap, and shows as an end by SIGILL: gcc's runtime for it knows no log but fd 2."""


class Sanitized(NamedTuple):
    agent: Path
    reports: Path
    environ: dict[str, str]

    def port(self) -> Port:
        return Port(agent=self.agent, environ={**self.environ, TOKEN: os.environ[TOKEN]})

    def check(self) -> None:
        for path in sorted(self.reports.iterdir()):
            text = path.read_text(errors="replace")
            path.unlink()
            raise AssertionError(text)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    home = tmp_path_factory.mktemp("sanitized")
    probe, agent, reports = home / "probe.c", home / "linx-agent", home / "reports"
    reports.mkdir()
    probe.write_text("int main(void) { return 0; }\n")
    if subprocess.run(["gcc", *FLAGS, probe, "-o", home / "probe"], capture_output=True).returncode != 0:
        pytest.skip("gcc has no sanitizers here (apt-get install gcc libc6-dev)")
    sources = sorted((ROOT / "agent_c").glob("[!.]*.c"))
    subprocess.run(["gcc", *FLAGS, *sources, "-o", agent], check=True)
    # Leaks: the agent's processes end by _exit, with all that they still have.
    options = f"detect_leaks=0:abort_on_error=0:log_path={reports}/report"
    environ = {"PATH": os.environ["PATH"], "ASAN_OPTIONS": options}
    return Sanitized(agent, reports, environ)


LIFE = re.compile(r"(spawned (ready )?(running )?)?((exited|signaled|aborted|error) )?")


def expect_order(events: list[Any]) -> None:
    """Exactly one terminal event, or none where there was nothing to end."""
    names = "".join(f"{event[1] if event[0] == 'status' else event[0]} " for event in events)
    assert LIFE.fullmatch(names), names
    assert not names.startswith("spawned") or LIFE.fullmatch(names).group(4), names  # type: ignore[union-attr]


def finish(sanitized: Sanitized, port: Port, events: list[Any]) -> None:
    port.close_input()
    events += port.rest()
    assert port.wait() == 0, sanitized.check()
    sanitized.check()
    expect_order(events)
    assert not [pid for pid in with_token(os.environ[TOKEN]) if pid != os.getpid()]


# --- what is sent ---------------------------------------------------------------------------------------------------

ARGV = body("argv") + body([b"/bin/true"])
NAMESPACES = ["user", "mount", "uts", "ipc", "cgroup", "net", "time", "pid"]
TEXTS = st.sampled_from([b"", b"A", b"A=1", b"x" * 300, b"\0", b"\xff"])
TEXT = TEXTS | TEXTS.map(string)

SMALL = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-1, 300), st.binary(max_size=8),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "true", "stdin", "devnull", "net", "undefined", [], (), {}, "x" * 255]),
)  # fmt: skip
ODD: st.SearchStrategy[Any] = st.one_of(
    SMALL,
    st.lists(SMALL, max_size=3),
    st.tuples(SMALL),
    st.tuples(SMALL, SMALL),
    st.builds(lambda a, b: {"k": a, b"k": b}, SMALL, SMALL),
)
"""Terms of any kind, small: big ones are the units' and the codec's tests' concern."""

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "env": st.lists(TEXT | st.builds(pair, TEXT, TEXT), max_size=4)
    | st.lists(st.tuples(TEXT, TEXT), max_size=4).map(mapping),
    "cwd": st.sampled_from([b"/", b"/tmp", b"/does/not/exist", string(b"/usr"), b"", b"/\0"]),
    "stdio": st.sampled_from(["inherit", "devnull", "typo", []])
    | st.dictionaries(
        st.sampled_from(["stdin", "stdout", "stderr"]), st.sampled_from(["inherit", "devnull", "stdout"])
    ),
    "no_new_privs": st.sampled_from([True, False, 1]),
    "namespaces": st.lists(st.sampled_from(NAMESPACES), max_size=3, unique=True) | st.just(["typo"]),
}
ENTRIES = st.sampled_from(sorted(VALUES)).flatmap(lambda key: st.tuples(st.just(key), VALUES[key] | ODD))
UNKNOWN = st.tuples(st.sampled_from(["owner", "x", 1, b"b"]), ODD)
COMMANDS = st.one_of(
    st.sampled_from(
        ["proceed", "abort", "kill", "typo", ("signal", 9), ("signal", 0), ("signal", -1), ("shutdown", 5)]
    ),
    st.tuples(st.just("signal"), st.integers() | st.integers(0, 70)),
    ODD,
)


def listed(value: Any) -> Any:
    return listing(*value) if isinstance(value, list) else value


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        removed = draw(st.integers(0, 4))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + removed :]
    return data


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """The frame of a request; the pairs around the one with the argv are odd or broken, their number may be wrong."""
    pairs = st.lists(ENTRIES | UNKNOWN, max_size=3)
    first, last = draw(pairs), draw(pairs)
    before, after = (
        draw(mutations(b"".join(body(key) + body(listed(value)) for key, value in some))) for some in (first, last)
    )
    assume(b"argv" not in before + after)
    count = len(first) + 1 + len(last) + draw(st.sampled_from([0, 0, 0, 1, -1]))
    head = b"\x83\x68\x02\x77\x05spawn\x74" + count.to_bytes(4, "big")
    return encode_frame(head + before + ARGV + after)


@st.composite
def well_formed(draw: st.DrawFn) -> bytes:
    """A request whose every term is one, though not all of them are of a type that is taken."""
    entries = draw(st.lists(ENTRIES | UNKNOWN, max_size=4))
    pairs = [(key, listed(value)) for key, value in entries]
    assume(b"argv" not in body(mapping(pairs)))
    at = draw(st.integers(0, len(pairs)))
    return frame(pair("spawn", mapping([*pairs[:at], ("argv", [b"/bin/true"]), *pairs[at:]])))


NOISE = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=20).map(encode_frame),
    near_encodings().map(encode_frame),
    COMMANDS.map(frame),
    COMMANDS.map(frame).flatmap(mutations),
).filter(lambda data: b"argv" not in data)
NOISES = st.lists(NOISE, max_size=5).map(b"".join)
CUTS = st.lists(st.integers(1, 40), max_size=8)


def send_in_pieces(port: Port, data: bytes, cuts: list[int]) -> None:
    for cut in cuts:
        port.send_bytes(data[:cut])
        data = data[cut:]
    port.send_bytes(data)


relaxed = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)

PLAIN = frame(spawn(argv=[b"/bin/true"]))


@given(request_=st.one_of(requests(), well_formed(), NOISE), noise=NOISES, cuts=CUTS)
@example(request_=b"", noise=b"", cuts=[])
@example(request_=PLAIN, noise=frame("proceed"), cuts=[1, 2, 3])
@example(request_=PLAIN, noise=b"\xff\xff\xff\xff", cuts=[])
@relaxed
def test_from_the_first_byte(sanitized: Sanitized, request_: bytes, noise: bytes, cuts: list[int]) -> None:
    with sanitized.port() as port:
        send_in_pieces(port, request_ + noise, cuts)
        finish(sanitized, port, [])


@given(request_=well_formed(), noise=NOISES, cuts=CUTS)
@relaxed
def test_from_the_checkpoint_on(sanitized: Sanitized, request_: bytes, noise: bytes, cuts: list[int]) -> None:
    with sanitized.port() as port:
        port.send_bytes(request_)
        events = [port.receive()]
        if events[0][:2] == ("status", "spawned"):
            events.append(port.receive())
        send_in_pieces(port, noise, cuts)
        finish(sanitized, port, events)


@given(noise=NOISES, cuts=CUTS, waits=st.booleans())
@example(noise=frame(("signal", 2**70)), cuts=[], waits=False)
@relaxed
def test_from_its_release_on(sanitized: Sanitized, noise: bytes, cuts: list[int], waits: bool) -> None:
    with sanitized.port() as port:
        port.send_bytes(PLAIN + frame("proceed"))
        events = [port.receive() for _ in range(3 if waits else 1)]
        send_in_pieces(port, noise, cuts)
        finish(sanitized, port, events)


def test_a_report_would_be_heard(sanitized: Sanitized, tmp_path: Path) -> None:
    """Two bad programs, built the same way."""

    def status_of(code: str) -> int:
        (tmp_path / "bad.c").write_text(f"#include <stdlib.h>\nint main(int n, char **v) {{ (void)v; {code} }}\n")
        subprocess.run(["gcc", *FLAGS, "-w", tmp_path / "bad.c", "-o", tmp_path / "bad"], check=True)
        return subprocess.run([tmp_path / "bad"], env=sanitized.environ, capture_output=True).returncode

    assert status_of("volatile int x = 2147483647; x += n; return 0;") == -signal.SIGILL
    assert status_of("volatile int *p = malloc(n); free((void *)p); return *p;") > 0
    with pytest.raises(AssertionError, match="heap-use-after-free"):
        sanitized.check()


def test_the_session_tests_under_it(sanitized: Sanitized) -> None:
    """The agent's other face, the zygote, is driven by the tests of the API."""
    environ = {**os.environ, **sanitized.environ, "LINX_TRIO_AGENT": str(sanitized.agent), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / "agent" / "test_session.py"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=110)
    sanitized.check()
    assert done.returncode == 0, done.stdout[-4000:]
