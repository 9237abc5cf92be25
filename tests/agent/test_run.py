"""`run` and `run_sync`: a workload from beginning to end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio import _agent
from tests.agent.probes import opened
from tests.support import DEADLINE, descendants_of, eventually, eventually_async, exists, name_of, stat_of

LARGE = 10 << 20


# ---- input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_stdin_bytes(kind: type) -> None:
    data = os.urandom(LARGE)
    done = await linx.run(["cat"], stdin=kind(data), capture_stdout=True)
    assert done.stdout == data


async def test_stdin_is_empty_by_default() -> None:
    assert (await linx.run(["cat"], capture_stdout=True)).stdout == b""
    assert (await linx.run(["cat"], stdin=b"", capture_stdout=True)).stdout == b""


@pytest.mark.parametrize("argv", [["true"], ["head", "-c", "1"], ["sh", "-c", "exec <&-; echo x"]])
async def test_stdin_that_is_not_read(argv: list[str]) -> None:
    done = await linx.run(argv, stdin=bytes(LARGE), capture_stdout=True)
    assert done.returncode == 0


async def test_stdin_that_nobody_reads_does_not_delay() -> None:
    """A child that has inherited the pipe, and does not read it either."""
    await linx.run(["sh", "-c", "exec 3<&0; setsid sleep 600 & true"], stdin=bytes(LARGE))


async def test_stdin_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from a file")
    with (tmp_path / "in").open() as file:
        assert (await linx.run(["cat"], stdin=file, capture_stdout=True)).stdout == b"from a file"
    assert (await linx.run(["cat"], stdin=linx.DEVNULL, capture_stdout=True)).stdout == b""
    with pytest.raises(ValueError, match="stdin=PIPE"):
        await linx.run(["cat"], stdin=linx.PIPE)
    for wrong in ("text", 1.5, None):
        with pytest.raises(TypeError, match="stdin"):
            await linx.run(["cat"], stdin=wrong)  # type: ignore[arg-type]


# ---- output ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("err", [False, True])
async def test_captures(out: bool, err: bool) -> None:
    done = await linx.run(["sh", "-c", "echo out; echo err >&2"], capture_stdout=out, capture_stderr=err)
    assert done.stdout == (b"out\n" if out else None)
    assert done.stderr == (b"err\n" if err else None)


async def test_stderr_joins_stdout() -> None:
    script = ["sh", "-c", "echo out; echo err >&2"]
    done = await linx.run(script, capture_stdout=True, stderr=linx.STDOUT)
    assert done.stdout == b"out\nerr\n"
    assert done.stderr is None


@pytest.mark.parametrize("name", ["stdout", "stderr"])
async def test_contradictions(name: str) -> None:
    options: Any = {f"capture_{name}": True, name: linx.DEVNULL}
    with pytest.raises(ValueError, match=f"capture_{name}"):
        await linx.run(["true"], **options)
    pipe: Any = {name: linx.PIPE}
    with pytest.raises(ValueError, match=f"{name}=PIPE"):
        await linx.run(["true"], **pipe)


LIMITS = [(None, LARGE, False), (0, 5, True), (0, 0, False), (5, 5, False), (4, 5, True), (70000, LARGE, True)]


@pytest.mark.parametrize(("limit", "size", "truncated"), LIMITS)
async def test_max_output(limit: int | None, size: int, truncated: bool) -> None:
    script = f"head -c {size} /dev/zero; head -c {min(size, 3)} /dev/zero >&2"
    done = await linx.run(["sh", "-c", script], capture_stdout=True, capture_stderr=True, max_output=limit)
    assert done.truncated is truncated
    assert done.stdout is not None
    assert done.stderr is not None
    assert done.stdout == bytes(size if limit is None else min(limit, size))
    assert done.stderr == bytes(min(size, 3) if limit is None else min(limit, size, 3))


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "1"])
async def test_wrong_max_output(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match="max_output"):
        await linx.run(["touch", tmp_path / "ran"], max_output=wrong)
    assert not (tmp_path / "ran").exists()


async def test_nothing_written_before_the_end_is_lost() -> None:
    for size in (5, 60_000) * 100:
        script = f"head -c {size} /dev/zero; echo end >&2"
        done = await linx.run(["sh", "-c", script], capture_stdout=True, capture_stderr=True)
        assert done.stdout == bytes(size)
        assert done.stderr == b"end\n"


async def test_a_stray_grandchild_does_not_delay() -> None:
    script = "setsid sh -c 'sleep 600; echo late' & echo $!; echo last"
    for _ in range(20):
        done = await linx.run(["sh", "-c", script], capture_stdout=True, capture_stderr=True)
        assert done.stdout is not None
        stray, last = done.stdout.split()
        assert last == b"last"
        assert not exists(int(stray)), "and it is gone by then"


async def test_a_stray_that_keeps_writing_does_not_delay() -> None:
    done = await linx.run(["sh", "-c", "setsid yes & echo up; read x"], stdin=b"\n", capture_stdout=True, max_output=10)
    assert done.returncode == 0
    assert done.stdout is not None
    assert len(done.stdout) <= 10


# ---- the result --------------------------------------------------------------------------------------------------


async def test_completed() -> None:
    done = await linx.run(["sh", "-c", "echo x", b"arg", Path("/p")], capture_stdout=True)
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.args == ["sh", "-c", "echo x", "arg", "/p"]
    assert (done.returncode, done.outcome, done.truncated) == (0, linx.Exited(0), False)
    assert done.usage is not None
    assert done.usage.max_rss > 0
    done.check_returncode()
    again = pickle.loads(pickle.dumps(done))
    assert type(again) is linx.Completed
    assert vars(again) == vars(done)
    assert repr(again) == repr(done)


ENDS: list[tuple[str, int, linx.Outcome]] = [
    ("exit 3", 3, linx.Exited(3)),
    ("kill -TERM $$", -15, linx.Signaled(15)),
    ("kill -KILL $$", -9, linx.Signaled(9)),
]


@pytest.mark.parametrize(("script", "code", "outcome"), ENDS)
async def test_unsuccessful(script: str, code: int, outcome: linx.Outcome) -> None:
    argv = ["sh", "-c", f"echo out; echo err >&2; {script}"]
    done = await linx.run(argv, check=False, capture_stdout=True)
    assert (done.returncode, done.outcome) == (code, outcome)
    with pytest.raises(subprocess.CalledProcessError) as raised:
        await linx.run(argv, capture_stdout=True, capture_stderr=True, max_output=2)
    error = raised.value
    assert type(error) is linx.CalledProcessError
    assert isinstance(error, linx.LinxError)
    assert (error.returncode, error.cmd, error.outcome) == (code, argv, outcome)
    assert (error.stdout, error.stderr, error.truncated) == (b"ou", b"er", True)
    assert error.usage is not None
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))
    with pytest.raises(linx.CalledProcessError):
        done.check_returncode()


async def test_refusals_come_out_bare() -> None:
    every: list[dict[str, Any]] = [{}, {"check": False}, {"capture_stdout": True, "stdin": b"x"}]
    for options in every:
        with pytest.raises(FileNotFoundError) as raised:
            await linx.run(["/nonexistent"], **options)
        assert isinstance(raised.value, linx.SetupError)
    with pytest.raises(ValueError, match="unknown namespace 'typo'"):
        await linx.run(["true"], namespaces={"typo"})


async def test_a_workload_as_argument(tmp_path: Path) -> None:
    workload = linx.Workload(["sh", "-c", "pwd; echo $A"], cwd=tmp_path, env={"A": "1", "PATH": "/usr/bin:/bin"})
    for _ in range(2):
        assert (await linx.run(workload, capture_stdout=True)).stdout == f"{tmp_path}\n1\n".encode()
    assert (await linx.run(workload, capture_stdout=True, cwd="/", env={"A": "2"})).stdout == b"/\n2\n"
    assert await trio.to_thread.run_sync(lambda: linx.run_sync(workload, capture_stdout=True).stdout)
    with opened(tmp_path / "out") as fd:
        await linx.run(linx.Workload(["echo", "x"], stdout=fd))
    assert (tmp_path / "out").read_text() == "x\n"
    (tmp_path / "in").write_text("its own input")
    with (tmp_path / "in").open() as file:
        done = await linx.run(linx.Workload(["cat"], stdin=file), capture_stdout=True)
    assert done.stdout == b"its own input"


# ---- nursery.start -----------------------------------------------------------------------------------------------


async def test_start_hands_back_the_session() -> None:
    async with trio.open_nursery() as nursery:
        session: linx.Session = await nursery.start(linx.run, ["sleep", "600"])
        assert isinstance(session, linx.Session)
        assert session.state == "running"
        assert exists(session.host_pid)
        nursery.cancel_scope.cancel()
    assert session.outcome == linx.Signaled(15)


async def test_start_with_pipes() -> None:
    async with trio.open_nursery() as nursery:
        options: dict[str, Any] = {"stdin": linx.PIPE, "stdout": linx.PIPE}
        run = functools.partial(linx.run, ["cat"], **options)
        session: linx.Session = await nursery.start(run)
        assert session.stdio is not None
        await session.stdio.send_all(b"x")
        assert await session.stdio.receive_some() == b"x"
        assert session.stdin is not None
        await session.stdin.aclose()
        assert await session.wait() == linx.Exited(0)


async def test_start_what_cannot_start() -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(FileNotFoundError):
            await nursery.start(linx.run, ["/nonexistent"])


# ---- cancellation ------------------------------------------------------------------------------------------------


CANCELLED = (trio.Cancelled, BaseExceptionGroup)
"""How a cancellation comes out: as from `trio.run_process`, alone or in a group with the like."""


async def cancelled_run(argv: list[str], ready: Path, **options: Any) -> tuple[float, type[BaseException] | None]:
    """Runs it, cancels it once it has made the file `ready`, and returns how long that took and how it came out."""
    came_out: type[BaseException] | None = None

    async def run(task_status: trio.TaskStatus[linx.Session]) -> None:
        nonlocal came_out
        try:
            await linx.run(argv, task_status=task_status, **options)
        except BaseException as exc:
            came_out = type(exc)
            raise

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        await eventually_async(ready.exists, "the workload is up")
        started = time.monotonic()
        nursery.cancel_scope.cancel()
    return time.monotonic() - started, came_out


async def test_cancelled_it_may_end_by_itself(tmp_path: Path) -> None:
    bye, ready = tmp_path / "bye", tmp_path / "ready"
    script = f"trap 'echo bye > {bye}; exit 0' TERM; touch {ready}; while :; do sleep 600 & wait; done"
    seconds, came_out = await cancelled_run(["sh", "-c", script], ready, capture_stdout=True)
    assert bye.read_text() == "bye\n"
    assert seconds < 4, "the grace is an upper limit"
    assert came_out in CANCELLED


async def test_cancelled_when_it_has_just_begun(tmp_path: Path) -> None:
    """However early: a workload that runs is asked before it is killed."""
    for turn in range(50):
        bye, ready = tmp_path / f"bye{turn}", tmp_path / f"ready{turn}"
        script = f"trap 'echo > {bye}; exit 0' TERM; : > {ready}; while :; do sleep 600 & wait; done"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(linx.run, ["sh", "-c", script])
            while not ready.exists():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert bye.exists(), f"turn {turn}"


async def test_cancelled_while_it_still_writes(tmp_path: Path) -> None:
    """Its last words do not fit into the pipe: somebody must go on reading, or it could not end by itself."""
    bye, ready = tmp_path / "bye", tmp_path / "ready"
    script = (
        f"trap 'head -c {1 << 20} /dev/zero; echo bye > {bye}; exit 0' TERM; touch {ready}; "
        "while :; do sleep 600 & wait; done"
    )
    await cancelled_run(["sh", "-c", script], ready, capture_stdout=True)
    assert bye.exists()


@pytest.mark.parametrize("options", [{}, {"capture_stdout": True}, {"stdin": b"x" * LARGE}])
async def test_cancelled_it_is_killed_with_all_its_children(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linx_trio._run.CANCEL_GRACE", 0.1)
    pids, ready = tmp_path / "pids", tmp_path / "ready"
    script = (
        f"trap '' TERM; setsid sh -c 'echo $$ >> {pids}; exec sleep 600' & echo $$ >> {pids}; "
        f"while [ $(wc -l < {pids}) -lt 2 ]; do :; done; touch {ready}; while :; do sleep 600 & wait; done"
    )
    seconds, came_out = await cancelled_run(["sh", "-c", script], ready, **options)
    assert came_out in CANCELLED
    assert seconds >= 0.1
    assert len(pids.read_text().split()) == 2
    assert not [pid for pid in pids.read_text().split() if exists(int(pid))]


async def test_deliver_cancel(tmp_path: Path) -> None:
    ready, bye = tmp_path / "ready", tmp_path / "bye"
    script = f"trap 'echo bye > {bye}; exit 0' INT; touch {ready}; while :; do sleep 600 & wait; done"
    given: list[linx.Session] = []

    async def interrupt(session: linx.Session) -> None:
        given.append(session)
        session.signal(signal.SIGINT)
        assert await session.wait() == linx.Exited(0)

    _, came_out = await cancelled_run(["sh", "-c", script], ready, deliver_cancel=interrupt)
    assert came_out in CANCELLED
    assert bye.exists()
    assert [type(session) for session in given] == [linx.Session]


async def test_deliver_cancel_is_given_a_pidfd_even_of_what_has_just_ended() -> None:
    pidfds: list[int] = []

    async def look(session: linx.Session) -> None:
        await session.wait()
        with contextlib.suppress(linx.NotReady):  # it has come to nothing
            pidfds.append(session.pidfd)

    for tenths in range(40):
        with trio.move_on_after(tenths / 10_000):
            await linx.run(["true"], deliver_cancel=look)
    assert -1 not in pidfds


async def test_deliver_cancel_that_does_nothing(tmp_path: Path) -> None:
    async def nothing(session: linx.Session) -> None:
        pass

    ready = tmp_path / "ready"
    _, came_out = await cancelled_run(["sh", "-c", f"touch {ready}; sleep 600"], ready, deliver_cancel=nothing)
    assert came_out in CANCELLED


async def test_deliver_cancel_that_fails(tmp_path: Path) -> None:
    mine = ZeroDivisionError("mine")

    async def fails(session: linx.Session) -> None:
        raise mine

    ready = tmp_path / "ready"
    came_out: list[BaseException] = []

    async def run() -> None:
        try:
            await linx.run(["sh", "-c", f"touch {ready}; sleep 600"], deliver_cancel=fails, capture_stdout=True)
        except Exception as exc:
            came_out.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await eventually_async(ready.exists, "the workload is up")
        nursery.cancel_scope.cancel()
    assert came_out == [mine], "bare, and the workload is gone all the same"


async def test_cancelled_before_it_began(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await linx.run(["touch", tmp_path / "ran"])
    assert scope.cancelled_caught


# ---- run_sync ----------------------------------------------------------------------------------------------------


def test_run_sync() -> None:
    done = linx.run_sync(["sh", "-c", "cat; exit 3"], stdin=b"x", capture_stdout=True, check=False)
    assert (done.returncode, done.stdout, done.outcome) == (3, b"x", linx.Exited(3))
    assert pickle.loads(pickle.dumps(done)).outcome == done.outcome
    with pytest.raises(linx.CalledProcessError):
        linx.run_sync(["false"])
    with pytest.raises(FileNotFoundError):
        linx.run_sync(["/nonexistent"])
    with pytest.raises(ValueError, match="empty"):
        linx.run_sync([])


def in_threads(count: int, function: Callable[[int], object]) -> None:
    """Runs `function` in so many threads at once; raises what one of them raised."""
    troubles: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            function(number)
        except BaseException as exc:
            troubles.append(exc)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not troubles, troubles


def test_run_sync_in_many_threads() -> None:
    def work(number: int) -> None:
        for turn in range(10):
            word = f"{number} {turn}\n".encode()
            assert linx.run_sync(["cat"], stdin=word, capture_stdout=True).stdout == word

    in_threads(8, work)


def test_run_sync_as_the_first_thing_in_many_threads() -> None:
    """All of them want the zygote that nobody has started yet."""
    script = (
        "import threading, linx_trio as linx\n"
        "results = []\n"
        "def work(): results.append(linx.run_sync(['true']).returncode)\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "assert results == [0] * 8, results\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], env=env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_run_sync_inside_trio() -> None:
    with pytest.raises(RuntimeError, match="await"):
        linx.run_sync(["true"])
    assert (await trio.to_thread.run_sync(linx.run_sync, ["true"])).returncode == 0


def test_run_sync_inside_asyncio() -> None:
    async def main() -> list[int]:
        first = linx.run_sync(["true"])
        second = await asyncio.to_thread(linx.run_sync, ["sh", "-c", "exit 2"], check=False)
        return [first.returncode, second.returncode]

    assert asyncio.run(main()) == [0, 2]


def test_run_sync_after_trio_has_ended() -> None:
    async def main() -> int:
        return (await linx.run(["true"])).returncode

    for _ in range(3):
        assert trio.run(main) == 0
        assert linx.run_sync(["true"]).returncode == 0


class Countdown:
    """An event that is set at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_cancel_set_before_starts_nothing(tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError, match="cancel="):
        linx.run_sync(["touch", str(tmp_path / "ran")], cancel=cancel)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="argv is empty"):  # wrong is wrong
        linx.run_sync([], cancel=cancel)


