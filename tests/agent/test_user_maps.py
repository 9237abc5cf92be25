"""``user=`` on the real agent: the ids of a fresh user namespace, written by the child itself, by this side, or by
``newuidmap(1)`` for it, before the workload is ready.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio import _channel, _idmap_files, user
from linx_trio.mount import Bind
from linx_trio.user import IdMap, Maps
from tests.agent.probes import as_somebody, needs_root, proc, status_of
from tests.agent.roots import SLEEP, needs_busybox
from tests.support import eventually_async

ME, MY_GROUP = os.geteuid(), os.getegid()


def wide(**options: Any) -> Maps:
    """Maps of a thousand ids, without the caller's own: root may write any, others have to have been granted some."""
    if ME == 0:
        return Maps(uid=(0, 200000, 1000), gid=(0, 300000, 1000), **options)
    granted = user.subids()
    if not granted.uid or not granted.gid or min(len(granted.uid[0]), len(granted.gid[0])) < 1000:
        pytest.skip("a range of 1000 in /etc/subuid and /etc/subgid, and newuidmap(1), are needed for this user")
    return Maps(uid=(0, granted.uid[0].start, 1000), gid=(0, granted.gid[0].start, 1000), **options)


def first(maps: Maps) -> tuple[int, int]:
    """What the ids 0 are outside."""
    (uid,), (gid,) = ((IdMap(*line) for line in lines) for lines in (maps.uid, maps.gid))  # type: ignore[misc]
    return uid.outside, gid.outside


def ids_of(s: linx.Session) -> tuple[set[str], set[str], list[str]]:
    """Its user ids, group ids and groups, as they are outside."""
    status = status_of(s.host_pid)
    return set(status["Uid"].split()), set(status["Gid"].split()), status["Groups"].split()


async def said(argv: list[str], **options: Any) -> str:
    done = await linx.run(argv, capture_stdout=True, **options)
    return done.stdout.decode()


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the frames that are sent to agents."""
    sent: list[int] = []
    send = _channel.Channel.send

    def count(self: _channel.Channel, frame: bytes, *rest: Any) -> bool:
        sent.append(len(frame))
        return send(self, frame, *rest)

    monkeypatch.setattr(_channel.Channel, "send", count)
    return sent


class Gate:
    """Holds the writing of maps until it is opened."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.open = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    write = _idmap_files.write_maps

    def late(*arguments: Any, **options: Any) -> None:
        made.is_reached.set()
        assert made.open.wait(60)
        write(*arguments, **options)

    monkeypatch.setattr(_idmap_files, "write_maps", late)
    yield made
    made.open.set()


# ---- one's own id ------------------------------------------------------------------------------------------------


async def test_root_inside(frames: list[int]) -> None:
    """All in the one frame that asks for the workload."""
    script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups"
    async with linx.spawn(["sh", "-c", script], user=user.root_map(), stdout=linx.PIPE) as s:
        assert len(frames) == 1
        assert s.info().namespaces == {"user"}
        assert user.read_uid_map(s) == [(0, ME, 1)]
        assert user.read_gid_map(s) == [(0, MY_GROUP, 1)]
        await s.proceed()
        assert s.stdout is not None
        words = b"".join([bytes(chunk) async for chunk in s.stdout]).decode().split()
    assert words == ["0", "0", "0", str(ME), "1", "0", str(MY_GROUP), "1", "deny"]


async def test_any_id_inside(frames: list[int]) -> None:
    assert await said(["id", "-u"], user=Maps(uid=(31337, ME, 1), gid=(4711, MY_GROUP, 1))) == "31337\n"
    assert await said(["id", "-g"], user=Maps(uid=(31337, ME, 1), gid=(4711, MY_GROUP, 1))) == "4711\n"
    assert len([size for size in frames if size > 100]) == 2


async def test_no_program_is_needed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert await said(["/usr/bin/id", "-u"], user=user.root_map()) == "0\n"


async def test_ids_that_are_not_mapped() -> None:
    options: list[tuple[dict[str, Any], str]] = [({"uid": 7}, "setuid"), ({"gid": 7}, "setgid")]
    for option, stage in options:
        with pytest.raises(linx.SetupError) as caught:
            await linx.run(["true"], user=user.root_map(), **option)
        assert (caught.value.errno, caught.value.stage, caught.value.filename) == (errno.EINVAL, stage, "7")
        assert "not mapped" in str(caught.value.hint)


@needs_root
async def test_groups_that_are_not_mapped() -> None:
    ranges = Maps(uid=(0, 200000, 10), gid=(0, 200000, 10), setgroups="allow")
    assert await said(["id", "-G"], user=ranges, groups=[9]) == "0 9\n"
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["true"], user=ranges, groups=[9, 10])
    assert (caught.value.errno, caught.value.stage) == (errno.EINVAL, "setgroups")
    assert "not mapped" in str(caught.value.hint)


