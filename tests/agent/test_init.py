"""``init=True``: a process of ours is pid 1 of the fresh PID namespace, the workload an ordinary process in it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio import capabilities, mount
from tests.agent.containers import below
from tests.agent.probes import ROOT, needs_root, proc, status_of, working_in
from tests.agent.programs.phases import state_of, stop_now
from tests.agent.rights import Options, in_both_ways, rootless
from tests.agent.roots import programs
from tests.support import (
    DEADLINE,
    children_of,
    descendants_of,
    eventually,
    eventually_async,
    exists,
    monitor_of,
    name_of,
    stat_of,
    with_token,
)

Rights = Callable[..., Options]
SLEEP = ["sleep", "600"]
INIT = rootless("pid") | {"init": True}


def init_of(pid: int) -> int:
    """Its parent, which is pid 1 in there."""
    stat = stat_of(pid)
    assert stat is not None
    init = int(stat[1])
    eventually(lambda: name_of(init) == "linx-reaper", "it has come to naming itself")
    assert status_of(init)["NSpid"].split()[-1] == "1"
    return init


async def said(s: linx.Session, text: bytes) -> None:
    assert s.stdout is not None
    received = b""
    with trio.fail_after(DEADLINE):
        while text not in received:
            chunk = await s.stdout.receive_some()
            assert chunk, f"the end, and no {text!r} in {received!r}"
            received += chunk


def shell(script: str, **options: Any) -> Any:
    """A shell as the workload under an init, with pipes."""
    piped = {"stdin": linx.PIPE, "stdout": linx.PIPE, "auto_proceed": True}
    return linx.spawn(["sh", "-c", script], **INIT | piped | options)


# ---- who is who --------------------------------------------------------------------------------------------------


@in_both_ways
async def test_the_workload_is_pid_2(rights: Rights) -> None:
    async with linx.spawn(["sh", "-c", "echo $$; read x"], stdio=linx.PIPE, init=True, **rights("pid")) as s:
        assert s.child_pid == s.info().child_pid == 2
        assert s.containment == "pidns"
        init = init_of(s.host_pid)
        assert name_of(int((stat_of(init) or [])[1])) == "linx-monitor"
        assert children_of(init) == [s.host_pid]
        assert status_of(s.host_pid)["NSpid"].split() == [str(s.host_pid), "2"]
        await s.proceed()
        await said(s, b"2\n")
        assert init_of(s.host_pid) == init
    assert not exists(init)


@pytest.mark.parametrize("auto_proceed", [True, False])
async def test_pid_1_holds_nothing_of_the_workloads_and_is_not_dumpable(auto_proceed: bool) -> None:
    """Nobody inside can look into it, reach its fds, or keep a pipe of the workload open by it. Before it executes, a
    workload that parks has memory of its own, and any other has that of pid 1.
    """
    script = (
        "for f in environ maps fd/0 exe cwd root mem; do "
        '(cat /proc/1/$f || readlink /proc/1/$f) >/dev/null 2>&1 && echo "reached $f"; done; '
        "kill -KILL 1; kill -STOP 1; echo alive"
    )
    options = rootless("pid", "mount") | {"mounts": [linx.mount.Proc()], "init": True, "stdout": linx.PIPE}
    async with linx.spawn(["sh", "-c", script], auto_proceed=auto_proceed, **options) as s:
        if not auto_proceed:
            await s.proceed()
        assert s.stdout is not None
        with trio.fail_after(DEADLINE):
            output = b"".join([chunk async for chunk in s.stdout])
        assert output == b"alive\n"
        assert await s.wait() == linx.Exited(0)


# ---- its work ----------------------------------------------------------------------------------------------------


async def test_it_reaps_orphans() -> None:
    async with shell("for i in 1 2 3 4 5; do (setsid true &); done; echo up; read x") as s:
        await said(s, b"up\n")
        init = init_of(s.host_pid)
        await eventually_async(lambda: children_of(init) == [s.host_pid], "no orphan, dead or alive, is left with it")
        assert s.state == "running"


async def test_it_adopts_orphans() -> None:
    async with shell("(setsid sleep 600 &); echo up; read x") as s:
        await said(s, b"up\n")
        init = init_of(s.host_pid)
        await eventually_async(lambda: len(children_of(init)) == 2, "the daemon is a child of pid 1")


FORWARDED = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMIN, 64]


@pytest.mark.parametrize("number", FORWARDED, ids=int)
@pytest.mark.parametrize("inside", [True, False])
async def test_signals_to_pid_1_are_the_workloads(number: int, inside: bool) -> None:
    """The workload sends one to its pid 1, or somebody outside to pid 1's pid there: it is passed on."""
    script = f"trap 'exit 9' {int(number)}; echo up; "
    script += f"kill -{int(number)} 1; " if inside else ""
    async with shell(script + "while :; do sleep 600 & wait; done") as s:
        await said(s, b"up\n")
        if not inside:
            os.kill(init_of(s.host_pid), number)
        with trio.fail_after(DEADLINE):
            assert await s.wait() == linx.Exited(9)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=int)
