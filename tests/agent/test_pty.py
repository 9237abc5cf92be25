"""A workload on a terminal: what it is given, what its keys do, its size, its end, and what hinders nobody."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio.tty import WindowSize
from tests.agent.probes import ROOT, flags_of, has_only, replaced_fd
from tests.agent.terminals import (
    EOF,
    INTR,
    PROMPT,
    SUSP,
    echo_off,
    foreground_job,
    foreground_of,
    make_raw,
    on_terminal,
    read_to_end,
    read_until,
    shell,
    slave_of,
)
from tests.support import DEADLINE, children_of, eventually, eventually_async, exists, stat_of, with_token

SLEEP = ["sleep", "600"]
MEGABYTES = 8 << 20


# ---- what the workload is given --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdio", [linx.PTY, linx.Pty(), linx.Pty(30, 100)], ids=repr)
async def test_all_three_streams_are_the_terminal_and_nothing_else_is_open(stdio: Any) -> None:
    """Also not the masters: neither its own nor a neighbour's."""
    async with on_terminal(SLEEP, stdio=stdio) as s, on_terminal(SLEEP) as other:
        for session in (s, other):
            status = os.stat(slave_of(session))
            await has_only(session, dict.fromkeys(range(3), (status.st_dev, status.st_ino)))
            assert not flags_of(session.host_pid, 0) & os.O_NONBLOCK
            assert not os.get_inheritable(session.pty.fileno())
        assert slave_of(s) != slave_of(other)
        assert [s.stdin, s.stdout, s.stderr, s.stdio] == [None] * 4
        assert s.info().pty
        assert isinstance(s.pty, linx.PtyStream)
        assert isinstance(s.pty, trio.abc.Stream)


async def test_it_leads_a_session_whose_terminal_it_is() -> None:
    """From the checkpoint on."""
    async with linx.spawn(SLEEP, stdio=linx.PTY) as s:
        for _ in range(2):
            fields = stat_of(s.host_pid)
            assert fields is not None
            _state, _parent, group, session, terminal, foreground = fields[:6]
            assert int(group) == int(session) == int(foreground) == s.host_pid
            assert int(terminal) == os.stat(slave_of(s)).st_rdev
            await s.proceed()


async def test_it_can_be_opened_by_its_names() -> None:
    script = 'test -t 0 && test -t 1 && test -t 2 && echo one >/dev/tty && echo two >"$(tty)"'
    async with on_terminal(script) as s:
        assert await s.wait() == linx.Exited(0)
        assert await read_to_end(s.pty) == b"one\r\ntwo\r\n"


async def test_without_a_terminal() -> None:
    async with linx.spawn(["cat"], stdio=linx.PIPE) as s:
        with pytest.raises(linx.NoPty) as refused:
            _ = s.pty
        assert (refused.value.verb, refused.value.state) == ("pty", "ready")
        assert not s.info().pty


async def test_with_ones_own_streams_closed() -> None:
    """Then master and slave get such numbers, and must not be taken for the streams."""
    with replaced_fd(0, None), replaced_fd(1, None), replaced_fd(2, None):
        async with on_terminal("read x; echo got $x") as s:
            assert s.pty.fileno() > 2
            await s.pty.send_all(b"it\n")
            seen = await read_to_end(s.pty)
    assert seen == b"it\r\ngot it\r\n"


@pytest.mark.parametrize("left", [0, 1])
async def test_there_is_no_fd_left_for_a_terminal(left: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + left, hard))
    try:
        with pytest.raises(linx.SetupError) as refused:
            async with linx.spawn(["true"], stdio=linx.PTY):
                pytest.fail("nothing is started")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    error = refused.value
    assert (error.errno, error.stage, error.filename) == (errno.EMFILE, "stdio", "/dev/ptmx")


# ---- keys ------------------------------------------------------------------------------------------------------------


async def test_control_c_reaches_the_foreground_group_only() -> None:
    async with shell() as s:
        await s.pty.send_all(b"sleep 601 & sleep 602\n")
        job = await foreground_job(s.host_pid, "sleep")
        (background,) = set(children_of(s.host_pid)) - {job}
        await s.pty.send_all(INTR)
        await read_until(s.pty, PROMPT)
        await s.pty.send_all(b"echo status $?\n")
        await read_until(s.pty, b"status 130\r\n" + PROMPT)
        assert exists(background)
        assert not exists(job)
        assert foreground_of(s.host_pid) == s.host_pid
        assert s.state == "running"


