"""`Cgroup` against the kernel: made, looked at, frozen, killed, waited for, delegated, and removed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio import _agent, _cgroup_end, _cgroup_group
from linx_trio import _cgroup_files as files
from linx_trio.cgroup import Cgroup, Events
from linx_trio.errors import Hint
from tests.privileged.groups import MOUNTS, is_there, needs_v2, subtree_control
from tests.privileged.groups import as_before as as_before
from tests.support import DEADLINE, descendants_of, eventually_async, open_fds

pytestmark = [needs_v2, pytest.mark.usefixtures("as_before")]

SLEEP = ["sleep", "600"]
BUSY = ["sh", "-c", "while :; do :; done"]
FAMILY = ["sh", "-c", "sleep 600 & (setsid sleep 600 &) ; echo; exec sleep 600"]
NOBODY = 40321

has_hugetlb = pytest.mark.skipif(
    not MOUNTS or "hugetlb" not in Path(MOUNTS[0], "cgroup.controllers").read_text().split(),
    reason="needs root, and the hugetlb controller in the v2 hierarchy",
)


def text(group: Cgroup, file: str) -> str:
    return Path(group.path, file).read_text().strip()


# ---- made and removed ------------------------------------------------------------------------------------------------


async def test_a_group_is_there_for_its_block() -> None:
    async with Cgroup.create("linx-test") as group:
        assert is_there(group.path)
        assert (group.name, group.path) == ("linx-test", f"{MOUNTS[0]}/linx-test")
        assert not group.stats().populated
        assert group.members() == []
    assert not is_there(group.path)
    with pytest.raises(ValueError, match="destroyed"):
        group.stats()
    group.destroy()  # no effect


async def test_a_path_and_a_parent() -> None:
    async with Cgroup.create(f"{MOUNTS[0]}/linx-a") as a, Cgroup.create("b", parent=a) as b:
        assert b.path == f"{a.path}/b"
        async with Cgroup.create(b.path.encode() + b"/c") as c, Cgroup.create("d", parent=c.path) as d:
            assert d.path == f"{a.path}/b/c/d"


async def test_what_was_made_below_goes_with_it() -> None:
    async with Cgroup.create("linx-test") as group:
        os.makedirs(f"{group.path}/x/y/z")
        os.mkdir(f"{group.path}/x/w")
        async with linx.spawn(SLEEP, cgroup=f"{group.path}/x/y", auto_proceed=True) as s:
            group.destroy()
            assert not is_there(group.path)
            assert await s.wait() == linx.Signaled(9)


@pytest.mark.parametrize("how", ["end", "exception", "cancelled"])
async def test_whoever_lives_in_it_is_killed(how: str) -> None:
    async with linx.spawn(FAMILY, stdout=linx.PIPE, auto_proceed=True) as s:
        with trio.CancelScope() as scope, contextlib.suppress(KeyError):
            async with Cgroup.create("linx-test") as group:
                assert s.stdout is not None
                await s.stdout.receive_some()
                for pid in [*descendants_of(s.host_pid), s.host_pid]:
                    group.add(pid)
                assert len(group.members()) > 1
                if how == "exception":
                    raise KeyError("the body's")
                if how == "cancelled":
                    scope.cancel()
                    await trio.sleep_forever()
        assert not is_there(f"{MOUNTS[0]}/linx-test")
        assert await s.wait() == linx.Signaled(9)


async def test_a_frozen_group_is_destroyed() -> None:
    async with linx.spawn(BUSY, auto_proceed=True) as s, Cgroup.create("linx-test") as group:
        group.add(s)
        group.freeze()
        await group.wait_frozen()
        group.destroy()
        assert await s.wait() == linx.Signaled(9)


async def test_its_end_does_not_hold_up_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who takes a while to go stands for a large core dump: the thread waits, and trio does not."""
    real, calls = _cgroup_end.kill, itertools.count()
    monkeypatch.setattr(_cgroup_end, "kill", lambda place: next(calls) > 1 and real(place))
    turns = 0

    async def count(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        nonlocal turns
        task_status.started()
        while True:
            await trio.sleep(0.01)
            turns += 1

    async with linx.spawn(SLEEP, auto_proceed=True) as s, trio.open_nursery() as nursery:
        await nursery.start(count)
        async with Cgroup.create("linx-test") as group:
            group.add(s)
        assert turns > 1
        nursery.cancel_scope.cancel()


async def test_a_name_that_is_taken() -> None:
    async with Cgroup.create("linx-test"):
        with pytest.raises(linx.SetupError) as refused:
            async with Cgroup.create("linx-test"):
                pass
    assert (refused.value.errno, refused.value.stage) == (errno.EEXIST, "cgroup")
    assert refused.value.filename == f"{MOUNTS[0]}/linx-test"
    assert "Cgroup.open" in str(refused.value.hint)


async def test_one_that_cannot_be_limited_is_not_left() -> None:
    limits = linx.Limits(io={"/dev/null": {"rbps": 1}})
    with pytest.raises(linx.SetupError) as refused:
        async with Cgroup.create("linx-test", limits=limits):
            pass
    assert refused.value.stage == "cgroup"
    assert not is_there(f"{MOUNTS[0]}/linx-test")


async def test_opened_it_stays(tmp_path: Path) -> None:
    async with Cgroup.create("linx-test") as group:
        for name in ("linx-test", group.path):
            with Cgroup.open(name) as again:
                assert again.path == group.path
                assert again.stats() == group.stats()
            assert is_there(group.path)


@pytest.mark.parametrize(
    ("path", "number", "word"),
    [
        ("/sys/fs/cgroup/linx-none", errno.ENOENT, MOUNTS[0] if MOUNTS else ""),
        ("linx-none", errno.ENOENT, "no such cgroup"),
        ("/tmp", errno.EINVAL, "version 2"),
        ("/etc/passwd", errno.ENOTDIR, "directory"),
        ("/sys/fs/cgroup/memory", errno.EINVAL, "version 2"),
    ],
)
async def test_what_is_no_v2_cgroup(path: str, number: int, word: str) -> None:
    if not is_there(path) and number == errno.EINVAL:
        pytest.skip("needs root, and a cgroup v1 hierarchy beside")
    for open_it in (lambda: Cgroup.open(path), lambda: linx.run_sync(["true"], cgroup=path)):
        with pytest.raises(linx.SetupError) as refused:
            await trio.to_thread.run_sync(open_it)
        assert (refused.value.errno, refused.value.stage) == (number, "cgroup")
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("",), {}, ValueError), (("..",), {}, ValueError), ((5,), {}, TypeError), (("/",), {}, ValueError),
        (("/a",), {"parent": "/b"}, ValueError), (("a",), {"parent": 5}, TypeError),
        (("a",), {"limits": {}}, TypeError),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Cgroup.create(*arguments, **options)


