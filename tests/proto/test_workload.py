"""`Workload`: what is wrong with it is said at once, by name; what is right survives every journey."""

from __future__ import annotations

import copy
import dataclasses
import errno
import io
import json
import math
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import capabilities, mount, seccomp, user
from linx_trio._options import OPTIONAL, PASS_FDS_LIMIT, RLIMITS, Options
from linx_trio._workload import as_workload
from tests.proto.strategies import relaxed
from tests.proto.test_limits import every_limit

Build = Callable[..., object]


def _replaced(argv: Any, **options: Any) -> linx.Workload:
    return linx.Workload(["true"]).replace(argv=argv, **options)


BUILDERS: dict[str, Build] = {"Workload": linx.Workload, "spawn": linx.spawn, "replace": _replaced}
"""Everything that takes options refuses them when it is called: nothing is awaited, entered or asked of the kernel."""


class NoFileno:
    def __repr__(self) -> str:
        return "NoFileno()"


class BadPath(os.PathLike[str]):
    def __fspath__(self) -> Any:
        return 5

    def __repr__(self) -> str:
        return "BadPath()"


def refused(error: type[Exception], mentions: list[str], argv: Any, **options: Any) -> None:
    """That all builders do, with all of `mentions` in the message."""
    for name, build in BUILDERS.items():
        with pytest.raises((TypeError, ValueError)) as caught:
            build(argv, **options)
        assert type(caught.value) is error, (name, caught.value)
        message = str(caught.value)
        assert [mention for mention in mentions if mention not in message] == [], (name, message)


# ---- argv -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "error", "mentions"),
    [
        ("ls -l", TypeError, ["argv", "'ls -l'", "['ls -l']", "/bin/sh"]),
        (b"ls", TypeError, ["argv", "b'ls'"]),
        (Path("/bin/ls"), TypeError, ["argv", "PosixPath('/bin/ls')"]),
        (None, TypeError, ["argv", "None"]),
        (7, TypeError, ["argv", "7"]),
        ({"ls"}, TypeError, ["argv", "{'ls'}"]),
        ({"ls": 1}, TypeError, ["argv", "{'ls': 1}"]),
        ([], ValueError, ["argv", "empty"]),
        ((), ValueError, ["argv", "empty"]),
        ([""], ValueError, ["argv[0]", "empty"]),
        ([b""], ValueError, ["argv[0]", "empty"]),
        (["ls", None], TypeError, ["argv[1]", "None"]),
        (["ls", 7], TypeError, ["argv[1]", "7"]),
        (["ls", ["-l"]], TypeError, ["argv[1]", "['-l']"]),
        (["ls", bytearray(b"-l")], TypeError, ["argv[1]", "bytearray(b'-l')"]),
        (["ls", "a\0b"], ValueError, ["argv[1]", "NUL", r"'a\x00b'"]),
        ([b"ls\0"], ValueError, ["argv[0]", "NUL", r"b'ls\x00'"]),
        ([Path("a\0b")], ValueError, ["argv[0]", "NUL"]),
        (["ls", "\ud800"], ValueError, ["argv[1]", r"'\ud800'"]),
        (["ls", BadPath()], TypeError, ["argv[1]", "BadPath()"]),
    ],
    ids=repr,
)
def test_wrong_argv(argv: Any, error: type[Exception], mentions: list[str]) -> None:
    refused(error, mentions, argv)


def test_a_string_for_argv_gets_a_hint() -> None:
    hint = "for one without arguments write ['ls'], for a shell command ['/bin/sh', '-c', command]"
    refused(TypeError, [hint], "ls")


# ---- options ----------------------------------------------------------------------------------------------------

ANY_STREAM: list[tuple[Any, type[Exception], list[str]]] = [
    (None, TypeError, ["None"]),
    (True, TypeError, ["True"]),
    (1.0, TypeError, ["1.0"]),
    ("devnull", TypeError, ["'devnull'"]),
    (b"input", TypeError, ["b'input'"]),
    (NoFileno(), TypeError, ["NoFileno()"]),
    (-4, ValueError, ["-4"]),
    (1 << 31, ValueError, [str(1 << 31)]),
    (1 << 70, ValueError, [str(1 << 70)]),
    (linx.PTY, ValueError, ["stdio=linx.PTY"]),
    (linx.Pty(1, 2), ValueError, ["stdio=Pty(rows=1, cols=2)"]),
    (linx.ConnectUnix, TypeError, ["ConnectUnix(path)"]),
]

NUMBERS: list[tuple[Any, type[Exception], list[str]]] = [
    (True, TypeError, ["True"]),
    (1.0, TypeError, ["1.0"]),
    ("1", TypeError, ["'1'"]),
    (b"1", TypeError, ["b'1'"]),
    ([1], TypeError, ["[1]"]),
    (math.nan, TypeError, ["nan"]),
    (-(1 << 70), ValueError, [str(-(1 << 70))]),
    (1 << 70, ValueError, [str(1 << 70)]),
]

