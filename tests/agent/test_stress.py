"""Many sessions: at once, in a row, in threads, cancelled at random moments. Nothing is left, nothing grows."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import trio

import linx_trio as linx
from linx_trio import _agent
from tests.agent.programs.phases import family, members, zygote
from tests.support import children_of, descendants_of, eventually_async, exists, monitor_of, with_token

DAEMONS = "trap '' TERM; sleep 3600 & setsid sleep 3600 & (setsid sleep 3600 &) ; "


# ---- at once ---------------------------------------------------------------------------------------------------------


async def test_two_hundred_at_once(nothing_is_left: str) -> None:
    """All parked together, a part of them released, aborted, killed; the rest is for the blocks' ends."""
    count, sessions = 200, list[linx.Session]()
    over = trio.Event()

    async def one(number: int) -> None:
        async with linx.spawn(["sh", "-c", f"{DAEMONS} exit {number}"]) as s:
            sessions.append(s)
            await over.wait()
            match number % 4:
                case 0:
                    await s.proceed()
                    assert await s.wait() == linx.Exited(number)
                case 1:
                    await s.abort()
                case 2:
                    s.kill()
                    assert await s.wait() == linx.Aborted()

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
        await eventually_async(lambda: len(sessions) == count, "all of them are parked")
        assert len({s.host_pid for s in sessions}) == count
        assert len({monitor_of(s.host_pid) for s in sessions}) == count
        assert len(children_of(zygote())) == count
        assert {s.state for s in sessions} == {"ready"}
        over.set()
    assert not any(exists(s.host_pid) for s in sessions)
    assert with_token(nothing_is_left) == []
    assert descendants_of(zygote()) == []
    assert Counter(s.state for s in sessions) == {"exited": count // 4, "aborted": 3 * count // 4}


async def test_one_task_with_many_sessions_that_run(nothing_is_left: str) -> None:
    """Cancelled together: their ends do not wait for each other's graces."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            up: list[int] = []

            async def one() -> None:
                grace = linx.Kill(grace=1.0)
                async with linx.spawn(family("immune", "daemon"), stdout=linx.PIPE, shutdown=grace) as s:
                    await s.proceed()
                    up.extend(await members(s))
                    await trio.sleep_forever()

            for _ in range(20):
                nursery.start_soon(one)
            await eventually_async(lambda: len(up) == 40, "all of them run")
            begun = trio.current_time()
            scope.cancel()
    assert trio.current_time() - begun < 15
    assert not any(map(exists, up))
    assert with_token(nothing_is_left) == []


# ---- one after the other ---------------------------------------------------------------------------------------------


def footprint() -> Counter[str]:
    """What must not grow. (It may shrink: threads that earlier tests have used end when they are idle.)"""
    counted = Counter({"our threads": threading.active_count(), "our tasks": len(os.listdir("/proc/self/task"))})
    for who, pid in (("our", os.getpid()), ("the zygote's", zygote())):
        counted[f"{who} children"] = len(children_of(pid))
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # the directory's own
                kind = os.readlink(f"/proc/{pid}/fd/{fd}").split(":[")[0]
                counted[f"{who} fds: {kind}"] += 1
    return counted


def _memory(pid: int) -> int:
    """Its own pages, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


async def test_a_thousand_in_a_row(nothing_is_left: str) -> None:
    async def one(number: int) -> None:
        match number % 5:
            case 0 | 1:
                assert (await linx.run(["true"])).returncode == 0
            case 2:
                completed = await linx.run(["sh", "-c", "cat"], stdin=b"x", capture_stdout=True)
                assert completed.stdout == b"x"
            case 3:
                async with linx.spawn(["true"], stdio=linx.PIPE):
                    pass
            case _:
                async with linx.spawn(["sleep", "3600"]) as s:
                    await s.proceed()

    for number in range(50):
        await one(number)
    gc.collect()
    before, memory = footprint(), _memory(zygote())
    for number in range(1000):
        await one(number)
    gc.collect()
    assert footprint() - before == Counter()
    assert _memory(zygote()) <= memory + 64
    assert with_token(nothing_is_left) == []


async def test_failures_in_a_row_leave_nothing_either(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no program")

    async def one(number: int) -> None:
        match number % 4:
            case 0:
                with pytest.raises(FileNotFoundError):
                    await linx.run(["/nowhere"])
            case 1:
                with pytest.raises(PermissionError):
                    await linx.run([tmp_path / "plain"], stdio=linx.INHERIT)
            case 2:
                with pytest.raises(FileNotFoundError):
                    await linx.run(["true"], cwd="/nowhere")
            case _:
                with pytest.raises(linx.SetupError):
                    async with linx.spawn(["true"], stdin=linx.PIPE, stdout=10_000):
                        raise AssertionError("entered")

    for number in range(20):
        await one(number)
    gc.collect()
    before = footprint()
    for number in range(200):
        await one(number)
    gc.collect()
    assert footprint() - before == Counter()


# ---- at random moments -----------------------------------------------------------------------------------------------


async def _live(session: linx.Session, rng: random.Random) -> None:
    """Something that users do, in some order, with `StateError` where it comes too late."""
    verbs: list[Callable[[], Awaitable[object]]] = [session.proceed, session.wait, session.abort]
    for _ in range(rng.randrange(4)):
        try:
            match rng.randrange(6):
                case 0 | 1 | 2:
                    await rng.choice(verbs)()
                case 3:
                    session.kill()
                case 4:
                    session.signal(rng.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT]))
                case _:
                    await trio.lowlevel.checkpoint()
        except linx.StateError:
            pass
    await session.proceed()
    await session.wait()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_cancelled_at_random_moments(seed: int, nothing_is_left: str) -> None:
    rng = random.Random(seed)
    begun, ended, sessions = 0, Counter[str](), list[linx.Session]()

    async def one() -> None:
        nonlocal begun
        options = {"auto_proceed": rng.random() < 0.3, "wait_ready": rng.random() < 0.7}
        code = DAEMONS + rng.choice(["exit 3", "wait", "kill -9 $$"])
        begun += 1
        with trio.move_on_after(rng.random() * 0.03):
            try:
                async with linx.spawn(["sh", "-c", code], **options) as s:  # type: ignore[arg-type]
                    sessions.append(s)
                    await _live(s, rng)
            except linx.NoProcess:
                pass

    limit = trio.CapacityLimiter(30)

    async def limited() -> None:
        async with limit:
            await one()

    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(limited)
    assert begun == 300
    for s in sessions:
        ended[s.state] += 1
        assert s.pidfd == -1 if s.state != "starting" and s.ran else True
    assert ended["aborted"] > 0
    assert ended["signaled"] > 0
    assert ended["failed"] == 0
    assert with_token(nothing_is_left) == []
    assert descendants_of(zygote()) == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_monitors_killed_at_random_moments(seed: int, nothing_is_left: str) -> None:
    """Every session ends in its own way or says AgentDied; it does not matter to the others."""
    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    working = True

    async def one() -> None:
        try:
            async with linx.spawn(["sh", "-c", DAEMONS + rng.choice(["exit 3", "wait"])]) as s:
                await s.proceed()
                with trio.move_on_after(0.05):
                    ends[type(await s.wait()).__name__] += 1
        except linx.AgentDied as exc:
            ends[f"AgentDied {exc.exit_status}"] += 1

    async def many() -> None:
        for _ in range(15):
            await one()

    async def killer() -> None:
        while working:
            if monitors := children_of(zygote()):
                with suppress(ProcessLookupError):  # it has been quicker
                    os.kill(rng.choice(monitors), signal.SIGKILL)
            await trio.sleep(rng.random() * 0.01)

    async with trio.open_nursery() as outer:
        outer.start_soon(killer)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(many)
        working = False
    assert set(ends) <= {"AgentDied -9", "Exited"}
    assert ends["AgentDied -9"] > 0
    assert ends["Exited"] > 0
    assert with_token(nothing_is_left) == []
    assert descendants_of(zygote()) == []


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_run_sync_in_twenty_threads(nothing_is_left: str) -> None:
    """A trio of its own in each, one zygote for all."""
    together = threading.Barrier(20)

    def work(number: int) -> list[int]:
        together.wait(60)
        codes = []
        for turn in range(5):
            code = f"{DAEMONS} cat; exit {number + turn}"
            completed = linx.run_sync(["sh", "-c", code], stdin=b"x%d" % number, capture_stdout=True, check=False)
            assert completed.stdout == b"x%d" % number
            codes.append(completed.returncode)
        return codes

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(work, range(20)))
    assert results == [[number + turn for turn in range(5)] for number in range(20)]
    assert with_token(nothing_is_left) == []


