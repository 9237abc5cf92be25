"""`linx.seccomp`: the lists, the presets, `Filter` as plain data; and what the real kernel makes of the programs."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from linx_trio import NotSupported, _seccomp_bpf, _seccomp_compile, _seccomp_filter, _seccomp_profiles
from linx_trio._seccomp_bpf import Instruction, Op
from linx_trio.seccomp import (
    Filter,
    allow_list,
    default,
    deny_list,
    from_bpf,
    install,
    no_tty_injection,
    verdict,
    will_refuse_execve,
)
from tests.proto.seccomp_kernel import asked, run

NATIVE = _seccomp_compile.machine()
I386, X32 = 0x40000003, 0x40000000
TIOCSTI, TIOCLINUX, TIOCGWINSZ = 0x5412, 0x541C, 0x5413
HIGH = 1 << 32  # a bit that the kernel does not look at in an int
ALLOW_ALL = _seccomp_bpf.encode([Instruction(Op.RET_K, 0, 0, _seccomp_bpf.ALLOW)])

MAKERS: list[Callable[[], Filter]] = [
    default,
    no_tty_injection,
    lambda: allow_list(["read", "execve"]),
    lambda: allow_list([], ("errno", "ENOSYS")),
    lambda: deny_list(["mkdirat"]),
    lambda: deny_list([]),
]


def number(name: str) -> int:
    found = _seccomp_compile.number_of(name)
    assert found is not None
    return found


# ---- lists ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        "kill_process",
        "kill_thread",
        "trap",
        "log",
        ("errno", "EACCES"),
        ("errno", 999),
        ("errno", 4094),
        ["errno", "EIO"],
    ],
)
def test_lists_do_what_they_say(action: Any) -> None:
    shown = tuple(action) if isinstance(action, list) else action
    allowing, denying = allow_list(["read", "execve"], action), deny_list(["read", "mkdirat"], action)
    assert [verdict(allowing, name) for name in ("read", "execve", "mkdirat")] == ["allow", "allow", shown]
    assert [verdict(denying, name) for name in ("read", "execve", "mkdirat")] == [shown, "allow", shown]
    assert verdict(allowing, 5000) == shown
    assert verdict(denying, 5000) == "allow"


def test_defaults() -> None:
    assert verdict(allow_list(["read"]), "write") == "kill_process"
    assert verdict(deny_list(["read"]), "read") == ("errno", "EPERM")


@pytest.mark.parametrize("make", MAKERS)
def test_other_architectures_and_x32_are_closed(make: Callable[[], Filter]) -> None:
    program = make().program
    for nr in (0, 1, number("execve"), number("ioctl"), 999):
        for arch in (I386, 0x40000028, 0xC00000B7 if NATIVE.go == "amd64" else 0xC000003E, 0):
            assert _seccomp_bpf.outcomes(program, _seccomp_bpf.words_of(nr, arch)) == {_seccomp_bpf.KILL_PROCESS}
        if NATIVE.go == "amd64":
            words = _seccomp_bpf.words_of(nr | X32, NATIVE.token)
            assert _seccomp_bpf.outcomes(program, words) == {_seccomp_bpf.KILL_PROCESS}


def test_every_number_has_the_verdict_of_its_name() -> None:
    """libseccomp searches a long list as a tree."""
    allowed = {number(name) for name in _seccomp_profiles.words(_seccomp_profiles.ALLOWED)}
    filter = allow_list(_seccomp_profiles.words(_seccomp_profiles.ALLOWED), "trap")
    assert {nr for nr in range(1000) if verdict(filter, nr) == "allow"} == {nr for nr in allowed if nr >= 0}
    assert {verdict(filter, nr) for nr in range(1000)} == {"allow", "trap"}


def test_names_that_are_newer_than_libseccomp() -> None:
    assert number("fchmodat2") == 452
    assert number("file_setattr") == 469
    assert verdict(deny_list(["mseal"]), 462) == ("errno", "EPERM")


def test_a_name_of_another_architecture_means_nothing_here() -> None:
    assert deny_list(["socketcall"]) == deny_list([])
    with pytest.raises(ValueError, match="this architecture has no syscall 'socketcall'"):
        verdict(deny_list([]), "socketcall")


@pytest.mark.parametrize(
    ("call", "error", "complaint"),
    [
        (lambda: allow_list(["opne"]), ValueError, "unknown syscall 'opne' in names; did you mean 'open"),
        (
            lambda: deny_list(["fchmodat3"]),
            ValueError,
            "unknown syscall 'fchmodat3' in names; did you mean 'fchmodat",
        ),
        (lambda: deny_list(["qqqqqq"]), ValueError, "unknown syscall 'qqqqqq' in names$"),
        (lambda: deny_list([""]), ValueError, "unknown syscall ''"),
        (lambda: deny_list(["read\0"]), ValueError, r"unknown syscall 'read\\x00'"),
        (lambda: deny_list(["réad"]), ValueError, "unknown syscall 'réad'"),
        (lambda: default(allow=["mont"]), ValueError, "unknown syscall 'mont' in allow; did you mean 'mount'"),
        (lambda: deny_list("read"), TypeError, "names must be an iterable of syscall names, not 'read'"),
        (lambda: deny_list(cast("Any", 7)), TypeError, "names must be an iterable"),
        (lambda: deny_list(cast("Any", [7])), TypeError, "names: a syscall's name must be str, not 7"),
        (lambda: allow_list(["read"], "allow"), ValueError, "then the list means nothing"),
        (lambda: deny_list(["read"], "allow"), ValueError, "then nothing is denied"),
        (lambda: allow_list(["read"], "kill"), ValueError, "unknown default 'kill'; there are: allow, kill_process"),
        (lambda: deny_list(["read"], "errno"), ValueError, r"unknown action 'errno'.*write \('errno', 'EPERM'\)"),
        (lambda: deny_list(["read"], cast("Any", 7)), TypeError, "action must be one of"),
        (lambda: deny_list(["read"], cast("Any", ("errno",))), TypeError, "action must be one of"),
        (lambda: deny_list(["read"], ("errno", "EPRM")), ValueError, "unknown errno 'EPRM'; did you mean 'EPERM'"),
        (lambda: deny_list(["read"], ("errno", "errorcode")), ValueError, "unknown errno 'errorcode'"),
        (lambda: deny_list(["read"], ("errno", 4095)), ValueError, "errno must be between 0 and 4094, not 4095"),
        (lambda: deny_list(["read"], ("errno", -1)), ValueError, "errno must be between 0 and 4094, not -1"),
        (lambda: deny_list(["read"], ("errno", True)), TypeError, "errno must be a name"),
        (lambda: deny_list(["read"], log=cast("Any", 1)), TypeError, "log must be True or False, not 1"),
        (lambda: from_bpf(cast("Any", "x")), TypeError, "program must be bytes, not str"),
        (lambda: from_bpf(b"x"), ValueError, "not 1 bytes"),
        (lambda: Filter(ALLOW_ALL, 1), ValueError, "not 0x1"),
        (lambda: Filter(ALLOW_ALL, cast("Any", True)), TypeError, "flags must be an int, not True"),
        (lambda: Filter(ALLOW_ALL, 0, cast("Any", 7)), TypeError, "label must be str, not 7"),
        (lambda: verdict(cast("Any", b""), "read"), TypeError, "filter must be a filter from linx.seccomp, not b''"),
        (lambda: verdict(from_bpf(ALLOW_ALL), "read", *range(7)), ValueError, "a syscall has six arguments, not 7"),
        (lambda: verdict(from_bpf(ALLOW_ALL), "read", 0, cast("Any", "x")), TypeError, r"arguments\[1\].*not 'x'"),
        (lambda: verdict(from_bpf(ALLOW_ALL), "read", True), TypeError, r"arguments\[0\] must be an int, not True"),
        (lambda: verdict(from_bpf(ALLOW_ALL), "read", 2**64), ValueError, rf"arguments\[0\].*64 bits.*not {2**64}"),
        (lambda: verdict(from_bpf(ALLOW_ALL), 2**40), ValueError, f"syscall must have 32 bits at most, not {2**40}"),
        (lambda: verdict(from_bpf(ALLOW_ALL), -(2**31) - 1), ValueError, "syscall must have 32 bits at most"),
        (lambda: verdict(from_bpf(ALLOW_ALL), True), TypeError, "syscall: a syscall's name must be str, not True"),
        (lambda: will_refuse_execve(cast("Any", None)), TypeError, "filter must be a filter.*, not None"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call: Callable[[], Any], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        call()


# ---- plain data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_a_filter_is_plain_data(make: Callable[[], Filter]) -> None:
    filter = make()
    assert make() == filter
    for again in (
        pickle.loads(pickle.dumps(filter)),
        copy.deepcopy(filter),
        Filter.from_dict(json.loads(json.dumps(filter.to_dict()))),
        from_bpf(filter.program),
    ):
        assert again == filter
        assert hash(again) == hash(filter)
    assert len(repr(filter)) < 100
    with pytest.raises(AttributeError):
        filter.flags = 2  # type: ignore[misc]


def test_logging_is_a_flag() -> None:
    assert [make(log=True).flags for make in (default, no_tty_injection)] == [2, 2]
    assert (
        deny_list(["read"], log=True).flags
        == allow_list(["read"], log=True).flags
        == from_bpf(ALLOW_ALL, log=True).flags
        == 2
    )
    assert deny_list(["read"], log=True) != deny_list(["read"])
    assert Filter.from_dict(deny_list(["read"], log=True).to_dict()).flags == 2


@pytest.mark.parametrize(
    ("plain", "error", "complaint"),
    [
        (7, TypeError, "a filter's plain form is a mapping"),
        ({}, TypeError, "a filter needs its program in base64, not None"),
        ({"program": "!"}, ValueError, "program is no base64"),
        ({"program": ""}, ValueError, "not 0 bytes"),
        ({"program": "BgAAAAAA/38=", "flag": 2}, ValueError, "a filter has no 'flag'"),
        ({"program": "BgAAAAAA/38=", "flags": "2"}, TypeError, "flags must be an int"),
    ],
)
def test_wrong_plain_data(plain: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        Filter.from_dict(plain)


# ---- execve ---------------------------------------------------------------------------------------------------------


def raw(*instructions: tuple[int, int, int, int]) -> Filter:
    return from_bpf(_seccomp_bpf.encode(Instruction(*instruction) for instruction in instructions))


BRANCH = [(Op.LD_ABS, 0, 0, 16), (Op.JEQ, 0, 2, 7), (Op.LD_IMM, 0, 0, 2), (Op.JA, 0, 0, 1)]
JOIN = [(Op.JEQ, 0, 1, 1)]


@pytest.mark.parametrize(
    ("filter", "refuses"),
    [
        (allow_list(["read"]), True),
        (allow_list(["read"], "log"), False),
        (allow_list(["execve"]), False),
        (deny_list(["execve"]), True),
        (deny_list(["execve"], "trap"), True),
        (deny_list(["execve"], "log"), False),
        (deny_list(["execveat"]), False),
        (raw((Op.RET_K, 0, 0, _seccomp_bpf.TRACE)), None),
        (raw((Op.RET_K, 0, 0, _seccomp_bpf.USER_NOTIF)), True),
        (raw((Op.RET_K, 0, 0, 0x12340000)), True),
        (raw((Op.LD_ABS, 0, 0, 16), (Op.JEQ, 0, 1, 7), (6, 0, 0, 0), (6, 0, 0, _seccomp_bpf.ALLOW)), None),
        (raw((Op.LD_ABS, 0, 0, 16), (Op.JEQ, 0, 1, 7), (6, 0, 0, 0), (6, 0, 0, _seccomp_bpf.TRAP)), True),
        (raw((Op.LD_ABS, 0, 0, 16), (Op.RET_A, 0, 0, 0)), None),
        # Two ways meet, with different values of A.
        (raw(*BRANCH, (Op.LD_IMM, 0, 0, 1), *JOIN, (6, 0, 0, 0), (6, 0, 0, _seccomp_bpf.ALLOW)), None),
        (raw(*BRANCH, (Op.LD_IMM, 0, 0, 1), *JOIN, (6, 0, 0, _seccomp_bpf.ALLOW), (6, 0, 0, 0)), None),
        (raw(*BRANCH, (Op.LD_IMM, 0, 0, 2), *JOIN, (6, 0, 0, _seccomp_bpf.ALLOW), (6, 0, 0, 0)), True),
        (raw((Op.LD_ABS, 0, 0, 4), (Op.JEQ, 0, 1, I386), (6, 0, 0, _seccomp_bpf.ALLOW), (6, 0, 0, 0)), True),
    ],
)
async def test_a_filter_that_refuses_execve_is_told_before(filter: Filter, refuses: bool | None) -> None:
    assert will_refuse_execve(filter) is refuses
    session = Parked()
    if refuses:
        with pytest.raises(ValueError, match=r"^filter=<.*> refuses execve itself .*allow 'execve'$"):
            await install(session, filter)  # type: ignore[arg-type]
        assert session.steps == []
    else:
        await install(session, filter)  # type: ignore[arg-type]
        assert session.steps == [(("seccomp", filter.program, 0), filter.label)]


class Parked:
    """What a session gets to do."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    async def take_steps(self, steps: Any) -> None:
        self.steps += steps