ALLOWS_ALL = seccomp.from_bpf(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
REFUSES_ALL = seccomp.from_bpf(struct.pack("=HBBI", 6, 0, 0, 0x00050000 | errno.EPERM))
KILLS_ALL = seccomp.from_bpf(struct.pack("=HBBI", 6, 0, 0, 0x80000000))
"""Filters of one instruction, which return the same for every syscall."""

WRONG: dict[str, list[tuple[Any, type[Exception], list[str]]]] = {
    "namespaces": [
        ("net", TypeError, ["namespaces", "'net'"]),
        (b"net", TypeError, ["namespaces", "b'net'"]),
        (None, TypeError, ["namespaces", "None"]),
        (5, TypeError, ["namespaces", "5"]),
        (linx.Namespace.NET, TypeError, ["namespaces", "net"]),
        (["typo"], ValueError, ["unknown namespace 'typo'", "net", "mount", "time"]),
        (["net", ""], ValueError, ["unknown namespace ''"]),
        (["NET"], ValueError, ["unknown namespace 'NET'"]),
        ([b"net"], ValueError, ["unknown namespace b'net'"]),
        ([None], ValueError, ["unknown namespace None"]),
        ([["net"]], ValueError, ["unknown namespace ['net']"]),
    ],
    "env": [
        ("A=b", TypeError, ["env", "'A=b'"]),
        (["A=b"], TypeError, ["env", "['A=b']"]),
        (5, TypeError, ["env", "5"]),
        ({1: "x"}, TypeError, ["env", "1"]),
        ({"A": 1}, TypeError, ["env['A']", "1"]),
        ({"A": None}, TypeError, ["env['A']", "None"]),
        ({"": "x"}, ValueError, ["env", "''"]),
        ({"A=B": "x"}, ValueError, ["env", "'A=B'"]),
        ({b"A=": b"x"}, ValueError, ["env", "b'A='"]),
        ({"A\0": "x"}, ValueError, ["env", "NUL", r"'A\x00'"]),
        ({"A": "x\0"}, ValueError, ["env['A']", "NUL", r"'x\x00'"]),
        ({"A": "\udfff"}, ValueError, ["env['A']", r"'\udfff'"]),
        ({"A": "1", b"A": "2"}, ValueError, ["env", "'A' twice", "b'A'"]),
    ],
    "cwd": [
        (5, TypeError, ["cwd", "5"]),
        (["/"], TypeError, ["cwd", "['/']"]),
        ("", ValueError, ["cwd", "empty"]),
        ("/a\0", ValueError, ["cwd", "NUL", r"'/a\x00'"]),
        ("/\ud800", ValueError, ["cwd", r"'/\ud800'"]),
    ],
    "stdin": [
        *((value, error, ["stdin", *mentions]) for value, error, mentions in ANY_STREAM),
        (linx.STDOUT, ValueError, ["stdin", "STDOUT"]),
        (subprocess.STDOUT, ValueError, ["stdin", "STDOUT"]),
    ],
    "stdout": [
        *((value, error, ["stdout", *mentions]) for value, error, mentions in ANY_STREAM),
        (linx.STDOUT, ValueError, ["stdout", "STDOUT"]),
    ],
    "stderr": [(value, error, ["stderr", *mentions]) for value, error, mentions in ANY_STREAM],
    "stdio": [
        (1, TypeError, ["stdio", "1"]),
        (True, TypeError, ["stdio", "True"]),
        ("pipe", TypeError, ["stdio", "'pipe'"]),
        (linx.STDOUT, TypeError, ["stdio", "linx.STDOUT"]),
        (NoFileno(), TypeError, ["stdio", "NoFileno()"]),
        (linx.Pty, TypeError, ["stdio", "Pty(rows, cols)"]),
        ((24, 80), TypeError, ["stdio", "(24, 80)"]),
        (linx.ConnectUnix("/s"), TypeError, ["stdio", "ConnectUnix(path='/s')"]),
    ],
    "auto_proceed": [(1, TypeError, ["auto_proceed", "1"]), (None, TypeError, ["auto_proceed", "None"])],
    "new_session": [(0, TypeError, ["new_session", "0"]), ("yes", TypeError, ["new_session", "'yes'"])],
    "no_new_privs": [(1, TypeError, ["no_new_privs", "1"]), (None, TypeError, ["no_new_privs", "None"])],
    "owner": [
        (5, TypeError, ["owner", "5"]),
        (print, TypeError, ["owner", "print"]),
        ([], TypeError, ["owner", "[]"]),
    ],
    "orphan_policy": [
        (None, TypeError, ["orphan_policy", "None"]),
        ("linger", TypeError, ["orphan_policy", "'linger'"]),
        (5.0, TypeError, ["orphan_policy", "5.0"]),
        (linx.Kill, TypeError, ["orphan_policy", "Kill"]),
    ],
    "shutdown": [
        (None, TypeError, ["shutdown", "None"]),
        (linx.LINGER, TypeError, ["shutdown", "linx.LINGER"]),
        (5.0, TypeError, ["shutdown", "5.0"]),
    ],
    "uid": [
        *((value, error, ["uid", *mentions]) for value, error, mentions in NUMBERS),
        (-1, ValueError, ["uid", "-1"]),
        (2**32 - 1, ValueError, ["uid", str(2**32 - 1)]),
    ],
    "gid": [
        *((value, error, ["gid", *mentions]) for value, error, mentions in NUMBERS),
        (-1, ValueError, ["gid", "-1"]),
        (2**32 - 1, ValueError, ["gid", str(2**32 - 1)]),
    ],
    "groups": [
        (5, TypeError, ["groups", "5"]),
        ("wheel", TypeError, ["groups", "'wheel'"]),
        (["wheel"], TypeError, ["groups[0]", "'wheel'"]),
        ([1, True], TypeError, ["groups[1]", "True"]),
        ([1, -1], ValueError, ["groups[1]", "-1"]),
        (range(65537), ValueError, ["groups", "65537"]),
    ],
    "umask": [
        *((value, error, ["umask", *mentions]) for value, error, mentions in NUMBERS),
        (-1, ValueError, ["umask", "-1"]),
        (0o1000, ValueError, ["umask", "512"]),
    ],
    "nice": [
        *((value, error, ["nice", *mentions]) for value, error, mentions in NUMBERS),
        (None, TypeError, ["nice", "None"]),
        (41, ValueError, ["nice", "41"]),
        (-41, ValueError, ["nice", "-41"]),
    ],
    "rlimits": [
        (None, TypeError, ["rlimits", "None"]),
        ([("nofile", 1, 1)], TypeError, ["rlimits", "nofile"]),
        ({"files": (1, 1)}, ValueError, ["limit", "'files'", "nofile"]),
        ({"RLIMIT_NOFILE": (1, 1)}, ValueError, ["limit", "'RLIMIT_NOFILE'"]),
        ({7: (1, 1)}, ValueError, ["limit", "7"]),
        ({"nofile": 5}, TypeError, ["rlimits['nofile']", "5"]),
        ({"nofile": (5,)}, TypeError, ["rlimits['nofile']", "(5,)"]),
        ({"nofile": (1, 2, 3)}, TypeError, ["rlimits['nofile']", "(1, 2, 3)"]),
        ({"nofile": "12"}, TypeError, ["rlimits['nofile']", "'12'"]),
        ({"nofile": b"12"}, TypeError, ["rlimits['nofile']", "b'12'"]),
        ({"nofile": {1, 2}}, TypeError, ["rlimits['nofile']", "{1, 2}"]),
        ({"nofile": (1.0, 2)}, TypeError, ["rlimits['nofile']", "1.0"]),
        ({"nofile": (None, 2)}, TypeError, ["rlimits['nofile']", "None"]),
        ({"nofile": (True, 2)}, TypeError, ["rlimits['nofile']", "True"]),
        ({"nofile": (-2, 2)}, ValueError, ["rlimits['nofile']", "-2"]),
        ({"nofile": (2, 1)}, ValueError, ["rlimits['nofile']", "2", "1"]),
        ({"nofile": (-1, 1)}, ValueError, ["rlimits['nofile']", "-1"]),
        ({"cpu": (0, 2**63)}, ValueError, ["rlimits['cpu']", str(2**63)]),
    ],
    "hostname": [
        (5, TypeError, ["hostname", "5"]),
        ("", ValueError, ["hostname", "''"]),
        ("h" * 65, ValueError, ["hostname", "h" * 65]),
        ("ä" * 33, ValueError, ["hostname", "ä" * 33]),
        ("a\0", ValueError, ["hostname", "NUL"]),
        ("\ud800", ValueError, ["hostname", r"'\ud800'"]),
    ],
    "domainname": [
        (5, TypeError, ["domainname", "5"]),
        ("d" * 65, ValueError, ["domainname", "d" * 65]),
        ("ä" * 33, ValueError, ["domainname", "ä" * 33]),
        ("a\0", ValueError, ["domainname", "NUL"]),
    ],
    "oom_score_adj": [
        *((value, error, ["oom_score_adj", *mentions]) for value, error, mentions in NUMBERS),
        (-1001, ValueError, ["oom_score_adj", "-1001"]),
        (1001, ValueError, ["oom_score_adj", "1001"]),
    ],
    "cpu_affinity": [
        (0, TypeError, ["cpu_affinity", "0", "{0}"]),
        ("0-3", TypeError, ["cpu_affinity", "'0-3'"]),
        ([], ValueError, ["cpu_affinity", "empty"]),
        ([0, "1"], TypeError, ["cpu_affinity", "'1'"]),
        ([True], TypeError, ["cpu_affinity", "True"]),
        ([-1], ValueError, ["cpu_affinity", "-1"]),
        ([8192], ValueError, ["cpu_affinity", "8192"]),
    ],
    "time_offsets": [
        (None, TypeError, ["time_offsets", "None"]),
        ([("boottime", 1)], TypeError, ["time_offsets", "boottime"]),
        ({"realtime": 1}, ValueError, ["time_offsets", "'realtime'", "boottime", "monotonic"]),
        ({5: 1}, ValueError, ["time_offsets", "5"]),
        ({"boottime": True}, TypeError, ["time_offsets['boottime']", "True"]),
        ({"boottime": "1"}, TypeError, ["time_offsets['boottime']", "'1'"]),
        ({"monotonic": math.nan}, ValueError, ["time_offsets['monotonic']", "nan"]),
        ({"monotonic": -math.inf}, ValueError, ["time_offsets['monotonic']", "inf"]),
        ({"monotonic": 2**33}, ValueError, ["time_offsets['monotonic']", str(2**33)]),
    ],
    "sysctls": [
        (None, TypeError, ["sysctls", "None"]),
        (["net.ipv4.ip_forward=1"], TypeError, ["sysctls", "net.ipv4.ip_forward"]),
        ({5: 1}, TypeError, ["sysctls", "5"]),
        ({"net.ipv4.ip_forward": True}, TypeError, ["sysctls['net.ipv4.ip_forward']", "True"]),
        ({"net.ipv4.ip_forward": None}, TypeError, ["sysctls['net.ipv4.ip_forward']", "None"]),
        ({"net.ipv4.ip_forward": 1.0}, TypeError, ["sysctls['net.ipv4.ip_forward']", "1.0"]),
        ({"net.ipv4.ip_forward": "1\0"}, ValueError, ["sysctls['net.ipv4.ip_forward']", "NUL"]),
        ({"net.ipv4.ip_forward": ""}, ValueError, ["sysctls['net.ipv4.ip_forward']", "empty"]),
        ({"net.ipv4.ip_forward": 1, "net/ipv4/ip_forward": 0}, ValueError, ["'net.ipv4.ip_forward'", "/ip_forward'"]),
        ({"net.ipv4\0": 1}, ValueError, ["sysctls", "NUL"]),
        ({"": 1}, ValueError, ["sysctls", "''", "no name"]),
        ({"net..ip_forward": 1}, ValueError, ["sysctls", "'net..ip_forward'", "no name"]),
        ({"net/../kernel/hostname": 1}, ValueError, ["sysctls", "'net/../kernel/hostname'", "no name"]),
        ({"/net/ipv4/ip_forward": 1}, ValueError, ["sysctls", "'/net/ipv4/ip_forward'", "no name"]),
        ({"net." + "x" * 400: 1}, ValueError, ["sysctls", "no name"]),
        ({"kernel.core_pattern": "|/x"}, ValueError, ["'kernel.core_pattern'", "no namespace"]),
        ({"vm.swappiness": 1}, ValueError, ["'vm.swappiness'", "no namespace"]),
        ({"kernel.hostname": "x"}, ValueError, ["'kernel.hostname'", "no namespace"]),
        ({"net.ipv4.ip_forward": 1}, ValueError, ["'net/ipv4/ip_forward'", "add 'net' to namespaces"]),
        ({"kernel.msgmax": 1}, ValueError, ["'kernel/msgmax'", "add 'ipc' to namespaces"]),
        ({"fs.mqueue.msg_max": 1}, ValueError, ["'fs/mqueue/msg_max'", "add 'ipc' to namespaces"]),
        ({"user.max_user_namespaces": 0}, ValueError, ["'user/max_user_namespaces'", "add 'user' to namespaces"]),
    ],
    "init": [
        (1, TypeError, ["init", "1"]),
        (None, TypeError, ["init", "None"]),
        (True, ValueError, ["init=True", "add 'pid' to namespaces"]),
    ],
    "user": [
        (0, TypeError, ["user", "0"]),
        ("root", TypeError, ["user", "'root'"]),
        ([(0, 1000, 1)], TypeError, ["user", "(0, 1000, 1)"]),
    ],
    "root": [
        (5, TypeError, ["root", "5"]),
        ("", ValueError, ["root"]),
        ("/a\0", ValueError, ["root", "NUL"]),
    ],
    "mounts": [
        (5, TypeError, ["mounts", "5"]),
        ("/usr", TypeError, ["mounts", "'/usr'"]),
        (["/usr"], TypeError, ["mounts[0]", "'/usr'"]),
    ],
    "capabilities": [
        ({"kill"}, TypeError, ["capabilities", "linx.capabilities.keep", "{'kill'}"]),
        ("kill", TypeError, ["capabilities", "linx.capabilities.keep", "'kill'"]),
    ],
    "seccomp": [
        (b"\6\0\0\0\0\0\xff\x7f", TypeError, ["seccomp", "linx.seccomp"]),
        ("default", TypeError, ["seccomp", "linx.seccomp", "'default'"]),
        (REFUSES_ALL, ValueError, ["seccomp", "execve", "'EPERM'"]),
        (KILLS_ALL, ValueError, ["seccomp", "execve", "kill_process"]),
    ],
    "pass_fds": [
        (5, TypeError, ["pass_fds", "5"]),
        ("5", TypeError, ["pass_fds", "'5'"]),
        (["5"], TypeError, ["pass_fds", "'5'"]),
        ([True], TypeError, ["pass_fds", "True"]),
        ([None], TypeError, ["pass_fds", "None"]),
        ([linx.PIPE], TypeError, ["pass_fds", "linx.PIPE"]),
        ([linx.INHERIT], TypeError, ["pass_fds must be fds, or objects with fileno(), not linx.INHERIT"]),
        ([linx.PTY], TypeError, ["pass_fds", "linx.PTY"]),
        ([linx.ConnectUnix("/s")], TypeError, ["pass_fds", "ConnectUnix(path='/s')"]),
        ([subprocess.PIPE], ValueError, ["pass_fds", "-1"]),
        ([NoFileno()], TypeError, ["pass_fds", "NoFileno()"]),
        ([-4], ValueError, ["pass_fds", "-4"]),
        ([0], ValueError, ["pass_fds", "0"]),
        ([9, 2], ValueError, ["pass_fds", "2"]),
        ([9, 8, 9], ValueError, ["pass_fds", "(9, 8, 9)"]),
        ([1 << 31], ValueError, ["pass_fds", str(1 << 31)]),
        (range(3, 4 + PASS_FDS_LIMIT), ValueError, ["pass_fds", str(PASS_FDS_LIMIT)]),
    ],
    "cgroup": [
        (5, TypeError, ["cgroup", "5"]),
        (linx.Limits(), TypeError, ["cgroup", "Limits("]),
        ("", ValueError, ["cgroup", "empty"]),
        ("..", ValueError, ["cgroup", "'..'"]),
        ("/sys/fs/cgroup/../x", ValueError, ["cgroup", "'/sys/fs/cgroup/../x'"]),
        ("a\nb", ValueError, ["cgroup", "'a\\nb'"]),
        (b"a\0b", ValueError, ["cgroup", "b'a\\x00b'"]),
        ("x" * 256, ValueError, ["cgroup", "255"]),
    ],
    "limits": [
        ("256M", TypeError, ["limits", "'256M'"]),
        ({"memory": "256M"}, TypeError, ["limits", "'256M'", "linx.Limits"]),
        (linx.Limits, TypeError, ["limits", "Limits"]),
    ],
    "optional": [
        (5, TypeError, ["optional", "5"]),
        ("nice", TypeError, ["optional", "'nice'"]),
        (["cwd"], ValueError, ["optional", "'cwd'", *sorted(OPTIONAL)]),
        ([7], ValueError, ["optional", "7"]),
        ([["nice"]], ValueError, ["optional", "['nice']"]),
    ],
}

CASES = [
    pytest.param(option, *case, id=f"{option}={case[0]!r:.40}") for option, cases in WRONG.items() for case in cases
]


def test_the_table_has_every_option() -> None:
    assert set(WRONG) == Options.__optional_keys__
    assert set(WRONG) == {field.name for field in dataclasses.fields(linx.Workload)} - {"argv"}


@pytest.mark.parametrize(("option", "value", "error", "mentions"), CASES)
def test_a_wrong_option(option: str, value: Any, error: type[Exception], mentions: list[str]) -> None:
    options = {option: value}
    if option in ("hostname", "domainname"):
        options["namespaces"] = {"uts"}
    refused(error, mentions, ["true"], **options)


@pytest.mark.parametrize("grace", [-1, -0.001, math.nan, math.inf, 4_000_001])
def test_a_grace_that_is_no_time(grace: float) -> None:
    with pytest.raises(ValueError, match=f"grace .* {re.escape(repr(grace))}"):
        linx.Kill(grace=grace)


@pytest.mark.parametrize("grace", [None, "5", True, [5]])
def test_a_grace_that_is_no_number(grace: Any) -> None:
    with pytest.raises(TypeError, match=f"grace .* {re.escape(repr(grace))}"):
        linx.Kill(grace=grace)


@pytest.mark.parametrize("name", ["stdim", "Env", "timeout", "_", "cwd "])
def test_an_unknown_option(name: str) -> None:
    refused(TypeError, [name], ["true"], **{name: 1})


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        linx.Workload(["true"], {"net"})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        linx.spawn(["true"], True)  # type: ignore[call-arg]


# ---- streams that are none --------------------------------------------------------------------------------------


def closed_file() -> object:
    with open(os.devnull) as file:
        pass
    return file


def closed_socket() -> object:
    one = socket.socket()
    one.close()
    return one


class Filenos:
    """A `fileno` that answers with anything."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def fileno(self) -> Any:
        return self.answer

    def __repr__(self) -> str:
        return f"Filenos({self.answer!r})"


NO_FDS: dict[str, Callable[[], object]] = {
    "BytesIO": io.BytesIO,
    "StringIO": io.StringIO,
    "closed file": closed_file,
    "closed socket": closed_socket,
    "negative": lambda: Filenos(-1),
    "bool": lambda: Filenos(True),
    "str": lambda: Filenos("3"),
    "huge": lambda: Filenos(1 << 40),
    "class": lambda: socket.socket,
}


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("kind", NO_FDS)
def test_a_stream_that_is_no_fd_is_refused_by_name(stream: str, kind: str) -> None:
    for build in BUILDERS.values():
        with pytest.raises((TypeError, ValueError), match=stream):
            build(["true"], **{stream: NO_FDS[kind]()})


@pytest.mark.parametrize("kind", NO_FDS)
def test_a_passed_fd_that_is_none_is_refused_by_name(kind: str) -> None:
    for build in BUILDERS.values():
        with pytest.raises((TypeError, ValueError), match="pass_fds"):
            build(["true"], pass_fds=[NO_FDS[kind]()])


def test_a_standard_stream_cannot_be_passed_in_disguise() -> None:
    refused(ValueError, ["pass_fds", "1"], ["true"], pass_fds=[Filenos(1)])


def test_an_fd_cannot_be_passed_twice_in_disguise() -> None:
    refused(ValueError, ["pass_fds", "9"], ["true"], pass_fds=[9, Filenos(9)])


# ---- options that contradict each other -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("stdio", [linx.DEVNULL, linx.PIPE, linx.INHERIT, linx.PTY, linx.Pty(5, 6)])
def test_stdio_is_for_all_three_streams(stream: str, stdio: Any) -> None:
    refused(ValueError, ["stdio", stream, "7"], ["true"], stdio=stdio, **{stream: 7})


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_terminal_contradicts_a_connection_too(stream: str) -> None:
    refused(ValueError, ["stdio", stream, "'/s'"], ["true"], stdio=linx.PTY, **{stream: linx.ConnectUnix("/s")})


@pytest.mark.parametrize("stdio", [linx.PTY, linx.Pty(5, 6)])
def test_a_terminal_needs_a_session_of_its_own(stdio: Any) -> None:
    refused(ValueError, ["stdio", "new_session=False"], ["true"], stdio=stdio, new_session=False)


@pytest.mark.parametrize("name", ["rows", "cols"])
@pytest.mark.parametrize(
    ("size", "error"),
    [(-1, ValueError), (65536, ValueError), (1 << 70, ValueError), (1.0, TypeError), ("1", TypeError),
     (None, TypeError), (True, TypeError), ((24, 80), TypeError)],
)  # fmt: skip
def test_a_terminal_of_no_size(name: str, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} .*{re.escape(repr(size))}"):
        linx.Pty(**{name: size})


@pytest.mark.parametrize("name", ["rows", "cols", "xpixel", "ypixel"])
@pytest.mark.parametrize(
    ("size", "error"), [(-1, ValueError), (65536, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_a_window_of_no_size(name: str, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} .*{re.escape(repr(size))}"):
        linx.tty.WindowSize(**{"rows": 24, "cols": 80, name: size})


@pytest.mark.parametrize("namespaces", [(), {"net", "user", "pid"}])
def test_a_hostname_without_a_uts_namespace_would_rename_the_host(namespaces: Any) -> None:
    refused(ValueError, ["hostname", "'box'", "'uts'"], ["true"], hostname="box", namespaces=namespaces)


def test_taking_the_namespace_away_from_a_hostname_is_refused_too() -> None:
    workload = linx.Workload(["true"], hostname="box", namespaces={"uts"})
    with pytest.raises(ValueError, match="hostname"):
        workload.replace(namespaces=())


# ---- nothing happens before -------------------------------------------------------------------------------------


def test_a_refusal_makes_no_system_call() -> None:
    """Audit events are raised by whatever opens, starts or connects; the refusals above must raise none."""
    program = """
import sys
import linx_trio as linx
seen = []
wrong = [
    ([], {}), (["", 1], {}), (["a\\0"], {}), (["x"], {"env": 5}), (["x"], {"pass_fds": [1]}), (["x"], {"cwd": ""}),
    (["x"], {"rlimits": {"x": 1}}), (["x"], {"hostname": "a"}), (["x"], {"namespaces": ["typo"]}),
    (["x"], {"stdin": linx.PTY}), (["x"], {"stdio": linx.PTY, "new_session": False}),
    (["x"], {"stdio": linx.ConnectUnix("/s")}), (["x"], {"stdio": linx.PTY, "stdin": linx.ConnectUnix("/s")}),
]
sys.addaudithook(lambda event, args: seen.append(event))
for argv, options in wrong:
    try: linx.spawn(argv, **options); print("accepted")
    except (TypeError, ValueError): pass
calls = [e for e in seen if e.split(".")[0] in {"open", "os", "socket", "subprocess", "fcntl", "signal", "import"}]
print(calls)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


async def test_run_refuses_before_it_starts_anything() -> None:
    with pytest.raises(ValueError, match="argv"):
        await linx.run([])
    with pytest.raises(TypeError, match="cwd"):
        await linx.run(["true"], cwd=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_output"):
        await linx.run(["true"], max_output=-1)
    with pytest.raises(ValueError, match="capture_stdout"):
        await linx.run(["true"], capture_stdout=True, stdout=linx.DEVNULL)
    with pytest.raises(ValueError, match="stdout=PIPE"):
        await linx.run(["true"], stdout=linx.PIPE)


# ---- what is right ----------------------------------------------------------------------------------------------


def test_the_defaults() -> None:
    workload = linx.Workload(["true"])
    assert workload.arguments == ("true",)
    assert workload.namespace_names == frozenset()
    assert workload.env is None
    assert workload.stdin is workload.stdout is workload.stderr is linx.INHERIT
    assert workload.orphan_policy == linx.Kill(grace=5.0)
    assert workload.shutdown == linx.Kill(grace=0.0)
    assert workload.new_session
    assert not workload.auto_proceed
    assert workload.to_dict() == {"argv": ["true"]}


def test_it_is_frozen_and_keeps_no_hold_on_what_it_was_given() -> None:
    argv, env, limits = ["true"], {"A": "1"}, {"nofile": (1, 2)}
    workload = linx.Workload(argv, env=env, rlimits=limits)
    argv.append("x")
    env["B"] = "2"
    limits["cpu"] = (1, 2)
    assert workload == linx.Workload(["true"], env={"A": "1"}, rlimits={"nofile": (1, 2)})
    with pytest.raises(dataclasses.FrozenInstanceError):
        workload.nice = 5  # type: ignore[misc]


def test_an_iterator_is_used_up_once() -> None:
    names: Iterator[str] = iter(["net", "uts"])
    workload = linx.Workload(
        ["true"], namespaces=names, groups=iter([1, 2]), pass_fds=iter([7]), optional=iter(["nice"])
    )
    assert workload.namespace_names == {"net", "uts"}
    assert workload == workload.replace()
    assert (workload.groups, workload.pass_fds, workload.optional) == ((1, 2), (7,), frozenset({"nice"}))


@pytest.mark.parametrize("member", linx.Namespace)
def test_a_namespace_is_its_name(member: linx.Namespace) -> None:
    assert linx.Workload(["true"], namespaces=[member]) == linx.Workload(["true"], namespaces=[member.value])
    (name,) = linx.Workload(["true"], namespaces=[member]).namespace_names
    assert type(name) is str


def test_bytes_and_paths_are_what_the_file_system_means_by_them() -> None:
    workload = linx.Workload([b"/bin/\xff", Path("/tmp")], env={b"A": b"\xfe"}, cwd=b"/\xfd")
    assert [os.fsencode(argument) for argument in workload.arguments] == [b"/bin/\xff", b"/tmp"]
    assert workload == linx.Workload(["/bin/\udcff", "/tmp"], env={"A": "\udcfe"}, cwd="/\udcfd")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(subprocess.PIPE, linx.PIPE), (subprocess.DEVNULL, linx.DEVNULL), (subprocess.STDOUT, linx.STDOUT)],
)
def test_constants_of_subprocess_are_understood(theirs: int, ours: Any) -> None:
    assert linx.Workload(["true"], stderr=theirs).stderr is ours