async def test_it_cannot_be_mapped_again() -> None:
    async with linx.spawn(SLEEP, user=user.root_map()) as s:
        with pytest.raises(PermissionError):
            user.set_uid_map(s, (1, ME, 1))


async def test_as_plain_data() -> None:
    workload = linx.Workload(["id", "-u"], user=Maps(uid=(5, ME, 1), gid=(5, MY_GROUP, 1)))
    done = await linx.run(linx.Workload.from_dict(workload.to_dict()), capture_stdout=True)
    assert done.stdout == b"5\n"


# ---- ranges ------------------------------------------------------------------------------------------------------


async def test_who_has_no_id_inside_is_root_there() -> None:
    """While it is parked already: so what it mounts and makes is root's."""
    maps = wide()
    uid, gid = first(maps)
    async with linx.spawn(SLEEP, user=maps) as s:
        assert user.read_uid_map(s) == [(0, uid, 1000)]
        assert user.read_gid_map(s) == [(0, gid, 1000)]
        assert ids_of(s)[:2] == ({str(uid)}, {str(gid)})
        assert proc(s.host_pid, "setgroups") == "deny\n"
        await s.proceed()
        assert ids_of(s)[:2] == ({str(uid)}, {str(gid)})


async def test_ids_and_groups_inside() -> None:
    maps = wide(setgroups="allow")
    uid, gid = first(maps)
    async with linx.spawn(SLEEP, user=maps, uid=5, gid=7, groups=[1, 2]) as s:
        await s.proceed()
        assert ids_of(s) == ({str(uid + 5)}, {str(gid + 7)}, [str(gid + 1), str(gid + 2)])
    assert await said(["id", "-G"], user=maps, uid=5, gid=7, groups=[]) == "7\n"
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["true"], user=wide(), groups=[1])
    assert (caught.value.errno, caught.value.stage) == (errno.EPERM, "setgroups")


async def test_the_own_id_and_a_range() -> None:
    """What `podman unshare` does: root is who we are, the others are granted ones."""
    maps = wide()
    uid, gid = first(maps)
    both = Maps(uid=[(0, ME, 1), (1, uid, 999)], gid=[(0, MY_GROUP, 1), (1, gid, 999)])
    async with linx.spawn(SLEEP, user=both) as s:
        assert ids_of(s)[:2] == ({str(ME)}, {str(MY_GROUP)})
        assert user.read_uid_map(s) == [(0, ME, 1), (1, uid, 999)]
    assert await said(["id", "-u"], user=both, uid=77) == "77\n"


async def test_a_range_without_a_root() -> None:
    """Nobody becomes anybody: there is none whom the caller could be."""
    uid, gid = first(wide())
    async with linx.spawn(SLEEP, user=Maps(uid=(10, uid, 10), gid=(10, gid, 10)), uid=12, gid=13) as s:
        await s.proceed()
        assert ids_of(s)[:2] == ({str(uid + 2)}, {str(gid + 3)})


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Open to everybody, with all above it: unlike pytest's."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        yield Path(directory)


@needs_busybox
async def test_with_mounts(open_directory: Path) -> None:
    """What is made in there belongs to the root of that namespace."""
    maps = wide()
    touch = ["/bin/busybox", "touch", "/mnt/file"]
    await linx.run(touch, user=maps, namespaces={"pid"}, mounts=[Bind(open_directory, "/mnt")])
    status = os.stat(open_directory / "file")
    assert (status.st_uid, status.st_gid) == first(maps)


async def test_auto_proceed_and_run(frames: list[int]) -> None:
    async with linx.spawn(SLEEP, user=wide(), auto_proceed=True) as s:
        assert s.state == "running"
        assert s.ran
    assert await said(["id", "-u"], user=wide()) == "0\n"


async def test_many_at_once() -> None:
    maps = wide()
    uids: list[set[str]] = []

    async def one() -> None:
        async with linx.spawn(SLEEP, user=maps) as s:
            uids.append(ids_of(s)[0])

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert uids == [{str(first(maps)[0])}] * 20


# ---- before the maps are written ---------------------------------------------------------------------------------


async def reached(gate: Gate) -> None:
    await eventually_async(gate.is_reached.is_set, "the maps are about to be written")