async def test_it_is_no_baggage() -> None:
    async with Cgroup.create("linx-test") as group:
        with pytest.raises(TypeError, match="path"):
            pickle.dumps(group)
        assert linx.Workload(["x"], cgroup=group).to_dict() == {"argv": ["x"], "cgroup": group.path}


# ---- frozen, killed, waited for --------------------------------------------------------------------------------------


async def test_freeze_and_thaw() -> None:
    async with Cgroup.create("linx-test") as group, linx.spawn(BUSY, cgroup=group, auto_proceed=True) as s:
        await eventually_async(lambda: group.stats().cpu_time > 0, "it uses the CPU")
        group.freeze()
        with trio.fail_after(DEADLINE):
            await group.wait_frozen()
        assert group.stats().frozen
        used = group.stats().cpu_time
        for _ in range(20):
            os.sched_yield()
        assert group.stats().cpu_time == used
        group.thaw()
        await eventually_async(lambda: group.stats().cpu_time > used, "it goes on")
        assert s.state == "running"


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("old_kernel", [False, True])
async def test_kill(frozen: bool, old_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if old_kernel:  # before 5.14
        real = files.write

        def write(place: files.Place, name: str, value: bytes) -> None:
            if name == "cgroup.kill":
                raise FileNotFoundError(errno.ENOENT, name)
            real(place, name, value)

        monkeypatch.setattr(files, "write", write)
    made = Cgroup.create("linx-test")
    async with made as group, linx.spawn(FAMILY, cgroup=group, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdout is not None
        await s.stdout.receive_some()
        os.mkdir(f"{group.path}/below")
        with Cgroup.open(f"{group.path}/below") as below:
            below.add(s)
            assert len(group.members()) == 2
        if frozen:
            group.freeze()
            await group.wait_frozen()
        group.kill()
        with trio.fail_after(DEADLINE):
            assert await s.wait() == linx.Signaled(9)
            await group.wait_empty()
        assert group.members() == []


async def test_wait_empty_is_told_and_does_not_ask() -> None:
    async with Cgroup.create("linx-test") as group:
        await group.wait_empty()
        async with linx.spawn(["cat"], cgroup=group, stdin=linx.PIPE, auto_proceed=True) as s:
            assert s.stdin is not None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(group.wait_empty)
                nursery.start_soon(group.wait_empty)
                await trio.testing.wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 2
                await s.stdin.aclose()
            assert not group.stats().populated
        with trio.move_on_after(0) as scope:
            await group.wait_empty()
        assert scope.cancelled_caught


async def test_waiting_can_be_cancelled_and_leaves_nothing() -> None:
    async with Cgroup.create("linx-test") as group, linx.spawn(SLEEP, cgroup=group, auto_proceed=True):
        before = len(open_fds())
        for wait in (group.wait_empty, group.wait_frozen):
            with trio.move_on_after(0.01) as scope:
                await wait()
            assert scope.cancelled_caught
        assert len(open_fds()) == before


async def test_events() -> None:
    seen: list[Events] = []

    async def watch() -> None:
        async for state in group.events():
            seen.append(state)

    async def see(state: Events) -> None:
        await eventually_async(lambda: seen[-1:] == [state], f"it is told: {state}, after {seen}")

    async with trio.open_nursery() as nursery, Cgroup.create("linx-test") as group:
        nursery.start_soon(watch)
        await see(Events(populated=False, frozen=False))
        async with linx.spawn(SLEEP, cgroup=group, auto_proceed=True):
            await see(Events(populated=True, frozen=False))
            group.freeze()
            await see(Events(populated=True, frozen=True))
            group.thaw()
            await see(Events(populated=True, frozen=False))
        await see(Events(populated=False, frozen=False))
    assert len(seen) == 5  # and the iterator has ended with the group


# ---- who lives in it -------------------------------------------------------------------------------------------------


async def test_add() -> None:
    async with Cgroup.create("linx-test") as group:
        async with linx.spawn(SLEEP) as parked:
            group.add(parked)
            assert group.members() == [parked.host_pid]
            await parked.proceed()
            assert group.members() == [parked.host_pid]
        async with linx.spawn(SLEEP, auto_proceed=True) as one, linx.spawn(SLEEP, auto_proceed=True) as other:
            group.add(one.host_pid)
            group.add(other.pidfd)
            assert set(group.members()) == {one.host_pid, other.host_pid}
            assert parked.state == "signaled" or parked.state == "aborted"


async def test_who_cannot_be_added() -> None:
    async with Cgroup.create("linx-test") as group:
        async with linx.spawn(["true"], auto_proceed=True) as s:
            await s.wait()
            with pytest.raises(linx.NoProcess):
                group.add(s)
            with pytest.raises(linx.SetupError) as gone:
                group.add(s.pidfd)
            assert gone.value.errno == errno.ESRCH
        with pytest.raises(linx.SetupError) as nobody:
            group.add(2**22 - 1)
        assert (nobody.value.errno, nobody.value.filename) == (errno.ESRCH, f"{group.path}/cgroup.procs")
        for wrong, error in ((0, ValueError), (-1, ValueError), (True, TypeError), ("1", TypeError), (None, TypeError)):
            with pytest.raises(error, match="target"):
                group.add(wrong)
        with select.epoll() as no_pidfd, pytest.raises(ValueError, match="pidfd"):
            group.add(no_pidfd)


# ---- limits ----------------------------------------------------------------------------------------------------------


@has_hugetlb
async def test_a_controller_is_enabled_along_the_path() -> None:
    async with Cgroup.create("linx-a") as a, Cgroup.create("b", parent=a) as b, Cgroup.create("c", parent=b) as c:
        assert "hugetlb" not in text(c, "cgroup.controllers")
        c.set_hugetlb_max("2MB", "4M")
        assert text(c, "hugetlb.2MB.max") == str(4 << 20)
        assert "hugetlb" in subtree_control(b.path) & subtree_control(a.path) & subtree_control(MOUNTS[0])
        c.set_hugetlb_max("2MB", "max")
        assert text(c, "hugetlb.2MB.max") == "max"


@has_hugetlb
async def test_no_internal_processes() -> None:
    async with Cgroup.create("linx-a") as a:
        b = await _cgroup_group.make("b", a, None)
        async with linx.spawn(SLEEP, cgroup=a, auto_proceed=True) as s:
            with pytest.raises(linx.SetupError) as busy:
                b.set_hugetlb_max("2MB", 0)
            assert (busy.value.errno, busy.value.filename) == (errno.EBUSY, f"{a.path}/cgroup.subtree_control")
            assert "no internal processes" in str(busy.value.hint)
            b.add(s)
            b.set_hugetlb_max("2MB", 0)
            with pytest.raises(linx.SetupError) as full:
                a.add(s)
            assert (full.value.errno, full.value.filename) == (errno.EBUSY, f"{a.path}/cgroup.procs")
            with pytest.raises(linx.SetupError) as inner:
                await linx.run(["true"], cgroup=a)
            assert (inner.value.errno, inner.value.stage, inner.value.filename) == (errno.EBUSY, "cgroup", a.path)
        b.destroy()


@has_hugetlb
async def test_limits_for_a_group() -> None:
    async with Cgroup.create("linx-a", limits=linx.Limits(hugetlb={"2MB": "6M"})) as group:
        assert text(group, "hugetlb.2MB.max") == str(6 << 20)
        with pytest.raises(linx.SetupError) as refused:
            group.set_hugetlb_max("4KB", 5)
        assert (refused.value.errno, refused.value.filename) == (errno.ENOENT, f"{group.path}/hugetlb.4KB.max")


def is_bound_to_v1(controller: str) -> bool:
    lines = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()[1:]]
    return any(fields[0] == controller and fields[1] != "0" for fields in lines)


@pytest.mark.skipif(not is_bound_to_v1("memory"), reason="needs root, and the memory controller bound to cgroup v1")
async def test_a_controller_that_is_bound_to_v1() -> None:
    async with Cgroup.create("linx-test") as group:
        limits: tuple[tuple[Callable[[], None], str], ...] = (
            (lambda: group.set_memory_max("64M"), "memory.max"),
            (lambda: group.set_memory_high("64M"), "memory.high"),
            (lambda: group.set_swap_max(0), "memory.swap.max"),
            (lambda: group.set_oom_group(True), "memory.oom.group"),
            (lambda: group.set_pids_max(5), "pids.max"),
            (lambda: group.set_cpu_max(50_000), "cpu.max"),
            (lambda: group.set_cpu_weight(50), "cpu.weight"),
            (lambda: group.set_cpuset("0"), "cpuset.cpus"),
            (lambda: group.set_io_max("8:0", rbps="1M"), "io.max"),
        )
        for limit, file in limits:
            with pytest.raises(FileNotFoundError) as refused:
                limit()
            assert isinstance(refused.value, linx.SetupError)
            assert (refused.value.stage, refused.value.filename) == ("cgroup", f"{group.path}/{file}")
            assert isinstance(refused.value.hint, Hint)
            assert refused.value.hint.cause == "controller-on-v1"
            assert "bound to cgroup v1" in str(refused.value.hint)
            assert "cgroup_no_v1=all" in str(refused.value.hint)


async def test_wrong_limits_are_refused_before_the_kernel_is_asked() -> None:
    async with Cgroup.create("linx-test") as group:
        limits: tuple[tuple[Callable[[], None], str], ...] = (
            (lambda: group.set_memory_max("lots"), "memory_max='lots'"),
            (lambda: group.set_pids_max(-1), "pids_max=-1"),
            (lambda: group.set_cpu_max(5), "quota=5"),
            (lambda: group.set_cpu_max(5000, 5), "period=5"),
            (lambda: group.set_cpu_weight(0), "cpu_weight=0"),
            (lambda: group.set_cpuset("x"), "cpuset='x'"),
            (lambda: group.set_io_max("sda", rbps=1), "device='sda'"),
            (lambda: group.set_hugetlb_max("2M", 1), "page_size='2M'"),
        )
        for limit, word in limits:
            with pytest.raises(ValueError, match=word):
                limit()


# ---- whose it is -----------------------------------------------------------------------------------------------------


async def test_delegation() -> None:
    """What ``cgroups(7)`` promises to the user it was given to, and no more."""
    script = """
        set -e; cd "$1"
        mkdir mine; echo $$ > mine/cgroup.procs; grep 0:: /proc/self/cgroup
        mkdir mine/too; rmdir mine/too
        (echo 5 > cgroup.max.depth) 2>/dev/null && echo "no: a limit of the group itself"
        (echo $$ > ../cgroup.procs) 2>/dev/null && echo "no: out of it"
        exit 0
    """
    async with Cgroup.create("linx-test") as group:
        os.mkdir(f"{group.path}/start")
        group.delegate(NOBODY, NOBODY)
        with Cgroup.open(f"{group.path}/start") as start:
            start.delegate(NOBODY, NOBODY)
        done = await linx.run(
            ["sh", "-c", script, "sh", group.path],
            uid=NOBODY,
            gid=NOBODY,
            cgroup=f"{group.path}/start",
            capture_stdout=True,
        )
        assert done.stdout.decode().split() == [f"0::/{group.name}/mine"]
        assert os.stat(f"{group.path}/mine").st_uid == NOBODY
        assert os.stat(f"{group.path}/cgroup.max.depth").st_uid == 0
        for wrong, error in ((-2, ValueError), (True, TypeError), ("root", TypeError)):
            with pytest.raises(error, match="uid"):
                group.delegate(wrong)  # type: ignore[arg-type]


OWN_GROUP = """
import os, sys
import trio
import linx_trio as linx
from linx_trio import _agent, _cgroup_files, _own_cgroup, cgroup  # later this user may not read them any more

async def main():
    if sys.argv[1] != "0":
        os.setresgid(int(sys.argv[1]), int(sys.argv[1]), int(sys.argv[1]))
        os.setresuid(int(sys.argv[1]), int(sys.argv[1]), int(sys.argv[1]))
    home = _cgroup_files.own()
    limits = linx.Limits(hugetlb={"2MB": "2M"}) if sys.argv[2] == "limits" else None
    try:
        async with linx.cgroup.Cgroup.create("inner", limits=limits) as group:
            print(os.path.relpath(group.path, home), os.path.relpath(_cgroup_files.own(), home))
            async with linx.cgroup.Cgroup.create("again", limits=limits) as again:
                print(os.path.relpath(again.path, home))
            if os.access(_agent.agent_path(), os.X_OK):
                async with linx.spawn(["sleep", "600"], limits=limits or linx.Limits(), auto_proceed=True) as s:
                    print(os.path.relpath(os.path.dirname(s.cgroup.path), home), s.containment)
                    for name in ("inner", s.cgroup.path):
                        await linx.run(["true"], cgroup=name)
                print(os.path.exists(s.cgroup.path), s.outcome)
    except linx.SetupError as exc:
        print(exc.errno, exc.filename and os.path.relpath(exc.filename, home))

trio.run(main)
"""


def python_in(group: str, uid: int, what: str, **options: Any) -> list[str]:
    done = linx.run_sync(
        [sys.executable, "-c", OWN_GROUP, str(uid), what],
        cgroup=group,
        capture_stdout=True,
        env=environment(),
        **options,
    )
    return done.stdout.decode().splitlines()


def sessions(uid: int) -> list[str]:
    """What it says of those that it started, if its user may read the agent where this tree lies."""
    path = Path(_agent.agent_path())
    if uid != 0 and not all(part.stat().st_mode & 1 for part in (path, *path.parents)):
        return []
    return [". cgroup", "False Signaled(signum=9, core_dumped=False)"]


def environment() -> dict[str, str]:
    root = Path(linx.__file__).parent.parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}