@pytest.mark.parametrize("value", [linx.INHERIT, linx.DEVNULL, linx.PIPE])
def test_stdio_stands_for_all_three(value: Any) -> None:
    workload = linx.Workload(["true"], stdio=value)
    assert (workload.stdin, workload.stdout, workload.stderr) == (value, value, value)
    assert workload == linx.Workload(["true"], stdin=value, stdout=value, stderr=value)


def test_a_terminal_is_one_thing_and_not_three() -> None:
    workload = linx.Workload(["true"], stdio=linx.PTY)
    assert workload.stdio == linx.Pty() == linx.Pty(24, 80)
    assert workload == linx.Workload(["true"], stdio=linx.Pty(rows=24, cols=80))
    assert workload != linx.Workload(["true"], stdio=linx.Pty(25, 80))
    assert workload.stdin is workload.stdout is workload.stderr is linx.INHERIT
    assert workload.to_dict() == {"argv": ["true"], "stdio": {"pty": [24, 80]}}
    assert linx.Workload.from_dict({"argv": ["true"], "stdio": "pty"}) == workload


def test_a_terminal_is_replaced_as_a_whole() -> None:
    workload = linx.Workload(["true"], stdio=linx.Pty(5, 6))
    assert workload.replace(nice=1).stdio == linx.Pty(5, 6)
    assert workload.replace(stdio=linx.PIPE).stdout is linx.PIPE
    assert workload.replace(stdio=linx.PIPE).stdio is None
    assert workload.replace(stdio=None) == linx.Workload(["true"])
    assert linx.Workload(["true"], stdout=linx.ConnectUnix("/s")).replace(stdio=linx.PTY).stdio == linx.Pty()
    with pytest.raises(ValueError, match=r"stdio=Pty\(.*stdin=linx\.PIPE"):
        workload.replace(stdin=linx.PIPE)