def test_cancel_set_after_changes_nothing() -> None:
    cancel = threading.Event()
    assert linx.run_sync(["true"], cancel=cancel).returncode == 0
    with pytest.raises(linx.CalledProcessError):
        linx.run_sync(["false"], cancel=cancel)
    with pytest.raises(FileNotFoundError):
        linx.run_sync(["/nonexistent"], cancel=cancel)
    cancel.set()


def test_cancel_set_while_it_runs(tmp_path: Path) -> None:
    """SIGTERM first, and its pipes are kept moving; then nothing is left."""
    script = f"""
trap 'head -c 300000 /dev/zero; echo bye > {tmp_path}/bye; exit 0' TERM
sleep 1000 & echo $! > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid
while :; do wait; done
"""
    cancel = threading.Event()
    caught: list[BaseException] = []

    def work() -> None:
        try:
            linx.run_sync(["/bin/sh", "-c", script], cancel=cancel, capture_stdout=True)
        except BaseException as exc:
            caught.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    eventually((tmp_path / "pid").exists, "it runs")
    pid = int((tmp_path / "pid").read_text())
    assert exists(pid)
    cancel.set()
    thread.join(DEADLINE)
    assert [type(exc) for exc in caught] == [CancelledError]
    assert (tmp_path / "bye").exists()
    assert not exists(pid)


