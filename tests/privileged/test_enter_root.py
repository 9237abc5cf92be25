"""What root alone can enter: containers without a user namespace, other people's, those of mixed owners; cgroups."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio import _cgroups
from tests.agent.containers import KINDS, REAPING_INIT, below, container, is_untouched, monitor_above, reapers_of
from tests.agent.probes import ROOT, SOMEBODY, as_somebody, link, needs_root, proc, status_of
from tests.agent.programs.phases import FAMILY, family, line_of
from tests.agent.test_enter import ask, joined, namespaces_of
from tests.support import eventually, eventually_async, name_of

pytestmark = needs_root

SLEEP = ["sleep", "1000"]

# ---- without a user namespace ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [{"net"}, {"pid", "mount"}, {"uts", "ipc", "time"}, set(KINDS - {"user"})], ids=str)
async def test_containers_of_the_hosts_own_user(kinds: set[str]) -> None:
    """Root stays root, with all that it may do: there is nobody else to become."""
    async with container(kinds) as target:
        async with linx.enter(target, SLEEP) as s:
            assert joined(s, target.host_pid) == kinds
            await s.proceed()
            assert joined(s, target.host_pid) == kinds
            ours, theirs = status_of(os.getpid()), status_of(s.host_pid)
            for field in ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "CapAmb"):
                assert theirs[field] == ours[field]
        assert is_untouched(target)


@pytest.mark.parametrize("kind", sorted(KINDS - {"user"}))
async def test_one_kind_of_many(kind: str) -> None:
    async with container(KINDS - {"user"}) as target:
        async with linx.enter(target, SLEEP, namespaces={kind}) as s:
            await s.proceed()
            assert joined(s, target.host_pid) == {kind}
        assert is_untouched(target)


async def test_nothing_is_left_there(nothing_is_left: str) -> None:
    async with container({"pid", "mount", "net"}) as target:
        before = below()
        async with linx.enter(target, family(*FAMILY), stdout=linx.PIPE) as s:
            await s.proceed()
            await line_of(s)
        assert below() == before
        assert is_untouched(target)


async def test_ids_are_the_hosts() -> None:
    async with container({"net", "pid"}) as target:
        async with linx.enter(target, SLEEP, uid=SOMEBODY, gid=SOMEBODY, groups=[7]) as s:
            await s.proceed()
            status = status_of(s.host_pid)
            assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(SOMEBODY)}
            assert status["Groups"].split() == ["7"]
            assert int(status["CapEff"], 16) == 0
        assert is_untouched(target)


async def test_what_is_parked_inside_can_be_entered_too() -> None:
    async with container(KINDS - {"user"}) as target, linx.enter(target, SLEEP) as first:
        assert first.state == "ready"
        async with linx.enter(first, SLEEP) as second:
            await second.proceed()
            assert joined(second, target.host_pid) == KINDS - {"user"}
        assert first.state == "ready"


# ---- user namespaces -------------------------------------------------------------------------------------------------


def map_ids(pid: int, inside: int, outside: int, count: int) -> None:
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"{inside} {outside} {count}")


@contextlib.asynccontextmanager
async def mapped(inside: int, outside: int, count: int) -> AsyncIterator[linx.Session]:
    async with linx.spawn(REAPING_INIT, namespaces=KINDS, stdio=linx.DEVNULL, env={}) as session:
        map_ids(session.host_pid, inside, outside, count)
        await session.proceed()
        yield session
        assert session.state == "running"


def outer_ids(pid: int) -> tuple[set[str], set[str], list[str]]:
    status = status_of(pid)
    return set(status["Uid"].split()), set(status["Gid"].split()), status["Groups"].split()


async def test_root_becomes_root_inside() -> None:
    """Which is an ordinary id of the host's; or another one that is asked for, by its number inside."""
    async with mapped(0, 300000, 65536) as target:
        async with linx.enter(target, SLEEP) as s:
            assert outer_ids(s.host_pid) == ({"300000"}, {"300000"}, [])
            await s.proceed()
            assert outer_ids(s.host_pid) == ({"300000"}, {"300000"}, [])
        async with linx.enter(target, SLEEP, uid=5, gid=6, groups=[7]) as s:
            await s.proceed()
            assert outer_ids(s.host_pid) == ({"300005"}, {"300006"}, ["300007"])
        assert await ask(target, "id -u; id -g") == "0\n0\n"