@pytest.mark.parametrize("path", ["/s", b"/s", Path("/s")], ids=type)
def test_a_connection_is_to_what_the_file_system_means(path: Any) -> None:
    workload = linx.Workload(["true"], stdout=linx.ConnectUnix(path))
    assert workload.stdout == linx.ConnectUnix("/s")
    assert workload.to_dict() == {"argv": ["true"], "stdout": {"connect_unix": "/s"}}


def test_an_object_with_fileno_is_kept() -> None:
    with open(os.devnull, "rb") as file:
        assert linx.Workload(["true"], stdin=file, pass_fds=[file]).stdin is file


def test_replace() -> None:
    workload = linx.Workload(["true"], namespaces={"net"}, nice=3, stdout=linx.PIPE)
    other = workload.replace(nice=4, argv=["false"])
    assert (other.arguments, other.nice, sorted(other.namespace_names)) == (("false",), 4, ["net"])
    assert other.stdout is linx.PIPE
    assert (workload.arguments, workload.nice) == (("true",), 3)
    assert workload.replace() == workload
    assert workload.replace(stdio=linx.DEVNULL).stdout is linx.DEVNULL
    assert workload.replace(stdio=linx.DEVNULL).replace(stdin=linx.PIPE).stdin is linx.PIPE
    with pytest.raises(TypeError, match="nicer"):
        workload.replace(nicer=5)