@pytest.mark.parametrize("session", [None, 5, "x", Parked], ids=repr)
async def test_install_takes_sessions_only(session: Any) -> None:
    with pytest.raises(TypeError, match=f"session must be a linx.Session, not {re.escape(repr(session))}"):
        await install(session, from_bpf(ALLOW_ALL))


async def test_install_takes_filters_only() -> None:
    with pytest.raises(TypeError, match=r"filter must be a filter from linx.seccomp, not b'x'"):
        await install(Parked(), b"x")  # type: ignore[arg-type]


# ---- presets --------------------------------------------------------------------------------------------------------


def test_no_tty_injection() -> None:
    filter = no_tty_injection()
    for request in (TIOCSTI, TIOCLINUX):
        for high in (0, HIGH, HIGH << 31):
            assert verdict(filter, "ioctl", 0, request | high) == ("errno", "EPERM")
    assert verdict(filter, "ioctl", 0, TIOCGWINSZ) == "allow"
    assert {verdict(filter, nr) for nr in range(1000) if nr != number("ioctl")} == {"allow"}


def test_default_knows_every_syscall() -> None:
    """One that libseccomp knows and that is in no list was forgotten."""
    absent = _seccomp_profiles.words({"absent": """
        _sysctl afs_syscall clone3 create_module file_getattr file_setattr get_kernel_syms getpmsg listmount
        lsm_get_self_attr lsm_list_modules lsm_set_self_attr modify_ldt nfsservctl putpmsg query_module security
        statmount sysfs tuxcall uselib ustat vserver
    """})  # fmt: skip
    lists = [
        _seccomp_profiles.words(_seccomp_profiles.ALLOWED),
        _seccomp_profiles.words(_seccomp_profiles.REFUSED),
        absent,
    ]
    names = [name for words in lists for name in words]
    assert len(names) == len(set(names))
    assert set(_seccomp_compile._known()) <= set(names)
    assert [name for name in names if _seccomp_compile.number_of(name) is None] == []
    expected: list[Any] = ["allow", ("errno", "EPERM"), ("errno", "ENOSYS")]
    for words, answer in zip(lists, expected, strict=True):
        for name in words:
            if number(name) >= 0 and name not in {"ioctl", "clone", "socket", "socketpair", "personality"}:
                assert verdict(default(), name) == answer, name
    assert verdict(default(), 999) == ("errno", "ENOSYS")