async def test_where_there_is_no_root_inside() -> None:
    async with mapped(1000, 300000, 10) as target:
        async with linx.enter(target, SLEEP) as s:
            await s.proceed()
            assert outer_ids(s.host_pid)[0] == {"0"}, "it stays who it is"
        async with linx.enter(target, SLEEP, uid=1001, gid=1002) as s:
            await s.proceed()
            assert outer_ids(s.host_pid)[:2] == ({"300001"}, {"300002"})
        async with linx.enter(target, SLEEP, uid=0) as s:
            with pytest.raises(linx.SetupError) as raised:
                await s.proceed()
        assert (raised.value.errno, raised.value.stage) == (errno.EINVAL, "setuid")


@pytest.mark.parametrize("own", ["", "--mount", "--mount --pid --fork", "--uts"])
async def test_namespaces_of_the_host_in_somebodys_user_namespace(own: str) -> None:
    """The network and the ipc are the host's own user's. Whoever has joined the container's user namespace may not join
    them any more; so that one comes last.
    """
    outer = {"net", "ipc"}
    script = f"unshare --user --map-root-user {own} sh -c 'echo up; exec sleep 1000'"
    async with linx.spawn(["sh", "-c", script], namespaces=outer, stdout=linx.PIPE) as container_:
        await container_.proceed()
        assert container_.stdout is not None
        assert await container_.stdout.receive_some(100) == b"up\n"
        await eventually_async(lambda: sleeper(), "it has executed")
        target = sleeper()[0]
        kinds = {*outer, "user", *(word[2:] for word in own.split() if word != "--fork")}
        for asked in (None, kinds, {"net", "user"}):
            async with linx.enter(target, SLEEP, namespaces=asked) as s:
                await s.proceed()
                assert joined(s, target) == (asked or kinds)


def sleeper() -> list[int]:
    ours = namespaces_of("self")["user"]
    return [pid for pid in below() if name_of(pid) == "sleep" and link(pid, "ns/user") != ours]


async def test_another_users_container(tmp_path: Path) -> None:
    """One that an ordinary user has made: root inside is that user."""
    script = "unshare --user --map-root-user --net --uts sh -c 'hostname theirs; echo up; exec sleep 1000'"
    options: dict[str, Any] = {"uid": SOMEBODY, "gid": SOMEBODY, "cwd": "/"}
    async with linx.spawn(["sh", "-c", script], stdout=linx.PIPE, **options) as made:
        await made.proceed()
        assert made.stdout is not None
        assert await made.stdout.receive_some(100) == b"up\n"
        await eventually_async(lambda: sleeper(), "it has executed")
        (target,) = sleeper()
        async with linx.enter(target, SLEEP) as s:
            await s.proceed()
            assert outer_ids(s.host_pid)[:2] == ({str(SOMEBODY)}, {str(SOMEBODY)})
            assert joined(s, target) == {"user", "net", "uts"}
        assert await ask(target, "uname -n; id -u") == "theirs\n0\n"


# ---- cgroups ---------------------------------------------------------------------------------------------------------


def own_directory() -> Path:
    """Where our own v2 cgroup is, by mountinfo."""
    path = _cgroups.path_of(Path("/proc/self/cgroup").read_bytes())
    if path is None:
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    found = _cgroups.directories_of(path, Path("/proc/self/mountinfo").read_bytes())
    if not found:
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    return Path(os.fsdecode(found[0]))