async def test_not_ready_before(gate: Gate) -> None:
    async with linx.spawn(SLEEP, user=wide(), namespaces={"mount"}, wait_ready=False) as s:
        await reached(gate)
        assert s.state == "starting"
        assert s.host_pid > 0
        with pytest.raises(linx.NotReady):
            user.set_uid_map(s, (0, ME, 1))
        with pytest.raises(linx.NotReady):
            await linx.mount.umount(s, "/mnt")
        assert user.read_uid_map(s.host_pid) == []
        events = s.events()
        gate.open.set()
        assert await anext(events) == linx.Ready(s.host_pid)
        assert s.state == "ready"
        assert user.read_uid_map(s) != []


async def test_proceed_before(gate: Gate) -> None:
    async with linx.spawn(SLEEP, user=wide(), wait_ready=False) as s:
        await reached(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.proceed)
            await trio.testing.wait_all_tasks_blocked()
            assert s.state == "starting"
            gate.open.set()
        assert s.state == "running"
        assert ids_of(s)[0] == {str(first(wide())[0])}


async def test_abort_before(gate: Gate) -> None:
    async with linx.spawn(SLEEP, user=wide(), wait_ready=False) as s:
        await reached(gate)
        with trio.fail_after(20):
            await s.abort()
        assert s.outcome == linx.Aborted()
        gate.open.set()
    assert not s.ran


async def test_proceed_and_abort_before(gate: Gate) -> None:
    """One of the two wins, and both learn which."""
    results: dict[str, str] = {}

    async def call(name: str, verb: Callable[[], Any]) -> None:
        try:
            await verb()
        except linx.StateError as exc:
            results[name] = type(exc).__name__
        else:
            results[name] = "won"

    async with linx.spawn(SLEEP, user=wide(), wait_ready=False) as s:
        await reached(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "proceed", s.proceed)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(call, "abort", s.abort)
            await trio.testing.wait_all_tasks_blocked()
            gate.open.set()
    assert sorted(results.values()) in (["NoProcess", "won"], ["AlreadyRunning", "won"]), results


async def test_signals_before(gate: Gate) -> None:
    """They are kept, and delivered to what runs then."""
    options: dict[str, Any] = {"user": wide(), "auto_proceed": True, "wait_ready": False}
    async with linx.spawn(SLEEP, **options) as s:
        await reached(gate)
        s.signal(signal.SIGTERM)
        assert s.state == "starting"
        gate.open.set()
        assert await s.wait() == linx.Signaled(signal.SIGTERM)
        assert s.ran


async def test_killed_before(gate: Gate) -> None:
    async with linx.spawn(SLEEP, user=wide(), wait_ready=False) as s:
        await reached(gate)
        s.kill()
        assert await s.wait() in (linx.Signaled(9), linx.Aborted())
        gate.open.set()


async def test_killed_from_outside_before(gate: Gate) -> None:
    async with linx.spawn(SLEEP, user=wide(), wait_ready=False) as s:
        await reached(gate)
        os.kill(s.host_pid, signal.SIGKILL)
        with contextlib.suppress(linx.LinxError):
            await s.wait()
        gate.open.set()
    assert not s.ran