@pytest.mark.parametrize("high", [0, HIGH, HIGH << 31])
def test_default_looks_at_arguments(high: int) -> None:
    filter, refused = default(), ("errno", "EPERM")
    for request in (TIOCSTI, TIOCLINUX):
        assert verdict(filter, "ioctl", 0, request | high) == refused
    assert verdict(filter, "ioctl", 0, TIOCGWINSZ | high) == "allow"
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(filter, "clone", flag | 17 | high) == refused
        assert verdict(filter, "clone", flag | 0x3D0F00 | high) == refused
    assert verdict(filter, "clone", 0x3D0F00 | high) == "allow"  # a thread
    for name in ("socket", "socketpair"):
        families = {family for family in range(100) if verdict(filter, name, family | high) == "allow"}
        assert families == {1, 2, 10, 16, 17}
        assert verdict(filter, name, 38 | high) == ("errno", "EAFNOSUPPORT")
    assert verdict(filter, "personality", 0xFFFFFFFF | high) == verdict(filter, "personality", 8 | high) == "allow"
    assert verdict(filter, "personality", 0x0040000 | high) == refused  # ADDR_NO_RANDOMIZE
    assert verdict(filter, "personality", 0x0400000 | high) == refused  # READ_IMPLIES_EXEC


def test_default_can_be_widened() -> None:
    wider = default(allow=["unshare", "clone3", "clone", "ioctl", "socket", "personality"])
    assert [verdict(wider, "unshare"), verdict(wider, "clone3")] == ["allow", "allow"]
    assert verdict(wider, "clone", 0x10000000) == verdict(wider, "ioctl", 0, TIOCSTI) == "allow"
    assert verdict(wider, "socket", 40) == verdict(wider, "personality", 0x0040000) == "allow"
    assert verdict(wider, "setns") == verdict(wider, "mount") == ("errno", "EPERM")
    assert verdict(wider, "socketpair", 40) == ("errno", "EAFNOSUPPORT")
    assert default(allow=[]) == default()