# ---- remembering -----------------------------------------------------------------------------------------------------

values = st.sampled_from([
    None, True, False, 0, 1, 2, 1.0, -1, "pid", b"pid", "no", linx.PIPE, linx.Namespace.PID, [], (), ["pid"], ("pid",),
    {"uts"}, frozenset({"uts"}), ["pid", 1], [1], ["uts", "pid"], {}, {"core": (0, 0)}, linx.Kill(1),
])  # fmt: skip


@relaxed
@given(
    st.lists(st.sampled_from(["true", "x", "", "\0", b"true", Path("x"), 1]), max_size=2),
    st.dictionaries(
        st.sampled_from([*(f.name for f in dataclasses.fields(linx.Workload)[1:]), "unknown"]), values, max_size=2
    ),
)
@example(["true"], {"no_new_privs": 1})
@example(["true"], {"nice": True})
@example(["true"], {"namespaces": "pid"})
def test_a_remembered_workload_is_what_a_new_one_would_be(argv: list[Any], options: dict[str, Any]) -> None:
    def outcome(make: Callable[[], linx.Workload]) -> object:
        try:
            return make()
        except (TypeError, ValueError, NotImplementedError) as exc:
            return type(exc), str(exc)

    new = linx.Workload(["new"])
    for _ in range(2):  # what is remembered, is so now
        assert outcome(lambda: as_workload(argv, options)) == outcome(lambda: new.replace(**options, argv=argv))