@has_hugetlb
@pytest.mark.parametrize("uid", [0, NOBODY])
async def test_a_process_makes_room_in_a_group_of_its_own(uid: int) -> None:
    """With controllers for its children the group cannot have processes: so it moves into a leaf, once."""
    async with Cgroup.create("linx-test", limits=linx.Limits(hugetlb={"2MB": "8M"})) as group:
        group.delegate(uid, uid)
        lines = await trio.to_thread.run_sync(python_in, group.path, uid, "limits")
        assert lines[:2] == ["inner linx.self", "again"]
        assert lines[2:] == sessions(uid)
        assert os.listdir(f"{group.path}/linx.self")


@has_hugetlb
async def test_strangers_are_not_moved() -> None:
    async with Cgroup.create("linx-test", limits=linx.Limits(hugetlb={"2MB": "8M"})) as group:
        group.delegate(NOBODY, NOBODY)
        async with linx.spawn(SLEEP, cgroup=group, auto_proceed=True) as stranger:
            lines = await trio.to_thread.run_sync(python_in, group.path, NOBODY, "limits")
            assert lines == [f"{errno.EBUSY} cgroup.subtree_control"]
            assert group.members() == [stranger.host_pid]
            assert files.children(group.fileno()) == []


async def test_a_user_whose_group_is_somebody_elses() -> None:
    async with Cgroup.create("linx-test") as group:
        lines = await trio.to_thread.run_sync(python_in, group.path, NOBODY, "nothing")
        assert lines == [f"{errno.EACCES} ."]