async def test_job_control() -> None:
    async with shell() as s:
        await s.pty.send_all(b"set -m; sleep 100 & fg\n")
        job = await foreground_job(s.host_pid, "sleep")
        await s.pty.send_all(SUSP)
        await read_until(s.pty, PROMPT)
        fields = stat_of(job)
        assert fields is not None
        assert fields[0] == "T"
        assert foreground_of(s.host_pid) == s.host_pid
        await s.pty.send_all(b"fg\n")
        assert await foreground_job(s.host_pid, "sleep") == job
        await s.pty.send_all(INTR)
        await read_until(s.pty, PROMPT)
        assert not exists(job)
        await s.pty.send_eof()
        assert await s.wait() == linx.Exited(130)


async def test_control_c_ends_a_workload_without_a_shell() -> None:
    async with on_terminal(["cat"]) as s:
        await s.pty.send_all(INTR)
        assert await s.wait() == linx.Signaled(signal.SIGINT)


async def test_the_end_of_file_character_ends_a_reader_of_lines() -> None:
    async with linx.spawn(["cat"], stdio=linx.PTY) as s:
        echo_off(s.pty)
        await s.proceed()
        await s.pty.send_all(b"a line\nand half a one")
        await s.pty.send_eof()  # in mid-line it only hands over what there is
        await read_until(s.pty, b"a line\r\nand half a one")
        await s.pty.send_eof()
        assert await s.wait() == linx.Exited(0)
        assert await s.pty.receive_some() == b""


async def test_in_raw_mode_the_end_of_file_character_is_a_byte() -> None:
    async with linx.spawn(["head", "-c", "1"], stdio=linx.PTY) as s:
        make_raw(s.pty)
        await s.proceed()
        await s.pty.send_eof()
        assert await read_to_end(s.pty) == EOF


# ---- the size --------------------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[tuple[Any, ...], WindowSize]] = {
    "two": ((41, 132), WindowSize(41, 132)),
    "four": ((41, 132, 5, 6), WindowSize(41, 132, 5, 6)),
    "tuple": (((41, 132, 0, 0),), WindowSize(41, 132)),
    "pair": (((41, 132),), WindowSize(41, 132)),
    "WindowSize": ((WindowSize(41, 132, 7, 8),), WindowSize(41, 132, 7, 8)),
    "mapping": (({"rows": 41, "cols": 132, "xpixel": 1, "ypixel": 2},), WindowSize(41, 132, 1, 2)),
    "small mapping": (({"cols": 132, "rows": 41},), WindowSize(41, 132)),
    "least": ((0, 0), WindowSize(0, 0)),
    "most": ((65535, 65535, 65535, 65535), WindowSize(65535, 65535, 65535, 65535)),
}


@pytest.mark.parametrize("form", FORMS)
async def test_the_size_before_proceed_is_what_it_starts_with(form: str) -> None:
    arguments, size = FORMS[form]
    async with linx.spawn(["stty", "size"], stdio=linx.PTY) as s:
        s.pty.set_winsize(*arguments)
        assert s.pty.winsize == size
        await s.proceed()
        assert await read_to_end(s.pty) == b"%d %d\r\n" % (size.rows, size.cols)


@pytest.mark.parametrize(("stdio", "size"), [(linx.PTY, b"24 80"), (linx.Pty(50, 7), b"50 7"), (linx.Pty(0), b"0 80")])
async def test_the_size_that_was_asked_for(stdio: Any, size: bytes) -> None:
    async with on_terminal(["stty", "size"], stdio=stdio) as s:
        assert await read_to_end(s.pty) == size + b"\r\n"


WRONG_SIZES: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((65536, 80), {}, ValueError, "rows.*65536"),
    ((24, 65536), {}, ValueError, "cols.*65536"),
    ((24, 80, 65536), {}, ValueError, "xpixel.*65536"),
    ((24, 80), {"ypixel": 1 << 70}, ValueError, "ypixel"),
    ((-1, 80), {}, ValueError, "rows.*-1"),
    ((24.0, 80), {}, TypeError, "rows.*24.0"),
    ((24, "80"), {}, TypeError, "cols.*'80'"),
    ((True, 80), {}, TypeError, "rows.*True"),
    ((24,), {}, TypeError, "24"),
    ((None,), {}, TypeError, "None"),
    ((None, 80), {}, TypeError, "rows.*None"),
    (([24, 80],), {}, TypeError, r"\[24, 80\]"),
    (("24x80",), {}, TypeError, "24x80"),
    (((24, 80, 0, 0, 0),), {}, TypeError, "rows and cols"),
    (((24,),), {}, TypeError, "cols"),
    (({"rows": 24},), {}, TypeError, "cols"),
    (({"rows": 24, "cols": 80, "depth": 1},), {}, TypeError, "depth"),
    (({"rows": 24, "cols": 65536},), {}, ValueError, "cols.*65536"),
    ((), {}, TypeError, "rows"),
]


