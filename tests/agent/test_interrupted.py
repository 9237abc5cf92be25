"""^C while a session is being left, and verbs that are said before there is anything to say them to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

import linx_trio as linx
from tests.agent.programs.phases import lone_zygote
from tests.support import monitor_of

ROOT = Path(__file__).parents[2]

# The workload sends ^C itself, when it is asked to end: then Python is waiting for it.
LEAVING = """
import os, trio, linx_trio as linx

async def main():
    script = 'trap "kill -INT %d" TERM; echo up; while :; do sleep 0.01; done' % os.getpid()
    argv = ["/bin/sh", "-c", script]
    try:
        async with linx.spawn(argv, stdout=linx.PIPE, shutdown=linx.Kill(grace=1.0), auto_proceed=True) as s:
            await s.stdout.receive_some()
    except KeyboardInterrupt:
        print("interrupted", s.outcome, int(s._pidfd), s.stdout.fileno(), os.path.exists(f"/proc/{s.host_pid}"))

trio.run(main)
"""

CAPTURING = """
import os, linx_trio as linx

try:
    linx.run_sync(["/bin/sh", "-c", "kill -INT %d; exec sleep 3600" % os.getpid()], capture_stdout=True)
except KeyboardInterrupt:
    print("bare")
"""


# In the middle of hearing of the end, whoever it is that hears it.
HEARING = """
import signal, time, trio, linx_trio as linx
from linx_trio._proto import messages as m
from linx_trio._session import Session

apply = Session._apply

def interrupted(self, message, fd):
    if isinstance(message, m.Over):
        signal.raise_signal(signal.SIGINT)
    apply(self, message, fd)

Session._apply = interrupted

async def main():
    interrupted = False
    async with linx.spawn(["cat"], stdin=linx.PIPE, auto_proceed=True) as s:
        with trio.fail_after(15):
            await s.stdin.aclose()  # so it ends, and not before
            while not (interrupted and s.outcome):
                try:
                    {ask}
                    await trio.sleep(0.01)
                except KeyboardInterrupt:
                    interrupted = True
        print(s.outcome)
        left = trio.current_time()
    print("left" if trio.current_time() - left < 10 else "left late")

trio.run(main)
"""
WAITING = "await s.wait()"
LOOKING = "time.sleep(0.2); s.state"


def output_of(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=100
    )
    return done.stdout.strip()


def test_control_c_does_not_cut_a_clean_up_short() -> None:
    assert output_of(LEAVING) == "interrupted Signaled(signum=9, core_dumped=False) -1 -1 False"


def test_control_c_comes_out_bare() -> None:
    assert output_of(CAPTURING) == "bare"


@pytest.mark.parametrize("ask", [WAITING, LOOKING])
def test_control_c_loses_nothing_that_is_just_heard(ask: str) -> None:
    assert output_of(HEARING.replace("{ask}", ask)) == "Exited(code=0)\nleft"


@pytest.mark.parametrize("verb", ["abort", "kill"])
async def test_a_verb_before_there_is_anything(verb: str, tmp_path: Path) -> None:
    """The zygote stands still, so the verb lies behind the request when the monitor first looks."""
    zygote = lone_zygote()
    os.kill(zygote, signal.SIGSTOP)
    try:
        ran = tmp_path / "ran"
        async with linx.spawn(["touch", ran], wait_ready=False, auto_proceed=True) as s:
            async with trio.open_nursery() as nursery:
                if verb == "abort":
                    nursery.start_soon(s.abort)
                else:
                    s.kill()
                await trio.testing.wait_all_tasks_blocked()
                os.kill(zygote, signal.SIGCONT)
            assert await s.wait() == linx.Aborted()
        assert not ran.exists()
    finally:
        os.kill(zygote, signal.SIGCONT)


async def test_an_absolute_cwd_needs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that still exists, or that may be entered."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = await linx.run(["/bin/pwd"], cwd="/", capture_stdout=True)
    assert done.stdout == b"/\n"


async def test_wall_time_is_not_below_the_cpu_time_of_one_process() -> None:
    """Also of a workload that had ended before anybody looked."""
    for _ in range(20):
        usage = (await linx.run(["/bin/true"])).usage
        assert usage is not None
        assert usage.wall_time > 0
        assert usage.wall_time >= usage.user_time + usage.system_time - 0.005  # as coarse as the kernel's own ticks


def score(pid: int) -> Path:
    return Path(f"/proc/{pid}/oom_score_adj")


async def test_what_is_worked_on_while_parked_is_the_childs_alone() -> None:
    async with linx.spawn(["/bin/true"]) as s:
        monitors = score(monitor_of(s.host_pid))
        before = monitors.read_text()
        score(s.host_pid).write_text("777")
        assert monitors.read_text() == before


@pytest.mark.parametrize("own", [{"stdout": linx.DEVNULL}, {"stderr": linx.DEVNULL}])
async def test_a_workloads_own_stream_is_not_overridden(own: dict[str, linx.Workload]) -> None:
    workload = linx.Workload(["true"], **own)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contradict"):
        await linx.run(workload, capture_stdout="stdout" in own, capture_stderr="stderr" in own)