async def test_left_before(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """And the number of its pidfd becomes another one's: whose maps nobody writes."""
    async with linx.spawn(SLEEP, namespaces={"user"}) as other:
        async with linx.spawn(SLEEP, user=wide(), wait_ready=False) as s:
            await reached(gate)
            number = int(s.pidfd)
            threading.Timer(0.5, gate.open.set).start()
        os.dup2(other.pidfd, number)
        try:
            await trio.sleep(0.1)
            assert user.read_uid_map(other) == []
        finally:
            os.close(number)
    assert not s.ran
    assert caplog.records == []


async def test_left_while_all_threads_are_busy(caplog: pytest.LogCaptureFixture) -> None:
    """The maps are never written, and nobody else's for them."""
    async with linx.spawn(SLEEP, namespaces={"user"}) as other, busy_threads() as release:
        async with linx.spawn(SLEEP, user=wide(), wait_ready=False) as s:
            await eventually_async(lambda: exists_for(s), "it is there")
            await trio.testing.wait_all_tasks_blocked(0.05)
            number = int(s.pidfd)
        os.dup2(other.pidfd, number)
        try:
            release.set()
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert user.read_uid_map(other) == []
        finally:
            os.close(number)
    assert caplog.records == []


async def test_threads_that_wait_for_workloads() -> None:
    """All threads of the program may be waiting for workloads with maps: writing those takes none of them."""
    maps = wide()
    async with busy_threads():
        with trio.fail_after(20):
            assert await said(["id", "-u"], user=maps) == "0\n"


def exists_for(s: linx.Session) -> bool:
    try:
        return s.host_pid > 0
    except linx.NotReady:
        return False


@contextlib.asynccontextmanager
async def busy_threads() -> AsyncIterator[threading.Event]:
    """All that trio's default limiter allows."""
    await linx.run(["true"])  # a zygote is there
    release = threading.Event()
    async with trio.open_nursery() as nursery:
        try:
            for _ in range(int(trio.to_thread.current_default_thread_limiter().total_tokens)):
                nursery.start_soon(trio.to_thread.run_sync, release.wait, 60)
            await trio.testing.wait_all_tasks_blocked()
            yield release
        finally:
            release.set()


# ---- refused -----------------------------------------------------------------------------------------------------


@needs_root
async def test_what_the_kernel_refuses() -> None:
    lines = [(2 * i, 3000000000 + 2 * i, 1) for i in range(340)]
    async with linx.spawn(SLEEP, user=Maps(uid=lines, gid=(0, 0, 1)), wait_ready=False) as s:
        with pytest.raises(linx.SetupError) as caught:
            await s.wait()
        assert (caught.value.errno, caught.value.stage, s.state) == (errno.EINVAL, "uid_map", "failed")
        for verb in (s.proceed, s.abort):
            with pytest.raises(linx.NoProcess):
                await verb()


WITHOUT = """
import linx_trio.user
from linx_trio.user import Maps
os.environ["PATH"] = {path!r}
maps = Maps(uid={uid}, gid={gid})
async def main():
    refusals, events = [], []
    for options in ({{}}, {{"auto_proceed": True}}, {{"wait_ready": False}}):
        try:
            async with linx.spawn(["/bin/sleep", "600"], user=maps, **options) as s:
                events = [type(event).__name__ async for event in s.events()]
                await s.wait()
        except linx.SetupError as exc:
            refusals.append([exc.errno, exc.stage, exc.filename, exc.hint])
    with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
        zygotes = [zygote.pid for zygote in linx._agent.current()]
        left = [pid for pid in map(int, file.read().split()) if pid not in zygotes]
    return refusals, events, left
import linx_trio._agent
result = trio.run(main)
"""


def test_without_the_program() -> None:
    body = WITHOUT.format(path="/nonexistent", uid=(0, 100000, 10), gid=(0, 100000, 10))
    refusals, events, left = as_somebody(body)
    assert len(refusals) == 3
    for number, stage, thing, hint in refusals:
        assert (number, stage, thing) == (errno.EPERM, "gid_map", "0 100000 10")
        assert "newgidmap(1), which is not in PATH" in hint
        assert "uidmap" in hint
    assert events == ["Failed"]
    assert left == []


def test_refused_by_the_program() -> None:
    """For want of a grant, or of anything else: it says so itself."""
    body = WITHOUT.format(path="/usr/bin:/bin", uid=(0, 4000000000, 10), gid="(0, os.getegid(), 1)")
    refusals, events, left = as_somebody(body)
    assert [refusal[:3] for refusal in refusals] == [[errno.EPERM, "uid_map", "0 4000000000 10"]] * 3
    assert all("/etc/subuid" in refusal[3] for refusal in refusals)
    assert (events, left) == (["Failed"], [])


SLOW = """
import time, tempfile
import linx_trio.user
from linx_trio.user import Maps
import trio.testing
directory = tempfile.mkdtemp()
os.environ["PATH"] = directory + ":/usr/bin:/bin"
for name in ("newuidmap", "newgidmap"):
    with open(f"{directory}/{name}", "w") as file:
        file.write(f"#!/bin/sh\\ncd {directory}; echo $$ >new; mv new pid; exec sleep 600\\n")
    os.chmod(f"{directory}/{name}", 0o755)

async def program():
    with trio.fail_after(30):
        while not os.path.exists(f"{directory}/pid"):
            await trio.sleep(0.01)
    return int(open(f"{directory}/pid").read())

async def spawned(task_status=trio.TASK_STATUS_IGNORED):
    with trio.CancelScope() as scope:
        task_status.started(scope)
        async with linx.spawn(["/bin/sleep", "600"], user=Maps(uid=(0, 100000, 10), gid=(0, 100000, 10))) as s:
            pass

async def main():
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(spawned)
        pid = await program()
        begun = time.monotonic()
        scope.cancel()
    return scope.cancelled_caught, os.path.exists(f"/proc/{pid}"), time.monotonic() - begun

try:
    begun = time.monotonic()
    cancelled, is_left, seconds = trio.run(main)
    result = [cancelled, is_left, seconds, time.monotonic() - begun]
finally:
    import shutil
    shutil.rmtree(directory)
"""


def test_cancelled_while_the_program_runs() -> None:
    """A newuidmap that waits for a directory service: it ends with the session, and so does what waits for it."""
    cancelled, is_left, seconds, whole = as_somebody(SLOW)
    assert cancelled
    assert not is_left
    assert seconds < 15
    assert whole < 25