@pytest.mark.parametrize(("arguments", "more", "error", "mentions"), WRONG_SIZES, ids=repr)
async def test_a_wrong_size(arguments: Any, more: Any, error: type[Exception], mentions: str) -> None:
    async with linx.spawn(SLEEP, stdio=linx.Pty(7, 8)) as s:
        with pytest.raises(error, match=mentions):
            s.pty.set_winsize(*arguments, **more)
        assert s.pty.winsize == WindowSize(7, 8), "and nothing has changed"


async def test_another_size_raises_sigwinch() -> None:
    script = "trap 'stty size' WINCH; echo up; while :; do sleep 600 & wait; done"
    async with on_terminal(script) as s:
        await read_until(s.pty, b"up\r\n")
        for rows in (30, 31):
            s.pty.set_winsize(rows, 100)
            await read_until(s.pty, b"%d 100\r\n" % rows)
            assert s.pty.winsize == WindowSize(rows, 100)


async def test_the_workload_can_set_the_size_too() -> None:
    async with on_terminal("stty rows 5 cols 6; echo done") as s:
        await read_until(s.pty, b"done")
        assert s.pty.winsize == WindowSize(5, 6)


async def test_resizing_after_the_end_is_harmless() -> None:
    async with on_terminal(["true"]) as s:
        await s.wait()
        s.pty.set_winsize(1, 2)
        assert await s.pty.receive_some() == b""
        s.pty.set_winsize(3, 4)
        assert s.pty.winsize == WindowSize(3, 4)
    assert s.pty.winsize == WindowSize(3, 4)
    s.pty.set_winsize((5, 6))
    assert s.pty.winsize == WindowSize(5, 6)
    with pytest.raises(ValueError, match="rows"):
        s.pty.set_winsize(65536, 1)


# ---- no byte is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [False, True])
async def test_megabytes_both_ways(slow: bool) -> None:
    """A slow reader begins when all is full, and takes little at a time."""
    data = os.urandom(MEGABYTES // 8 if slow else MEGABYTES)
    seen, left = hashlib.sha256(), len(data)
    async with linx.spawn(["cat"], stdio=linx.PTY) as s:
        make_raw(s.pty)
        await s.proceed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.pty.send_all, data)
            if slow:
                await trio.testing.wait_all_tasks_blocked(0.1)
            while left:
                chunk = await s.pty.receive_some(700 if slow else None)
                seen.update(chunk)
                left -= len(chunk)
    assert seen.digest() == hashlib.sha256(data).digest()


async def test_what_is_sent_before_proceed_is_there() -> None:
    async with linx.spawn(["head", "-n", "1"], stdio=linx.PTY) as s:
        await s.pty.send_all(b"typed ahead\n")
        await s.proceed()
        assert await read_to_end(s.pty) == b"typed ahead\r\n" * 2  # the echo, and head's


async def test_what_was_written_before_the_end_is_never_lost() -> None:
    for number in range(100):
        async with on_terminal(["echo", f"{number}"]) as s:
            await s.wait()
            assert await read_to_end(s.pty) == b"%d\r\n" % number
        async with on_terminal(["seq", "2000"]) as s:
            expected = b"".join(b"%d\r\n" % line for line in range(1, 2001))
            assert await read_to_end(s.pty) == expected


async def test_the_end_of_the_file_is_when_nobody_has_it_open(tmp_path: Path) -> None:
    """The workload's end is not yet it, nor that of its session; it may have left something behind."""
    os.mkfifo(tmp_path / "go")
    async with on_terminal(f"trap '' HUP; (read x <{tmp_path}/go; echo late) & echo first") as s:
        assert await s.wait() == linx.Exited(0)
        assert await s.pty.receive_some() == b"first\r\n"
        await trio.to_thread.run_sync((tmp_path / "go").write_text, "\n")
        assert await read_to_end(s.pty) == b"late\r\n"