def test_the_same_again_is_the_same_workload() -> None:
    argv, namespaces = ["true"], ["pid"]
    one = as_workload(argv, {"namespaces": namespaces, "init": True})
    assert as_workload(("true",), {"namespaces": ("pid",), "init": True}) is one
    argv.append("more")
    namespaces.append("uts")
    other = as_workload(argv, {"namespaces": namespaces, "init": True})
    assert (one.argv, one.namespaces) == (("true",), {"pid"})
    assert (other.argv, other.namespaces) == (("true", "more"), {"pid", "uts"})


def test_what_is_long_is_not_remembered() -> None:
    argv = ["echo", "x" * 5000]
    assert as_workload(argv, {}) is not as_workload(argv, {})
    assert as_workload(argv, {}) == as_workload(argv, {})


@pytest.mark.parametrize(("name", "right", "wrong"), [("no_new_privs", True, 1), ("nice", 1, True), ("uid", 0, False)])
def test_what_only_equals_the_same_is_looked_at_for_itself(name: str, right: object, wrong: object) -> None:
    as_workload(["true"], {name: right})
    with pytest.raises(TypeError, match=name):
        as_workload(["true"], {name: wrong})


def test_spawn_takes_a_workload_and_changes_to_it() -> None:
    workload = linx.Workload(["true"], hostname="box", namespaces={"uts"})
    linx.spawn(workload)
    with pytest.raises(ValueError, match="hostname"):
        linx.spawn(workload, namespaces=())
    with pytest.raises(TypeError, match="nice"):
        linx.spawn(workload, nice="5")  # type: ignore[arg-type]


# ---- journeys ---------------------------------------------------------------------------------------------------