async def test_what_the_workload_does_not_handle_kills_it(number: int) -> None:
    """It is no pid 1, so the default actions are its own."""
    async with linx.spawn(SLEEP, auto_proceed=True, **INIT) as s:
        s.signal(number)
        assert await s.wait() == linx.Signaled(number)
    async with linx.spawn(SLEEP, auto_proceed=True, **INIT) as s:
        os.kill(init_of(s.host_pid), number)
        assert await s.wait() == linx.Signaled(number)


async def test_the_end_of_a_grandchild_is_not_passed_on() -> None:
    async with shell("trap 'echo CHLD' CHLD; echo up; read x; read y; echo ended") as s:
        await said(s, b"up\n")
        assert s.stdin is not None
        os.kill(init_of(s.host_pid), signal.SIGCHLD)
        await s.stdin.send_all(b"1\n2\n")
        assert s.stdout is not None
        with trio.fail_after(DEADLINE):
            assert b"".join([chunk async for chunk in s.stdout]) == b"ended\n"


async def test_the_namespace_ends_with_the_workload(nothing_is_left: str) -> None:
    async with shell("(trap '' TERM HUP; setsid sh -c 'sleep 600 & sleep 600' &); echo up; read x; exit 3") as s:
        await said(s, b"up\n")
        assert s.stdin is not None
        init = init_of(s.host_pid)
        await eventually_async(lambda: len(children_of(init)) == 2, "the daemon is there")
        await s.stdin.send_all(b"\n")
        assert await s.wait() == linx.Exited(3)
        await eventually_async(lambda: not exists(init), "pid 1 has gone with it, and so has all that was in there")


# ---- the workload's own end --------------------------------------------------------------------------------------


@in_both_ways
@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("exit 0", linx.Exited(0)),
        ("exit 7", linx.Exited(7)),
        ("exit 255", linx.Exited(255)),
        ("kill -KILL $$", linx.Signaled(9)),
        ("ulimit -c 0; kill -SEGV $$", linx.Signaled(11)),
        ("exec sh -c 'kill -TERM $$'", linx.Signaled(15)),
    ],
)
async def test_its_own_status(rights: Rights, script: str, outcome: linx.Outcome) -> None:
    done = await linx.run(["sh", "-c", script], init=True, check=False, **rights("pid"))
    assert done.outcome == outcome


async def test_its_own_usage() -> None:
    """What it used is the workload's, which works for longer than the reaper does."""
    script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    done = await linx.run(["sh", "-c", script], **INIT)
    assert done.usage is not None
    assert done.usage.user_time > 0.01
    assert done.usage.wall_time >= (done.usage.user_time + done.usage.system_time) * 0.5
    assert 100_000 < done.usage.max_rss < 100_000_000


async def test_a_program_that_is_not_there() -> None:
    async with linx.spawn(["/nonexistent"], **INIT) as s:
        with pytest.raises(FileNotFoundError) as caught:
            await s.proceed()
        assert isinstance(caught.value, linx.SetupError)
        assert caught.value.stage == "execve"
    assert not s.ran
    with pytest.raises(FileNotFoundError):
        await linx.run(["/nonexistent"], **INIT)


async def test_a_refused_step() -> None:
    with pytest.raises(linx.SetupError) as caught:
        async with linx.spawn(SLEEP, cpu_affinity={8191}, **INIT):
            raise AssertionError("it was entered")
    assert caught.value.stage == "cpu_affinity"


# ---- its end in each phase ---------------------------------------------------------------------------------------


async def test_leaving_and_aborting_while_parked() -> None:
    async with linx.spawn(SLEEP, **INIT) as s:
        init = init_of(s.host_pid)
    assert s.outcome == linx.Aborted()
    assert not exists(init)
    async with linx.spawn(SLEEP, **INIT) as s:
        await s.abort()
        assert s.outcome == linx.Aborted()
        assert not exists(s.host_pid)
    assert [event async for event in s.events()] == [linx.Ready(s.host_pid), linx.Aborted()]