# ---- the kernel -----------------------------------------------------------------------------------------------------


def test_the_kernel_refuses_what_default_refuses() -> None:
    program = default().program
    cases = [
        ("unshare", [0], errno.EPERM),
        ("clone", [0x10000000 | 17], errno.EPERM),
        ("clone", [HIGH | 0x10000000 | 17], errno.EPERM),
        ("clone3", [0, 0], errno.ENOSYS),
        ("keyctl", [0, 0, 0, 0, 0], errno.EPERM),
        ("bpf", [0, 0, 0], errno.EPERM),
        ("io_uring_setup", [0, 0], errno.EPERM),
        ("mount", [0, 0, 0, 0, 0], errno.EPERM),
        ("ioctl", [0, TIOCSTI, 0], errno.EPERM),
        ("ioctl", [0, HIGH | TIOCSTI, 0], errno.EPERM),
        ("ioctl", [999, TIOCGWINSZ, 0], errno.EBADF),
        ("socket", [40, 1, 0], errno.EAFNOSUPPORT),
        ("personality", [0x0040000], errno.EPERM),
        ("personality", [0xFFFFFFFF], 0),
        ("getpgid", [0x7FFFFFFF], errno.ESRCH),
    ]
    results = asked([(program, number(name), arguments) for name, arguments, _ in cases])
    assert [result if isinstance(result, str) else min(result, 0) for result in results] == [
        -code for _, _, code in cases
    ]