async def test_without_controllers_nobody_has_to_move() -> None:
    async with Cgroup.create("linx-test") as group:
        group.delegate(NOBODY, NOBODY)
        lines = await trio.to_thread.run_sync(python_in, group.path, NOBODY, "nothing")
        assert lines[:2] == ["inner .", "again"]
        assert lines[2:] == sessions(NOBODY)


async def test_a_process_that_cannot_be_killed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who is not killed stands for one in uninterruptible sleep. The keeper goes on trying."""
    monkeypatch.setattr(_cgroup_end, "kill", lambda place: None)
    monkeypatch.setattr(_cgroup_group, "DESTROY_SECONDS", 0.05)
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        with pytest.raises(linx.SetupError) as stuck:
            async with Cgroup.create("linx-test") as group:
                group.add(s)
        assert (stuck.value.errno, stuck.value.filename) == (errno.EBUSY, f"{MOUNTS[0]}/linx-test")
        assert await s.wait() == linx.Signaled(9)
    await eventually_async(lambda: not is_there(f"{MOUNTS[0]}/linx-test"), "the keeper has removed it")


def test_a_group_outside_of_trio() -> None:
    os.mkdir(f"{MOUNTS[0]}/linx-test")
    group = Cgroup.open("linx-test")
    with subprocess.Popen(SLEEP) as process:
        group.add(process.pid)
        group.destroy()
        assert process.wait(DEADLINE) == -signal.SIGKILL