async def test_leaving_while_it_runs() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True, **INIT) as s:
        init = init_of(s.host_pid)
    assert s.outcome == linx.Signaled(9)
    assert not exists(init)


@pytest.mark.parametrize("verb", ["abort", "kill", "leave", "cancel"])
async def test_the_end_before_the_checkpoint(verb: str) -> None:
    with trio.CancelScope() as scope:
        async with linx.spawn(SLEEP, wait_ready=False, **INIT) as s:
            if verb == "abort":
                await s.abort()
            elif verb == "kill":
                s.kill()
                await s.wait()
            elif verb == "cancel":
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught == (verb == "cancel")
    assert s.outcome == linx.Aborted()


@pytest.mark.parametrize("parked", [True, False])
async def test_kill(parked: bool) -> None:
    async with linx.spawn(SLEEP, auto_proceed=not parked, **INIT) as s:
        init = init_of(s.host_pid)
        s.kill()
        assert await s.wait() == (linx.Aborted() if parked else linx.Signaled(9))
        await eventually_async(lambda: not exists(init), "pid 1 is gone too")


async def test_no_end_takes_the_monitors_patience() -> None:
    """It gives a reaper two seconds before it does without: one that has nothing left to do needs none of them."""
    started = time.monotonic()
    for number in range(10):
        async with linx.spawn(SLEEP, auto_proceed=number % 2 == 0, **INIT):
            pass
    assert time.monotonic() - started < 10


async def test_a_grace() -> None:
    script = "trap 'exit 5' TERM; echo up; while :; do sleep 600 & wait; done"
    async with shell(script, shutdown=linx.Kill(grace=DEADLINE)) as s:
        await said(s, b"up\n")
    assert s.outcome == linx.Exited(5)


async def test_a_grace_that_begins_before_the_monitor_knows_the_workload() -> None:
    with trio.fail_after(DEADLINE):
        async with linx.spawn(
            SLEEP, auto_proceed=True, wait_ready=False, shutdown=linx.Kill(10 * DEADLINE), **INIT
        ) as s:
            pass
    assert s.outcome in (linx.Signaled(signal.SIGTERM), linx.Aborted())  # the latter if it was not even begun


async def test_run_is_cancelled() -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            s = await nursery.start(lambda task_status: linx.run(SLEEP, task_status=task_status, **INIT))
            init = init_of(s.host_pid)
            scope.cancel()
    assert s.outcome == linx.Signaled(15)
    assert not exists(init)


@pytest.mark.parametrize("parked", [True, False])
async def test_pid_1_killed_from_outside(parked: bool) -> None:
    """The kernel kills all of the namespace with it: that is how the workload ends."""
    async with linx.spawn(SLEEP, auto_proceed=not parked, **INIT) as s:
        os.kill(init_of(s.host_pid), signal.SIGKILL)
        with trio.fail_after(DEADLINE):
            assert await s.wait() == linx.Signaled(9)
        assert s.ran != parked
        assert not exists(s.host_pid)


def kill_below(monitor: int) -> None:
    """Kills the pid 1 that it clones, and its workload with it, while the monitor is stopped."""
    eventually(lambda: children_of(monitor), "pid 1 is there")
    try:
        stop_now(monitor)
        (init,) = children_of(monitor)
        eventually(lambda: children_of(init), "the workload, too")
        os.kill(init, signal.SIGKILL)
        eventually(lambda: state_of(init) == "Z", "and it is dead")
    finally:
        os.kill(monitor, signal.SIGCONT)


async def test_pid_1_killed_from_outside_before_the_monitor_knows_the_workload() -> None:
    """Nobody has aborted it."""
    for _ in range(5):
        async with linx.spawn(SLEEP) as s:
            monitor = monitor_of(s.host_pid)
            await s.proceed()
        try:
            with trio.fail_after(DEADLINE):
                async with linx.spawn(SLEEP, auto_proceed=True, wait_ready=False, **INIT) as s:
                    kill_below(monitor)
                    told: Any = await s.wait()
        except linx.SetupError as exc:
            told = exc.stage, exc.errno
        assert told in (("clone", errno.ESRCH), linx.Signaled(signal.SIGKILL))  # it was not known yet, or it was


@pytest.mark.parametrize("parked", [True, False])
async def test_the_workload_killed_from_outside(parked: bool) -> None:
    async with linx.spawn(SLEEP, auto_proceed=not parked, **INIT) as s:
        os.kill(s.host_pid, signal.SIGKILL)
        with trio.fail_after(DEADLINE):
            assert await s.wait() == linx.Signaled(9)
        assert s.ran != parked