def test_cancel_is_what_deliver_cancel_is_for(tmp_path: Path) -> None:
    asked: list[str] = []

    async def deliver(session: linx.Session) -> None:
        asked.append(session.state)

    with pytest.raises(CancelledError):
        linx.run_sync(["sleep", "1000"], cancel=Countdown(2), deliver_cancel=deliver)
    assert asked == ["running"]


@pytest.mark.parametrize("looks", [0, 1, 3])
def test_a_cancel_that_cannot_be_asked_ends_it(looks: int) -> None:
    class Broken(Countdown):
        def is_set(self) -> bool:
            if super().is_set():
                raise OSError("the scheduler is gone")
            return False

    with pytest.raises(OSError, match="the scheduler is gone"):
        linx.run_sync(["sleep", "1000"], cancel=Broken(looks))


@pytest.mark.parametrize("wrong", [1, "now", object(), trio.CancelScope])
def test_wrong_cancel(wrong: Any) -> None:
    with pytest.raises(TypeError, match="cancel must be an event"):
        linx.run_sync(["true"], cancel=wrong)


def test_one_event_cancels_many_threads() -> None:
    cancel = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(linx.run_sync, ["sleep", "1000"], cancel=cancel) for _ in range(12)]  # 4 have to wait
        short = pool.submit(linx.run_sync, ["true"])
        eventually(lambda: len(sleepers()) == 8, "eight of them run")
        cancel.set()
        assert {type(job.exception(DEADLINE)) for job in jobs} == {CancelledError}
        assert short.result(DEADLINE).returncode == 0
    assert sleepers() == []


