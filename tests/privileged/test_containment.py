"""The guarantee where namespaces and ids make it easier, or harder. As an ordinary user the PID namespaces come with a
user namespace around them; what needs root says so.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from tests.agent.programs.phases import (
    UNUSED_UID,
    argv_for,
    bomb_options,
    family,
    line_of,
    members,
    script,
    send_proceed,
    state_of,
    stop,
    zygote,
)
from tests.support import DEADLINE, descendants_of, eventually_async, exists, monitor_of, stat_of, with_token

ROOT = os.geteuid() == 0
NAMESPACES = {"pid"} if ROOT else {"pid", "user"}
# Not `sibling`: process 1 of a PID namespace may have none.
INSIDE = ("immune", "child", "grandchild", "session", "daemon", "chain", "orphans", "reaper", "stopped", "busy")

needs_root = pytest.mark.skipif(not ROOT, reason="needs root to become somebody else")


@pytest.fixture(autouse=True)
def _pid_namespaces(nothing_is_left: str) -> None:
    try:
        linx.run_sync(["true"], namespaces=NAMESPACES)
    except linx.SetupError as exc:
        pytest.skip(f"no PID namespaces for this user here: {exc}")


def is_gone(pid: int) -> bool:
    return state_of(pid) in ("", "Z")


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


async def start(session: linx.Session, token: str) -> list[int]:
    """Releases it and waits until its family is complete. Returns the pids as the host has them."""
    await session.proceed()
    inside = await members(session)
    assert inside[0] == 1
    pids = sorted(with_token(token))
    assert len(pids) == len(inside)
    assert session.host_pid in pids
    return pids


# ---- PID namespaces --------------------------------------------------------------------------------------------------


async def test_leaving_a_pid_namespace(nothing_is_left: str) -> None:
    async with linx.spawn(family(*INSIDE), namespaces=NAMESPACES, stdout=linx.PIPE) as s:
        assert s.containment == "pidns"
        assert s.child_pid == 1
        pids = await start(s, nothing_is_left)
    assert [pid for pid in pids if exists(pid)] == []
    assert s.outcome == linx.Signaled(9)


async def test_the_end_of_process_1_is_the_end_of_all(nothing_is_left: str) -> None:
    """The kernel sees to it: when the outcome is known, nobody is left, though the block is not left yet."""
    async with linx.spawn(family("leaderless", *INSIDE), namespaces=NAMESPACES, stdout=linx.PIPE) as s:
        await s.proceed()
        assert len(await members(s)) > len(INSIDE)
        assert await s.wait() == linx.Exited(3)
        assert with_token(nothing_is_left) == []


async def test_kill_in_a_pid_namespace(nothing_is_left: str) -> None:
    async with linx.spawn(family(*INSIDE), namespaces=NAMESPACES, stdout=linx.PIPE) as s:
        await start(s, nothing_is_left)
        s.kill()
        assert await s.wait() == linx.Signaled(9)
        assert with_token(nothing_is_left) == []


@pytest.mark.parametrize("phase", ["parked", "proceeding"])
async def test_parked_in_a_pid_namespace(phase: str) -> None:
    """Process 1 ignores what it has no handler for, but not from outside."""
    async with linx.spawn(family(*INSIDE), namespaces=NAMESPACES) as s:
        pid = s.host_pid
        if phase == "proceeding":
            await stop(pid)
            await send_proceed(s)
    assert not exists(pid)
    assert not s.ran


@pytest.mark.parametrize("order", ["zygote first", "monitor first"])
async def test_zygote_and_monitor_killed(order: str, nothing_is_left: str) -> None:
    """Nobody is left to look for descendants: the PID namespace does that too."""
    async with linx.spawn(family(*INSIDE), namespaces=NAMESPACES, stdout=linx.PIPE) as s:
        pids = await start(s, nothing_is_left)
        victims = [zygote(), monitor_of(s.host_pid)]
        for victim in victims if order == "zygote first" else victims[::-1]:
            os.kill(victim, signal.SIGKILL)
        with trio.fail_after(DEADLINE), pytest.raises(linx.AgentDied):
            await s.wait()
        await eventually_async(lambda: all(map(is_gone, pids)), "all of it is dead")
    assert with_token(nothing_is_left) == []


async def test_monitor_killed(nothing_is_left: str) -> None:
    async with linx.spawn(family(*INSIDE), namespaces=NAMESPACES, stdout=linx.PIPE) as s:
        pids = await start(s, nothing_is_left)
        os.kill(monitor_of(s.host_pid), signal.SIGKILL)
        with trio.fail_after(DEADLINE), pytest.raises(linx.AgentDied) as caught:
            await s.wait()
        assert caught.value.exit_status == -9
        assert [pid for pid in pids if exists(pid)] == []


async def test_a_pid_namespace_that_the_workload_made(nothing_is_left: str) -> None:
    """To us it is a process like any other; what is inside dies with it."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1), of util-linux")
    flags = ["--pid", "--fork"] if ROOT else ["--user", "--pid", "--fork"]
    async with linx.spawn(["unshare", *flags, *family(*INSIDE)], stdout=linx.PIPE) as s:
        assert s.containment == "subreaper"
        await s.proceed()
        inside = await members(s)
        assert inside[0] == 1
        assert len(with_token(nothing_is_left)) == len(inside) + 1
    assert with_token(nothing_is_left) == []