def test_the_first_session_of_all_in_twenty_threads_at_once() -> None:
    """They agree on one zygote, and all wait for its greeting."""
    for known in _agent.current():
        _agent.discard(known)
    together = threading.Barrier(20)

    def work(_: int) -> int:
        together.wait(60)
        completed = linx.run_sync(["sh", "-c", "echo $PPID"], capture_stdout=True)
        assert int(completed.stdout) > 1
        return zygote()

    with ThreadPoolExecutor(20) as pool:
        assert len(set(pool.map(work, range(20)))) == 1


async def test_an_agent_that_is_none_in_many_tasks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them wait for its greeting, and all learn what is wrong with it."""
    monkeypatch.setenv(_agent.OVERRIDE, shutil.which("true") or "true")

    async def one() -> None:
        with pytest.raises(linx.AgentError, match="no linx-agent"):
            await linx.run(["true"])

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)


def test_threads_whose_zygotes_are_being_killed(nothing_is_left: str) -> None:
    over = threading.Event()
    done = Counter[int]()

    def work(number: int) -> None:
        while not over.is_set():
            assert linx.run_sync(["sh", "-c", f"{DAEMONS} exit {number}"], check=False).returncode == number
            done[number] += 1

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(work, number) for number in range(6)]
        try:
            for turn in range(1, 9):
                while not any(future.done() for future in futures) and min(done[n] for n in range(6)) < turn:
                    over.wait(0.001)
                current = next(reversed(_agent.current()), None)
                if current is not None and current.greeted:
                    os.kill(current.pid, signal.SIGKILL)
        finally:
            over.set()
        for future in futures:
            future.result()
    assert with_token(nothing_is_left) == []