def sleepers() -> list[int]:
    return [pid for zygote in _agent.current() for pid in descendants_of(zygote.pid) if name_of(pid) == "sleep"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_result_survives_pickle(protocol: int) -> None:
    done = linx.run_sync(["sh", "-c", "echo long; exit 3"], capture_stdout=True, max_output=2, check=False)
    back = pickle.loads(pickle.dumps(done, protocol))
    assert type(back) is linx.Completed
    assert (back.args, back.returncode, back.stdout) == (done.args, 3, b"lo")
    assert (back.outcome, back.usage, back.truncated) == (linx.Exited(3), done.usage, True)
    with pytest.raises(linx.CalledProcessError) as caught:
        back.check_returncode()
    error = pickle.loads(pickle.dumps(caught.value, protocol))
    assert (error.outcome, error.output, error.truncated) == (linx.Exited(3), b"lo", True)


IN_PROCESSES = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import linx_trio as linx

if __name__ == "__main__":
    workload = linx.Workload(["sh", "-c", "cat; exit $0", "0"], shutdown=linx.Kill(1.0))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        good = pool.submit(linx.run_sync, workload, stdin=b"x", capture_stdout=True)
        bad = pool.submit(linx.run_sync, workload.replace(argv=["sh", "-c", "exit 4"]))
        refused = pool.submit(linx.run_sync, workload.replace(argv=["/nonexistent"]))
        print(good.result().stdout, bad.exception().outcome, refused.exception().stage)
"""


def test_in_processes(tmp_path: Path) -> None:
    """What an engine does: workloads go there, results and errors come back. In a process of its own, since Python
    keeps a helper of multiprocessing's for as long as it runs."""
    (tmp_path / "main.py").write_text(IN_PROCESSES)
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"],
        env={**os.environ, "PYTHONPATH": str(Path(linx.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "b'x' Exited(code=4) execve\n", done.stderr


def test_ctrl_c_ends_run_sync(tmp_path: Path) -> None:
    """SIGINT goes to the Python that waits; the workload is in a session of its own, and is ended by that Python."""
    ready = tmp_path / "pid"
    script = (
        "import sys, linx_trio as linx\n"
        f"argv = ['sh', '-c', 'echo $$ > {ready}.new; mv {ready}.new {ready}; exec sleep 600']\n"
        "try:\n"
        "    linx.run_sync(argv)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(42)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    async def main() -> None:
        async with linx.spawn([sys.executable, "-c", script], env=env, auto_proceed=True) as s:
            await eventually_async(ready.exists, "the workload is up")
            s.signal(signal.SIGINT)
            assert await s.wait() == linx.Exited(42)
            assert not exists(int(ready.read_text()))

    trio.run(main)


@pytest.mark.parametrize("options", [{"stdout": linx.PIPE}, {"stdio": linx.PTY}], ids=["pipe", "terminal"])
async def test_what_is_handed_back_can_be_read_after_the_end(options: dict[str, Any]) -> None:
    async with trio.open_nursery() as nursery:
        s: linx.Session = await nursery.start(
            lambda task_status: linx.run(["sh", "-c", "echo last words"], task_status=task_status, **options)
        )
    assert s.outcome == linx.Exited(0)
    stream = s.pty if "stdio" in options else s.stdout
    assert stream is not None
    async with stream:
        said = b""
        while some := await stream.receive_some():
            said += some
    assert said.replace(b"\r", b"") == b"last words\n"


async def test_what_is_handed_back_is_closed_when_it_fails() -> None:
    handed: list[linx.Session] = []

    async def lose_the_agent() -> None:
        async with trio.open_nursery() as nursery:
            session = await nursery.start(
                lambda task_status: linx.run(["sleep", "100"], stdout=linx.PIPE, task_status=task_status)
            )
            handed.append(session)
            stat = stat_of(session.host_pid)
            assert stat is not None
            os.kill(int(stat[1]), signal.SIGKILL)

    with pytest.raises(ExceptionGroup) as caught:
        await lose_the_agent()
    assert caught.group_contains(linx.AgentDied)
    assert handed[0].stdout is not None
    assert handed[0].stdout.fileno() < 0