@pytest.fixture
def group() -> Iterator[Path]:
    """A new cgroup below our own; it must be empty in the end."""
    directory = own_directory() / f"linx-test-{uuid.uuid4().hex}"
    directory.mkdir()
    try:
        yield directory
    finally:
        (directory / "cgroup.freeze").write_text("0")
        eventually(lambda: (directory / "cgroup.procs").read_text() == "", "nobody is left in the cgroup")
        directory.rmdir()


def members(group: Path) -> set[int]:
    """As the kernel lists them; those of other PID namespaces too."""
    return set(map(int, (group / "cgroup.procs").read_text().split()))


def v2_of(pid: int | str) -> str:
    return next(line[3:] for line in proc(pid, "cgroup").splitlines() if line.startswith("0::"))


def move(pid: int, group: Path) -> None:
    (group / "cgroup.procs").write_text(str(pid))


CONTAINERS = [set(), {"pid"}, {"cgroup", "net"}, {"user", "pid", "mount"}, set(KINDS)]


@pytest.mark.parametrize("kinds", CONTAINERS, ids=lambda kinds: "+".join(sorted(kinds)) or "none")
async def test_it_is_born_in_the_targets_cgroup(kinds: set[str], group: Path) -> None:
    """The workload, and whoever belongs to it in there; the monitor stays where it is."""
    async with container(kinds) as target:
        move(target.host_pid, group)
        async with linx.enter(target, SLEEP) as s:
            assert v2_of(s.host_pid) == v2_of(target.host_pid) != v2_of("self")
            expected = {target.host_pid, s.host_pid}
            if "pid" in kinds:
                expected |= set(reapers_of(s.host_pid))
            assert members(group) == expected
            assert v2_of(monitor_above(s.host_pid)) == v2_of("self")
            await s.proceed()
            assert members(group) == expected
        assert members(group) == {target.host_pid}


@pytest.mark.parametrize("kinds", [set(), {"pid"}, set(KINDS)], ids=lambda kinds: "+".join(sorted(kinds)) or "none")
async def test_unless_told_not_to(kinds: set[str], group: Path) -> None:
    async with container(kinds) as target:
        move(target.host_pid, group)
        async with linx.enter(target, SLEEP, join_cgroup=False) as s:
            assert v2_of(s.host_pid) == v2_of("self")
            await s.proceed()
            assert members(group) == {target.host_pid}


async def test_also_without_joining_any_namespace(group: Path) -> None:
    async with container({"net"}) as target:
        move(target.host_pid, group)
        async with linx.enter(target, SLEEP, namespaces=()) as s:
            await s.proceed()
            assert joined(s, target.host_pid) == set()
            assert members(group) == {target.host_pid, s.host_pid}


async def test_its_heirs_are_there_too(group: Path) -> None:
    async with container({"pid"}) as target:
        move(target.host_pid, group)
        async with linx.enter(target, family(*FAMILY), stdout=linx.PIPE) as s:
            await s.proceed()
            await line_of(s)
            assert len(members(group)) >= len(FAMILY)
        assert members(group) == {target.host_pid}


async def test_where_the_cgroup_is_our_own() -> None:
    async with container({"net"}) as target, linx.enter(target, SLEEP) as s:
        await s.proceed()
        assert v2_of(s.host_pid) == v2_of(target.host_pid) == v2_of("self")


async def test_a_cgroup_that_is_frozen_later(group: Path) -> None:
    """SIGKILL gets through: nothing holds up whoever leaves the block."""
    async with container({"pid", "net"}) as target:
        move(target.host_pid, group)
        async with linx.enter(target, family(*FAMILY), stdout=linx.PIPE) as s:
            await s.proceed()
            await line_of(s)
            await freeze(group)
        assert s.outcome == linx.Signaled(9)
        assert members(group) == {target.host_pid}
        (group / "cgroup.freeze").write_text("0")