async def test_pid_1_stopped_from_outside() -> None:
    """Leaving goes on all the same."""
    started = time.monotonic()
    async with linx.spawn(SLEEP, auto_proceed=True, **INIT) as s:
        init = init_of(s.host_pid)
        os.kill(init, signal.SIGSTOP)
        await eventually_async(lambda: (stat_of(init) or "?")[0] == "T", "it has stopped")
    assert s.outcome == linx.Signaled(9)
    assert not exists(init)
    assert time.monotonic() - started < 30


# ---- with other options ------------------------------------------------------------------------------------------


async def test_on_a_terminal() -> None:
    """The terminal is the workload's: ^C reaches it, and it has a session of its own."""
    script = "trap 'exit 6' INT; tty; stty size; echo up; while :; do sleep 600 & wait; done"
    async with linx.spawn(["sh", "-c", script], stdio=linx.Pty(30, 90), auto_proceed=True, **INIT) as s:
        output = b""
        with trio.fail_after(DEADLINE):
            while b"up\r\n" not in output:
                output += await s.pty.receive_some()
            assert output.startswith(b"/dev/pts/")
            assert b"30 90\r\n" in output
            await s.pty.send_all(b"\x03")
            assert await s.wait() == linx.Exited(6)


async def test_without_a_session_of_its_own() -> None:
    async with linx.spawn(SLEEP, new_session=False, auto_proceed=True, **INIT) as s:
        assert os.getsid(s.host_pid) == os.getsid(0)
        assert os.getpgid(s.host_pid) == s.host_pid
        assert os.getpgid(init_of(s.host_pid)) != s.host_pid


@needs_root
async def test_a_workload_with_another_uid() -> None:
    async with linx.spawn(SLEEP, namespaces={"pid"}, init=True, uid=31337, gid=31337, auto_proceed=True) as s:
        assert status_of(s.host_pid)["Uid"].split() == ["31337"] * 4
        init = init_of(s.host_pid)
        assert status_of(init)["Uid"].split() == ["0"] * 4
    assert not exists(init)


VICTIM = """
import sys
import trio
import linx_trio as linx
from tests.agent.rights import rootless

async def main():
    options = rootless("pid") | {{"init": True, "orphan_policy": {policy}, "auto_proceed": True}}
    async with linx.spawn(["sh", "-c", {script!r}], **options) as s:
        print(s.host_pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize(
    ("policy", "lingers"), [("linx.LINGER", True), ("linx.Kill(0)", False), ("linx.Kill(0.01)", False)]
)
def test_python_is_killed(policy: str, lingers: bool, tmp_path: Path, nothing_is_left: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"trap '' TERM; (setsid sleep 600 &); read x <{fifo}; echo $? >{tmp_path}/status"
    source = VICTIM.format(policy=policy, script=script)
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=ROOT) as python:
        assert python.stdout is not None
        pid = int(python.stdout.readline())
        init = init_of(pid)
        eventually(lambda: len(children_of(init)) == 2, "the daemon is there")
        python.kill()
    if lingers:
        eventually(lambda: name_of(int(proc(pid, "stat").rsplit(")", 1)[1].split()[1])) == "linx-reaper", "it lives")
        with fifo.open("w") as line:  # waits for the reader: it is still there
            line.write("go\n")
        eventually(lambda: (tmp_path / "status").exists(), "it goes on by itself")
    eventually(lambda: not exists(pid) and not exists(init), "nobody of the namespace is left")
    assert (tmp_path / "status").exists() == lingers


# ---- its network namespace ---------------------------------------------------------------------------------------


MEANWHILE: dict[str, Any] = {"init": True, "mounts": [linx.mount.Tmpfs("/mnt")]}


@in_both_ways
@pytest.mark.parametrize("parked", [True, False])
async def test_it_makes_the_network_namespace_meanwhile(rights: Rights, parked: bool) -> None:
    async with linx.spawn(["sleep", "600"], **MEANWHILE, **rights("pid", "net", "mount"), auto_proceed=not parked) as s:
        own = os.readlink(f"/proc/{s.host_pid}/ns/net")
        if os.geteuid() == 0:  # nobody else may look into it
            assert own == os.readlink(f"/proc/{init_of(s.host_pid)}/ns/net")
        assert own != os.readlink("/proc/self/ns/net")
        if parked:
            async with linx.net.open(s) as net:
                assert [link.name for link in await net.links()] == ["lo"]
            await s.proceed()
        assert os.readlink(f"/proc/{s.host_pid}/ns/net") == own
        await eventually_async(lambda: name_of(s.host_pid) == "sleep", "it runs")
        files = f"/proc/{s.host_pid}/fd"
        await eventually_async(lambda: sorted(os.listdir(files)) == ["0", "1", "2"], "nothing of ours is open in it")


NO_MORE = """
import linx_trio as linx
try:
    linx.run_sync(["true"], namespaces=["pid", "net", "mount"], init=True, mounts=[linx.mount.Tmpfs("/mnt")])