async def test_a_line_is_cut_at_4095_bytes_by_the_kernel() -> None:
    async with linx.spawn(["head", "-n", "1"], stdio=linx.PTY) as s:
        await s.pty.send_all(b"x" * 5000 + b"\n")
        await s.proceed()
        _echo, line, end = (await read_to_end(s.pty)).split(b"\r\n")
        assert (line, end) == (b"x" * 4095, b"")


# ---- hanging up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["parked", "running"])
async def test_closing_it_hangs_the_workload_up(phase: str) -> None:
    async with linx.spawn(SLEEP, stdio=linx.PTY) as s:
        if phase == "running":
            await s.proceed()
        await s.pty.aclose()
        assert await s.wait() == linx.Signaled(signal.SIGHUP)
        assert s.ran == (phase == "running")


async def test_it_is_closed_with_the_block() -> None:
    async with on_terminal(["cat"]) as s:
        await s.pty.send_all(b"x\n")
    for refused in (s.pty.receive_some, s.pty.send_eof, lambda: s.pty.send_all(b"x")):
        with pytest.raises(trio.ClosedResourceError):
            await refused()


async def test_sending_after_the_end() -> None:
    async with on_terminal(["true"]) as s:
        await s.wait()
        with pytest.raises(trio.BrokenResourceError):
            await s.pty.send_all(bytes(MEGABYTES))


KILLED = """
import json, os, signal, sys, trio
import linx_trio as linx
from tests.agent.terminals import on_terminal, read_until
from tests.support import descendants_of
async def main():
    policy = linx.LINGER if sys.argv[1] == "linger" else linx.Kill()
    async with on_terminal(sys.argv[2], orphan_policy=policy) as s:
        await read_until(s.pty, b"up")
        print(json.dumps(descendants_of(os.getpid())), flush=True)
        signal.pause()
trio.run(main)
"""


@pytest.mark.parametrize("policy", ["linger", "kill"])
def test_python_is_killed(policy: str, tmp_path: Path, nothing_is_left: str) -> None:
    """The kernel hangs the terminal up, whatever the agent does then."""
    note = tmp_path / "note"
    script = f"trap 'echo hung up >{note}; exit' HUP; sleep 600 & echo up; wait; wait"
    argv = [sys.executable, "-c", KILLED, policy, script]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env, cwd=ROOT, start_new_session=True) as python:
        try:
            assert python.stdout is not None
            pids = json.loads(python.stdout.readline())
            assert len(pids) >= 4  # zygote, monitor, shell, sleep
        finally:
            python.kill()
    eventually(lambda: not with_token(nothing_is_left), "no process with the token is left")
    eventually(lambda: all((stat_of(pid) or "Z")[0] == "Z" for pid in pids), "the agent has gone too")
    if policy == "linger":
        assert note.read_text() == "hung up\n"


# ---- nobody is delayed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [False, True])
async def test_a_flood_delays_nothing(reader: bool) -> None:
    async with on_terminal(["yes"]) as s, trio.open_nursery() as nursery:

        async def read_on() -> None:
            while await s.pty.receive_some():
                pass

        await read_until(s.pty, b"y\r\n" * 1000)
        if reader:
            nursery.start_soon(read_on)
        with trio.fail_after(DEADLINE):
            done = await linx.run(["echo", "other"], capture_stdout=True)
            assert done.stdout == b"other\n"
            s.signal(signal.SIGSTOP)
            await eventually_async(lambda: (stat_of(s.host_pid) or "?")[0] == "T", "it is stopped")
            s.signal(signal.SIGCONT)
            s.terminate()
            assert await s.wait() == linx.Signaled(15)


def waits_for_room(pid: int) -> bool:
    """Whether it sleeps: ``yes`` has nothing else to wait for."""
    return (stat_of(pid) or "?")[0] == "S"


async def test_control_c_in_a_flood_that_nobody_reads() -> None:
    async with on_terminal(["yes"]) as s:
        await read_until(s.pty, b"y\r\n")
        await eventually_async(lambda: waits_for_room(s.host_pid), "there is no room left")
        await s.pty.send_all(INTR)
        assert await s.wait() == linx.Signaled(signal.SIGINT)