async def freeze(group: Path) -> None:
    (group / "cgroup.freeze").write_text("1")
    await eventually_async(lambda: "frozen 1" in (group / "cgroup.events").read_text(), "it is frozen")


@pytest.mark.parametrize("kinds", [set(), {"pid", "net"}], ids=lambda kinds: "+".join(sorted(kinds)) or "none")
async def test_a_frozen_cgroup_is_entered_when_it_thaws(kinds: set[str], group: Path) -> None:
    """Until then there is nobody who could say that he is ready; giving up is always possible."""
    async with container(kinds) as target:
        move(target.host_pid, group)
        await freeze(group)
        before = below()
        with trio.move_on_after(0.3) as scope:
            async with linx.enter(target, SLEEP):
                pytest.fail("it is frozen")
        assert scope.cancelled_caught
        assert below() == before
        async with linx.enter(target, SLEEP, wait_ready=False) as s:
            await eventually_async(lambda: len(members(group)) == 2, "it is born there")
            assert s.state == "starting"
            (group / "cgroup.freeze").write_text("0")
            await s.proceed()
            assert joined(s, target.host_pid) == kinds


ENTER_PID = """
async def enter(**options):
    async with linx.enter({pid}, ["true"], **options) as s:
        await s.proceed()
        await s.wait()
        return s.returncode
result = [refusal_of(trio.run, enter), trio.run(lambda: enter(join_cgroup=False))]
"""


async def test_a_cgroup_that_may_not_be_joined(group: Path) -> None:
    async with linx.spawn(SLEEP, uid=SOMEBODY, gid=SOMEBODY, cwd="/") as target:
        await target.proceed()
        await eventually_async(lambda: name_of(target.host_pid) == "sleep", "it has executed")
        move(target.host_pid, group)
        code = ENTER_PID.format(pid=target.host_pid)
        told, code_without = await trio.to_thread.run_sync(as_somebody, code)
        assert (told["errno"], told["stage"]) == (errno.EACCES, "cgroup")
        assert "PermissionError" in told["classes"]
        assert told["filename"] == f"/proc/{target.host_pid}"
        assert "join_cgroup=False" in told["hint"]
        assert code_without == 0


UNREACHABLE = """
import os, sys, trio
import linx_trio as linx
async def main(pid):
    try:
        async with linx.enter(pid, ["true"]):
            pass
    except linx.SetupError as exc:
        print(exc.errno, exc.stage, exc.filename, "join_cgroup=False" in (exc.hint or ""))
    async with linx.enter(pid, ["true"], join_cgroup=False) as s:
        await s.proceed()
        print(await s.wait())
trio.run(main, int(sys.argv[1]))
"""


async def test_a_cgroup_that_no_mount_reaches(group: Path) -> None:
    async with container({"net"}) as target:
        move(target.host_pid, group)
        umount = 'umount $(findmnt -t cgroup2 -n -o TARGET) && exec "$@"'
        python = [sys.executable, "-c", UNREACHABLE, str(target.host_pid)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        done = await trio.run_process(
            ["unshare", "--mount", "sh", "-c", umount, "sh", *python],
            env=env,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        expected = f"{errno.ENOENT} cgroup {v2_of(target.host_pid)} True\nExited(code=0)\n"
        assert done.stdout.decode() == expected


def test_run_sync_of_nsenter_sees_the_same() -> None:
    """The yardstick: what nsenter(1) joins, enter joins."""

    async def both() -> tuple[str, str]:
        async with container(KINDS - {"user"}) as target:
            script = "cd /proc/self/ns; for kind in cgroup ipc mnt net time user uts; do readlink $kind; done"
            nsenter = ["nsenter", "-a", "-t", str(target.host_pid), "sh", "-c", script]
            theirs = await trio.run_process(nsenter, capture_stdout=True)
            return theirs.stdout.decode(), await ask(target, script)

    theirs, ours = trio.run(both)
    assert theirs == ours