def test_the_kernel_kills_and_pretends() -> None:
    names = ["getppid"]
    filters = [deny_list(names, action) for action in ("kill_process", "trap", ("errno", 77), ("errno", 0), "log")]
    results = asked([(filter.program, number("getppid"), []) for filter in filters])
    too_large = raw((Op.LD_ABS, 0, 0, 0), (Op.JEQ, 0, 1, 5000), (6, 0, 0, 0x50000 | 5000), (6, 0, 0, 0x7FFF0000))
    assert asked([(too_large.program, 5000, [])]) == [-4095]
    assert verdict(too_large, 5000) == ("errno", 4095)
    assert results[:4] == ["killed", "killed", -77, 0]
    assert isinstance(results[4], int)
    assert results[4] > 0


@pytest.mark.parametrize("high", [0, HIGH])
def test_the_kernel_lets_nothing_be_typed(high: int) -> None:
    (refused, asked_size) = asked(
        [(no_tty_injection().program, number("ioctl"), [999, high | request, 0]) for request in (TIOCSTI, TIOCGWINSZ)]
    )
    assert (refused, asked_size) == (-errno.EPERM, -errno.EBADF)


PROGRAMS = {
    "dash": ["/bin/sh", "-c", "(echo one; exec echo two) | cat; x=$(echo three); echo $x; kill -0 $$; wait"],
    "threads": [
        sys.executable, "-I", "-c",
        ("import threading, subprocess, socket, tempfile, os\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "subprocess.run(['/bin/echo', 'child'], check=True)\n"
        "socket.create_server(('127.0.0.1', 0)).close(); socket.socketpair()\n"
        "tempfile.TemporaryFile().write(b'x'); os.chmod('.', os.stat('.').st_mode)\n"
        "try: os.fork() or os._exit(0)\n"
        "finally: os.wait()\n"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("argv", PROGRAMS.values(), ids=list(PROGRAMS))
def test_programs_run_under_default(argv: list[str], tmp_path: Path) -> None:
    done = run(default(), argv, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] in ("one", "two", "thread", "child")


def test_a_program_is_refused_under_default(tmp_path: Path) -> None:
    done = run(default(), ["/usr/bin/unshare", "--user", "true"], cwd=tmp_path)
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr


# ---- without the library --------------------------------------------------------------------------------------------


def python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_library_is_looked_for_when_it_is_used() -> None:
    assert (
        python("import sys, linx_trio.seccomp; print('pyseccomp' in sys.modules, 'json' in sys.modules)")
        == "False False"
    )


@pytest.mark.parametrize("broken", ["sys.modules['pyseccomp'] = None", "ctypes.util.find_library = lambda name: None"])
def test_without_it_there_are_raw_programs_only(broken: str) -> None:
    program = f"""
import sys, ctypes.util, linx_trio
{broken}
import linx_trio.seccomp as seccomp
filter = seccomp.from_bpf({ALLOW_ALL!r})
print(seccomp.will_refuse_execve(filter), seccomp.verdict(filter, 7))
for make in (seccomp.default, seccomp.no_tty_injection, lambda: seccomp.deny_list(["read"]),
             lambda: seccomp.from_oci({{"defaultAction": "SCMP_ACT_ALLOW"}})):
    try:
        make()
    except linx_trio.NotSupported as exc:
        print(exc)
"""
    first, *rest = python(program).splitlines()
    assert first == "False allow"
    assert rest[0::2] == ["compiling seccomp filters is not supported here"] * 4
    assert all("pip install linx-trio[seccomp]" in hint and "libseccomp2" in hint for hint in rest[1::2])


def test_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program can be carried there; nothing is said about what it does."""
    filter = default()
    monkeypatch.setattr(_seccomp_filter, "MACHINES", {})
    _seccomp_compile.library.cache_clear()
    with pytest.raises(NotSupported, match="x86_64 or aarch64"):
        deny_list(["read"])
    assert will_refuse_execve(filter) is None
    assert verdict(filter, 1) is None
    assert _seccomp_filter.check_filter(filter, "seccomp") is filter