encodable = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
raw = st.binary(max_size=8).map(lambda value: value.replace(b"\0", b"")).map(os.fsdecode)
strings = encodable | raw
names = strings.map(lambda name: name.replace("=", "")).filter(bool)
limits = st.one_of(
    st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)).map(lambda pair: (min(pair), max(pair))),
    st.integers(-1, 2**62).map(lambda soft: (soft, -1)),
)
ids = st.none() | st.integers(0, 2**32 - 2)
dimensions = st.integers(0, 65535)
sockets = st.one_of(
    strings.filter(bool), strings.map(lambda name: "\0" + name), st.binary(max_size=9).map(b"\0".__add__)
)
graces = st.floats(0, 4e6) | st.integers(0, 4 * 10**6)
policies = st.builds(
    lambda make, caps: make(caps),
    st.sampled_from([capabilities.keep, capabilities.drop]),
    st.sets(st.sampled_from(list(capabilities.Capability)), max_size=4),
)
filters = st.sampled_from([ALLOWS_ALL, seccomp.from_bpf(ALLOWS_ALL.program, log=True)])
maps = st.sampled_from(
    [user.root_map(), user.Maps(uid=(0, 100000, 65536), gid=[(0, 100000, 1), (1, 5, 1)], setgroups="allow")]
)
entries = st.sampled_from(
    [
        mount.Bind("/usr", readonly=True),
        mount.Tmpfs("/tmp", "64M"),
        mount.Proc(),
        mount.Dev(),
        mount.File("/etc/motd", b"\xff\0"),
        mount.Symlink("usr/bin", "/bin"),
        mount.Overlay("/o", ["/l1", "/l2"]),
    ]
)
sysctls: dict[str, dict[str, str | int]] = {
    "net": {"net.ipv4.ip_forward": 1, "net/ipv4/conf/eth0.1/forwarding": "0"},
    "ipc": {"kernel.msgmax": 8192, "fs.mqueue.msg_max": " 10 "},
    "user": {"user.max_user_namespaces": 0},
}


@st.composite
def workloads(draw: st.DrawFn) -> linx.Workload:
    """Every workload that has a plain form."""
    namespaces = draw(st.sets(st.sampled_from(list(linx.Namespace))))
    terminal = draw(st.none() | st.builds(linx.Pty, dimensions, dimensions))
    plain: st.SearchStrategy[Any] = st.just(linx.INHERIT)
    if terminal is None:
        plain |= st.sampled_from([linx.DEVNULL, linx.PIPE]) | st.builds(linx.ConnectUnix, sockets)
    return linx.Workload(
        [draw(strings.filter(bool)), *draw(st.lists(strings, max_size=3))],
        namespaces=namespaces,
        env=draw(st.none() | st.dictionaries(names, strings, max_size=4)),
        cwd=draw(st.none() | strings.filter(bool)),
        stdin=draw(plain),
        stdout=draw(plain),
        stderr=draw(plain | st.just(linx.STDOUT) if terminal is None else plain),
        stdio=terminal,
        auto_proceed=draw(st.booleans()),
        orphan_policy=draw(st.just(linx.LINGER) | st.builds(linx.Kill, graces)),
        shutdown=draw(st.builds(linx.Kill, graces)),
        uid=draw(ids),
        gid=draw(ids),
        groups=draw(st.none() | st.lists(st.integers(0, 2**32 - 2), max_size=3)),
        umask=draw(st.none() | st.integers(0, 0o777)),
        nice=draw(st.integers(-40, 40)),
        rlimits=draw(st.dictionaries(st.sampled_from(list(RLIMITS)), limits, max_size=3)),
        oom_score_adj=draw(st.none() | st.integers(-1000, 1000)),
        time_offsets=draw(
            st.dictionaries(st.sampled_from(["boottime", "monotonic"]), st.integers(-9, 9) | st.floats(-9.0, 9.0))
        ),
        cpu_affinity=draw(st.none() | st.sets(st.integers(0, 8191), min_size=1, max_size=3)),
        hostname=draw(st.none() | st.text("abc-", min_size=1, max_size=64)) if "uts" in namespaces else None,
        domainname=draw(st.none() | st.text("abc-", max_size=64)) if "uts" in namespaces else None,
        sysctls=draw(
            st.fixed_dictionaries(
                {},
                optional={
                    name: st.just(value)
                    for kind, some in sysctls.items()
                    if kind in namespaces
                    for name, value in some.items()
                },
            )
        ),
        init="pid" in namespaces and draw(st.booleans()),
        new_session=terminal is not None or draw(st.booleans()),
        no_new_privs=draw(st.booleans()),
        user=draw(st.none() | maps),
        root=draw(st.none() | strings.map("/r".__add__) | st.just(mount.Tmpfs("/"))),
        mounts=draw(st.lists(entries, max_size=3)),
        cgroup=draw(st.none() | st.sampled_from(["lab", "/sys/fs/cgroup/lab/web"])),
        limits=draw(st.none() | every_limit),
        capabilities=draw(st.none() | policies),
        seccomp=draw(st.none() | filters),
        optional=draw(st.sets(st.sampled_from(sorted(OPTIONAL)))),
    )


@relaxed
@given(workloads())
def test_a_workload_survives_json_pickle_and_replace(workload: linx.Workload) -> None:
    plain = workload.to_dict()
    assert linx.Workload.from_dict(plain) == workload
    assert linx.Workload.from_dict(json.loads(json.dumps(plain))) == workload
    assert linx.Workload.from_dict(json.loads(json.dumps(plain))).to_dict() == plain
    assert workload.replace() == workload
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(workload, protocol)) == workload


@relaxed
@given(workloads(), workloads())
def test_different_workloads_have_different_plain_forms(one: linx.Workload, other: linx.Workload) -> None:
    assert (one == other) == (one.to_dict() == other.to_dict())


@pytest.mark.parametrize("copied", [lambda w: pickle.loads(pickle.dumps(w)), copy.copy, copy.deepcopy])
def test_a_sandbox_survives_pickle_and_copy(copied: Callable[[linx.Workload], linx.Workload]) -> None:
    workload = linx.sandboxed(["true"], limits=linx.Limits(pids=64), writable=["/tmp"])
    assert copied(workload) == workload
    assert hash(copied(workload).arguments) == hash(workload.arguments)


@pytest.mark.parametrize("name", ["stdin", "stdout", "pass_fds"])
def test_what_means_nothing_in_another_process_is_not_pickled(name: str) -> None:
    with open(os.devnull) as file:
        values: dict[str, Any] = {"stdin": 0, "stdout": file, "pass_fds": [file]}
        workload = linx.Workload(["true"], **{name: values[name]})
        with pytest.raises(TypeError, match=rf"{name}=.* means nothing elsewhere"):
            pickle.dumps(workload)
        assert copy.copy(workload) == copy.deepcopy(workload) == workload