except linx.SetupError as exc:
    print(exc.stage, exc.errno, exc.filename)
"""


async def test_it_may_not_make_one() -> None:
    done = await linx.run(
        [sys.executable, "-c", NO_MORE],
        user=linx.user.root_map(),
        sysctls={"user.max_net_namespaces": 0},
        env={**os.environ, "PYTHONPATH": str(Path(linx.__file__).parent.parent)},
        capture_stdout=True,
    )
    assert done.stdout.decode().split(maxsplit=2) == ["clone", str(errno.ENOSPC), "mount, net, pid\n"]


def name_of_parent(pid: int) -> str:
    """Nothing, if it is gone."""
    fields = stat_of(pid)
    return "" if fields is None else name_of(int(fields[1]))


@pytest.mark.parametrize("who", ["init", "workload", "monitor"])
async def test_somebody_is_killed_meanwhile(who: str, nothing_is_left: str) -> None:
    """At whatever moment: nobody waits for ever for what does not come."""
    for _ in range(15):
        before = set(below())

        async def kill_soon() -> None:
            while True:
                for pid in below() - before:  # noqa: B023
                    is_it = {
                        "init": name_of(pid) == "linx-reaper",
                        "workload": name_of(pid) == "linx-monitor" and name_of_parent(pid) == "linx-reaper",
                        "monitor": name_of(pid) == "linx-monitor" and name_of_parent(pid) == "linx-zygote",
                    }
                    if is_it[who]:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                        return
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_soon)
            with contextlib.suppress(linx.AgentDied, linx.SetupError, linx.NoProcess):
                async with linx.spawn(["sleep", "600"], **MEANWHILE, namespaces=["pid", "net", "mount"]) as s:
                    await s.wait()
            nursery.cancel_scope.cancel()
    assert with_token(nothing_is_left) == []


# ---- what can be had of it -------------------------------------------------------------------------------------------

LOOK = """
grep -E '^(CapInh|CapPrm|CapEff|CapAmb|NoNewPrivs|Seccomp):' /proc/1/status
readlink /proc/1/cwd
ls /proc/1/cwd
"""

CONFINED = """\
CapInh:\t0000000000000000
CapPrm:\t0000000000000020
CapEff:\t0000000000000020
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
/
"""


@needs_root
@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("kinds", [{"pid", "mount"}, {"pid", "mount", "net"}])
async def test_nothing_is_to_be_had_of_pid_1(parked: bool, kinds: set[str], tmp_path: Path) -> None:
    """Where there is no user namespace to forbid it, a workload with CAP_SYS_PTRACE can make it do what it wants: pid 1
    may kill, of whom there are none but those inside, and is no way to where its caller was.
    """
    (tmp_path / "of the host").touch()
    entries = [*programs(), mount.Proc()]
    script = ["/bin/sh", "-c", LOOK]
    with working_in(tmp_path):
        async with linx.spawn(
            script,
            namespaces=kinds,
            init=True,
            capabilities=capabilities.keep({"sys_ptrace"}),
            root=mount.Tmpfs("/"),
            mounts=entries,
            stdout=linx.PIPE,
            auto_proceed=not parked,
        ) as s:
            if parked:
                assert status_of(init_of(s.host_pid))["Seccomp"] == "2", "before anybody is inside"
                await s.proceed()
            assert s.stdout is not None
            shown = b"".join([chunk async for chunk in s.stdout])
    assert shown.decode().startswith(CONFINED)
    assert "of the host" not in shown.decode()


@needs_root
async def test_a_confined_pid_1_passes_signals_on_to_somebody_else_and_ends_who_does_not_go() -> None:
    script = "trap 'echo hello' USR1; echo ready; while :; do sleep 600 & wait $!; done"
    async with linx.spawn(
        ["/bin/sh", "-c", script], namespaces={"pid"}, init=True, uid=65534, stdout=linx.PIPE, auto_proceed=True
    ) as s:
        await said(s, b"ready\n")
        os.kill(init_of(s.host_pid), signal.SIGUSR1)
        await said(s, b"hello\n")
        everybody = descendants_of(init_of(s.host_pid))
    assert not any(map(exists, everybody))