@needs_root
async def test_a_fork_loop_in_a_pid_namespace(nothing_is_left: str) -> None:
    uid, limits = bomb_options()
    argv = script("bomb.py", "fork", uid)
    async with linx.spawn(argv, namespaces=NAMESPACES, stdout=linx.PIPE, stderr=linx.DEVNULL, rlimits=limits) as s:
        await s.proceed()
        assert await line_of(s) == "full\n"
    assert with_token(nothing_is_left) == []


@pytest.mark.parametrize(
    "kinds", [{"net"}, {"mount"}, {"uts", "ipc"}, {"net", "mount", "uts", "ipc", "cgroup", "time"}]
)
async def test_other_namespaces_need_the_subreaper(kinds: set[str], nothing_is_left: str) -> None:
    kinds = kinds if ROOT else kinds | {"user"}
    async with linx.spawn(family(*INSIDE, "sibling"), namespaces=kinds, stdout=linx.PIPE) as s:
        assert s.containment == "subreaper"
        await s.proceed()
        pids = await members(s)
        assert [pid for pid in pids if exists(pid)] == pids
    assert [pid for pid in pids if exists(pid)] == []
    assert with_token(nothing_is_left) == []


async def test_no_namespace_is_left(tmp_path: Path) -> None:
    """A namespace lives as long as somebody is in it or holds it open."""
    kinds = {"net", "uts", "ipc"} | NAMESPACES

    def everywhere() -> set[str]:
        links = set()
        for path in Path("/proc").glob("[0-9]*/ns/*"):
            try:
                links.add(os.readlink(path))
            except OSError:
                continue
        return links

    async with linx.spawn(["sh", "-c", "setsid sleep 3600 & sleep 3600"], namespaces=kinds) as s:
        await s.proceed()
        ours = {os.readlink(f"/proc/self/ns/{name}") for name in kinds}
        theirs = {os.readlink(f"/proc/{s.host_pid}/ns/{name}") for name in kinds}
        assert not ours & theirs
        assert theirs <= everywhere()
    assert not theirs & everywhere()


# ---- ids -------------------------------------------------------------------------------------------------------------