async def test_a_workload_that_does_not_read_holds_the_sender_up_only() -> None:
    async with linx.spawn(SLEEP, stdio=linx.PTY) as s, trio.open_nursery() as nursery:
        make_raw(s.pty)
        await s.proceed()

        async def sender() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await s.pty.send_all(bytes(MEGABYTES))

        nursery.start_soon(sender)
        await trio.testing.wait_all_tasks_blocked(0.1)
        s.terminate()
        assert await s.wait() == linx.Signaled(15)


async def test_fifty_at_once() -> None:
    names = set()

    async def one(number: int) -> None:
        async with linx.spawn(["cat"], stdio=linx.Pty(number, 80)) as s:
            names.add(slave_of(s))
            make_raw(s.pty)
            await s.proceed()
            await s.pty.send_all(b"%d|" % number)
            assert await read_until(s.pty, b"|") == b"%d|" % number
            assert s.pty.winsize.rows == number
            await trio.testing.wait_all_tasks_blocked(0.05)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    assert len(names) > 1


# ---- with the other options ------------------------------------------------------------------------------------------

KINDS = [member.value for member in linx.Namespace]
SETS: list[set[str]] = [
    set(),
    {"user"},
    *({"user", kind} for kind in KINDS if kind != "user"),
    {"user", "mount", "pid"},
    set(KINDS),
]
if os.geteuid() == 0:
    SETS += [*({kind} for kind in KINDS if kind != "user"), {"mount", "pid"}, set(KINDS) - {"user"}]


@pytest.mark.parametrize("namespaces", SETS, ids=lambda kinds: "+".join(sorted(kinds)) or "none")
async def test_in_fresh_namespaces(namespaces: set[str]) -> None:
    async with on_terminal("echo >/dev/tty up; read x; stty size", namespaces=namespaces) as s:
        assert await read_until(s.pty, b"up\r\n") == b"up\r\n"
        s.pty.set_winsize(9, 10)
        await s.pty.send_all(b"\n")
        assert await read_to_end(s.pty) == b"\r\n9 10\r\n"
        assert await s.wait() == linx.Exited(0)


async def test_not_waiting_for_it_to_be_ready() -> None:
    async with linx.spawn(["cat"], stdio=linx.PTY, wait_ready=False) as s:
        s.pty.set_winsize(5, 5)
        await s.pty.send_all(b"early\n")
        await s.proceed()
        await read_until(s.pty, b"early\r\nearly\r\n")


async def test_what_cannot_be_started() -> None:
    for auto_proceed in (False, True):
        with pytest.raises(FileNotFoundError):
            async with linx.spawn(["/nonexistent"], stdio=linx.PTY, auto_proceed=auto_proceed) as s:
                await s.proceed()


async def test_run_needs_somebody_at_the_terminal() -> None:
    workload = linx.Workload(["true"], stdio=linx.PTY)
    with pytest.raises(ValueError, match=r"stdio=Pty\(.*nursery\.start"):
        await linx.run(["true"], stdio=linx.PTY)
    with pytest.raises(ValueError, match=r"nursery\.start"):
        await linx.run(workload)
    with pytest.raises(ValueError, match=r"nursery\.start"):
        await trio.to_thread.run_sync(lambda: linx.run_sync(["true"], stdio=linx.PTY))
    with pytest.raises(ValueError, match="stdio"):
        await linx.run(["true"], stdio=linx.PTY, capture_stdout=True)
    with pytest.raises(ValueError, match="stdio"):
        await linx.run(["true"], stdio=linx.PTY, stdin=b"x")
    with pytest.raises(ValueError, match="stdio"):
        await linx.run(workload, stdin=b"x")


@pytest.mark.parametrize("as_workload", [False, True])
async def test_run_with_somebody_at_the_terminal(as_workload: bool) -> None:
    argv: Any = ["sh", "-c", "read x; echo got $x; read y; exit 3"]
    options: dict[str, Any] = {"stdio": linx.PTY}
    if as_workload:
        argv, options = linx.Workload(argv, **options), {}
    async with trio.open_nursery() as nursery:
        s: linx.Session = await nursery.start(
            lambda task_status: linx.run(argv, check=False, task_status=task_status, **options)
        )
        await s.pty.send_all(b"it\n")
        await read_until(s.pty, b"got it\r\n")
        await s.pty.send_all(b"\n")
    assert s.outcome == linx.Exited(3)