def test_the_plain_form_is_small_and_sorted() -> None:
    workload = linx.Workload(["true"], namespaces=["uts", "net"], env={}, orphan_policy=linx.LINGER, nice=1)
    assert workload.to_dict() == {
        "argv": ["true"],
        "namespaces": ["net", "uts"],
        "env": {},
        "orphan_policy": "linger",
        "nice": 1,
    }


@pytest.mark.parametrize("options", [{"stdin": 5}, {"pass_fds": [5]}, {"stdout": Filenos(7)}], ids=repr)
def test_an_fd_has_no_plain_form(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(TypeError, match=name):
        linx.Workload(["true"], **options).to_dict()


async def test_a_channel_has_no_plain_form() -> None:
    send, receive = trio.open_memory_channel[linx.Event](1)
    async with send, receive:
        with pytest.raises(TypeError, match="owner"):
            linx.Workload(["true"], owner=send).to_dict()


@pytest.mark.parametrize(
    ("plain", "mention"),
    [
        (None, "argv"),
        ([], "argv"),
        ("true", "argv"),
        ({}, "argv"),
        ({"argv": "true"}, "argv"),
        ({"argv": []}, "argv"),
        ({"argv": ["true"], "command": 1}, "command"),
        ({"argv": ["true"], "stdin": "nope"}, "stdin"),
        ({"argv": ["true"], "stdin": "stdout"}, "stdin"),
        ({"argv": ["true"], "stdio": "nope"}, "stdio"),
        ({"argv": ["true"], "stdout": None}, "stdout"),
        ({"argv": ["true"], "stdio": "pty", "new_session": False}, "new_session"),
        ({"argv": ["true"], "stdin": "pty"}, "stdin"),
        ({"argv": ["true"], "stdin": {"pty": [24, 80]}}, "stdin"),
        ({"argv": ["true"], "stdio": {"connect_unix": "/s"}}, "stdio"),
        ({"argv": ["true"], "stdio": {"pty": [24]}}, "stdio"),
        ({"argv": ["true"], "stdio": {"pty": {"rows": 24, "cols": 80}}}, "stdio"),
        ({"argv": ["true"], "stdio": {"pty": [24, 80], "more": 1}}, "stdio"),
        ({"argv": ["true"], "stdio": {}}, "stdio"),
        ({"argv": ["true"], "stdio": {"pty": [24, 65536]}}, "cols"),
        ({"argv": ["true"], "stdio": {"pty": ["24", 80]}}, "rows"),
        ({"argv": ["true"], "stdout": {"connect_unix": ""}}, "path"),
        ({"argv": ["true"], "stdout": {"connect_unix": None}}, "path"),
        ({"argv": ["true"], "stdout": {"connect_unix": "/s", "more": 1}}, "stdout"),
        ({"argv": ["true"], "stdout": {"socket": "/s"}}, "stdout"),
        ({"argv": ["true"], "shutdown": "linger"}, "shutdown"),
        ({"argv": ["true"], "shutdown": 5}, "shutdown"),
        ({"argv": ["true"], "shutdown": None}, "shutdown"),
        ({"argv": ["true"], "shutdown": {}}, "shutdown"),
        ({"argv": ["true"], "shutdown": {"kill": 1, "more": 2}}, "shutdown"),
        ({"argv": ["true"], "shutdown": {"kill": "soon"}}, "grace"),
        ({"argv": ["true"], "orphan_policy": "kill"}, "orphan_policy"),
        ({"argv": ["true"], "orphan_policy": []}, "orphan_policy"),
        ({"argv": ["true"], "rlimits": 5}, "rlimits"),
        ({"argv": ["true"], "rlimits": ["nofile"]}, "rlimits"),
        ({"argv": ["true"], "rlimits": {"nofile": 5}}, "rlimits"),
        ({"argv": ["true"], "rlimits": {"nofile": "12"}}, "rlimits"),
        ({"argv": ["true"], "env": []}, "env"),
        ({"argv": ["true"], "namespaces": "net"}, "namespaces"),
        ({"argv": ["true"], "owner": "me"}, "owner"),
    ],
    ids=repr,
)
def test_from_dict_says_what_is_wrong(plain: Any, mention: str) -> None:
    with pytest.raises((TypeError, ValueError), match=mention):
        linx.Workload.from_dict(plain)


junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@relaxed
@given(junk)
@example(["x", "\udfff"])
@example(["x\0"])
def test_any_argv_is_taken_or_refused_by_name(argv: Any) -> None:
    try:
        workload = linx.Workload(argv)
    except (TypeError, ValueError) as exc:
        assert "argv" in str(exc)  # noqa: PT017 (either is right)
        return
    assert workload.arguments
    for argument in workload.arguments:
        assert b"\0" not in os.fsencode(argument)


@relaxed
@given(st.dictionaries(junk.filter(lambda key: not isinstance(key, (list, dict, tuple))), junk, max_size=3) | junk)
def test_any_env_is_taken_or_refused_by_name(env: Any) -> None:
    try:
        workload = linx.Workload(["true"], env=env)
    except (TypeError, ValueError) as exc:
        assert "env" in str(exc)  # noqa: PT017 (either is right)
        return
    assert workload.env is None or all("=" not in key and key for key in workload.env)


@relaxed
@given(st.dictionaries(st.sampled_from([*RLIMITS, "typo"]), junk | st.tuples(st.integers(), st.integers()), max_size=3))
def test_any_rlimits_are_taken_or_refused_by_name(rlimits: Any) -> None:
    try:
        workload = linx.Workload(["true"], rlimits=rlimits)
    except (TypeError, ValueError) as exc:
        assert "rlimits" in str(exc) or "resource limit" in str(exc)  # noqa: PT017 (either is right)
        return
    for soft, hard in workload.rlimits.values():
        assert -1 <= soft < 2**63
        assert -1 <= hard < 2**63
        assert hard == -1 or 0 <= soft <= hard


@relaxed
@given(st.sampled_from(sorted(WRONG)), junk)
def test_any_value_of_any_option_is_taken_or_refused(option: str, value: Any) -> None:
    try:
        workload = linx.Workload(["true"], **{option: value})
    except (TypeError, ValueError) as exc:
        assert str(exc)  # noqa: PT017 (either is right)
        return
    assert workload.replace() == workload


@relaxed
@given(st.dictionaries(st.sampled_from(["argv", *sorted(WRONG)]), junk, max_size=4), st.booleans())
def test_any_plain_form_is_taken_or_refused(plain: dict[str, Any], with_argv: bool) -> None:
    try:
        workload = linx.Workload.from_dict({"argv": ["true"], **plain} if with_argv else plain)
    except (TypeError, ValueError):
        return
    assert workload.arguments