@needs_root
async def test_somebody_elses_descendants(nothing_is_left: str) -> None:
    """They change their ids, and are ours all the same."""
    code = "(setsid sleep 3600 &) ; trap '' TERM; setsid sleep 3600 & echo up; sleep 3600"
    async with linx.spawn(["sh", "-c", code], uid=UNUSED_UID, gid=UNUSED_UID, cwd="/", stdout=linx.PIPE) as s:
        await s.proceed()
        assert await line_of(s) == "up\n"
        await eventually_async(lambda: len(with_token(nothing_is_left)) == 4, "all of them run")
    assert with_token(nothing_is_left) == []


@needs_root
async def test_fork_loop_of_a_shell_as_somebody_else(nothing_is_left: str) -> None:
    """The shell gives up where fork(2) fails, so this bomb lives on the slots of those that died."""
    _, limits = bomb_options()
    bomb = "echo up; bomb() { bomb | bomb & }; while :; do bomb; done"
    async with linx.spawn(
        ["sh", "-c", bomb], stdout=linx.PIPE, stderr=linx.DEVNULL, uid=UNUSED_UID, gid=UNUSED_UID, cwd="/",
        rlimits=limits,
    ) as s:  # fmt: skip
        await s.proceed()
        assert await line_of(s) == "up\n"
        await eventually_async(lambda: len(with_token(nothing_is_left)) > 1 or s.outcome is not None, "it forks")
    assert with_token(nothing_is_left) == []


@needs_root
async def test_the_parent_death_signal_outlives_a_change_of_ids(nothing_is_left: str) -> None:
    """A change of ids clears it (prctl(2)), so it has to be set again behind that."""
    argv = ["sleep", "3600"]
    async with linx.spawn(argv, uid=UNUSED_UID, gid=UNUSED_UID, cwd="/") as s:
        await s.proceed()
        victims = [zygote(), monitor_of(s.host_pid)]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        with trio.fail_after(DEADLINE), pytest.raises(linx.AgentDied):
            await s.wait()
        await eventually_async(lambda: is_gone(s.host_pid), "the workload is dead")
    assert with_token(nothing_is_left) == []


@needs_root
@pytest.mark.parametrize("way", ["leave", "monitor killed"])
async def test_a_set_user_id_program(way: str, tmp_path: Path, nothing_is_left: str) -> None:
    """The kernel takes the parent-death signal away from it; the zygote finds it all the same."""
    program = tmp_path / "sleep"
    shutil.copy(shutil.which("sleep") or "sleep", program)
    os.chown(program, UNUSED_UID, -1)
    program.chmod(0o4755)
    async with linx.spawn([program, "3600"]) as s:
        await s.proceed()
        pid = s.host_pid
        if f"\t{UNUSED_UID}\t" not in status_of(pid):
            pytest.skip("this file system ignores the set-user-ID bit")
        if way == "monitor killed":
            os.kill(monitor_of(pid), signal.SIGKILL)
            with trio.fail_after(DEADLINE), pytest.raises(linx.AgentDied):
                await s.wait()
            assert not exists(pid)
    assert not exists(pid)
    assert with_token(nothing_is_left) == []


# ---- this thread is somewhere else -----------------------------------------------------------------------------------


async def test_the_zygote_is_where_it_should_be(nothing_is_left: str) -> None:
    """Sessions in fresh namespaces leave the agent in the old ones, and all of its children are monitors."""
    options: dict[str, Any] = {"namespaces": {"net", "uts", "ipc", "mount"} | NAMESPACES}
    async with linx.spawn(argv_for("parked", INSIDE), **options) as s:
        monitor = monitor_of(s.host_pid)
        for name in os.listdir("/proc/self/ns"):
            ours = os.readlink(f"/proc/self/ns/{name}")
            assert os.readlink(f"/proc/{monitor}/ns/{name}") == ours
            assert os.readlink(f"/proc/{zygote()}/ns/{name}") == ours
        fields = stat_of(monitor)
        assert fields is not None
        assert int(fields[1]) == zygote()
        assert sorted(descendants_of(zygote())) == sorted([monitor, s.host_pid])
