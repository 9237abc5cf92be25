"""Whom one can enter and what one is in there: targets, namespaces, ids, directory, environment, limits, events.

The containers are an ordinary user's (containers.py); what only root can do is in tests/privileged.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from tests.agent.containers import KINDS, below, container, is_untouched, parked_container
from tests.agent.probes import link, needs_root, opened, proc, status_of, working_in
from tests.support import eventually_async, name_of

SLEEP = ["sleep", "1000"]

FILES = {kind: "mnt" if kind == "mount" else kind for kind in KINDS}
"""The kinds' names under ``/proc/<pid>/ns``."""


@pytest.fixture
async def target() -> AsyncIterator[linx.Session]:
    async with container() as session:
        await eventually_async(lambda: name_of(session.host_pid) == "sleep", "its init has settled")
        yield session
        assert is_untouched(session)


def namespaces_of(pid: int | str) -> dict[str, str]:
    return {kind: link(pid, f"ns/{file}") for kind, file in FILES.items()}


def joined(session: linx.Session, target: int) -> set[str]:
    """The kinds in which the workload is with the target. In all others it is with us."""
    own, ours, theirs = (namespaces_of(pid) for pid in (session.host_pid, "self", target))
    found = {kind for kind in KINDS if own[kind] == theirs[kind] != ours[kind]}
    assert all(own[kind] == ours[kind] for kind in KINDS - found)
    return found


async def ask(target: Any, script: str, **options: Any) -> str:
    """What a shell in there says."""
    async with linx.enter(target, ["sh", "-c", script], stdout=linx.PIPE, **options) as s:
        await s.proceed()
        assert s.stdout is not None
        said = b"".join([bytes(chunk) async for chunk in s.stdout]).decode()
        assert await s.wait() == linx.Exited(0), said
    return said


# ---- targets ---------------------------------------------------------------------------------------------------------


class Holder:
    """An object with an fd."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


TARGETS: dict[str, Callable[[linx.Session], Any]] = {
    "session": lambda s: s,
    "pid": lambda s: s.host_pid,
    "the session's pidfd": lambda s: s.pidfd,
    "path": lambda s: f"/proc/{s.host_pid}",
    "bytes": lambda s: b"/proc/%d/" % s.host_pid,
    "Path": lambda s: Path("/proc") / str(s.host_pid),
    "thread": lambda s: f"/proc/{s.host_pid}/task/{s.host_pid}",
    "root": lambda s: f"/proc/{s.host_pid}/../{s.host_pid}",
}


@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("name", TARGETS)
async def test_targets(name: str, parked: bool) -> None:
    async with parked_container() as target:
        if not parked:
            await target.proceed()
        async with linx.enter(TARGETS[name](target), SLEEP) as s:
            await s.proceed()
            assert joined(s, target.host_pid) == KINDS
        assert s.outcome == linx.Signaled(9)
        assert target.state == ("ready" if parked else "running")


async def test_targets_that_are_fds(target: linx.Session) -> None:
    pidfd = os.pidfd_open(target.host_pid)
    try:
        async with linx.enter(Holder(pidfd), SLEEP) as s:
            await s.proceed()
            assert joined(s, target.host_pid) == KINDS
        os.fstat(pidfd)  # it is still the caller's own
    finally:
        os.close(pidfd)
    with opened(f"/proc/{target.host_pid}", os.O_PATH | os.O_DIRECTORY) as directory:
        async with linx.enter(f"/proc/self/fd/{directory}", SLEEP) as s:
            await s.proceed()
            assert joined(s, target.host_pid) == KINDS


async def test_a_relative_path(target: linx.Session) -> None:
    with working_in("/proc"):
        assert await ask(str(target.host_pid), "uname -n") == "inner\n"


async def test_no_fd_of_the_target_stays(target: linx.Session) -> None:
    """Neither here, while the session lives, nor in the workload."""
    async with linx.enter(target, SLEEP) as s:
        ours = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd)]
        assert not [what for what in ours if what.startswith(f"/proc/{target.host_pid}")]
        await s.proceed()
        await eventually_async(lambda: name_of(s.host_pid) == "sleep", "it has executed")
        await eventually_async(
            lambda: set(os.listdir(f"/proc/{s.host_pid}/fd")) == {"0", "1", "2"}, "it has nothing but its streams"
        )


def is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("target_is", ["pid", "session"])
async def test_from_another_thread(target: linx.Session, target_is: str) -> None:
    """The session is one trio's, whoever enters it another's."""
    what = target.host_pid if target_is == "pid" else target
    said = await trio.to_thread.run_sync(lambda: trio.run(ask, what, "uname -n"))
    assert said == "inner\n"


@pytest.mark.parametrize("target", [os.getpid(), "/proc/self", "/proc/thread-self"])
async def test_oneself(target: Any) -> None:
    """Everything is shared, so there is nothing to join, and nobody else to become."""
    async with linx.enter(target, SLEEP) as s:
        await s.proceed()
        assert namespaces_of(s.host_pid) == namespaces_of("self")
        assert status_of(s.host_pid)["Uid"] == status_of(os.getpid())["Uid"]
        assert status_of(s.host_pid)["Groups"] == status_of(os.getpid())["Groups"]
        assert s.child_pid == s.host_pid
        assert link(s.host_pid, "cwd") == os.getcwd()


async def test_what_has_entered_and_runs_can_be_entered(target: linx.Session) -> None:
    async with linx.enter(target, SLEEP) as first:
        await first.proceed()
        await eventually_async(lambda: name_of(first.host_pid) == "sleep", "it has executed")
        async with linx.enter(first, SLEEP) as second:
            await second.proceed()
            assert joined(second, target.host_pid) == KINDS
        assert first.state == "running"


async def test_containers_in_containers(target: linx.Session) -> None:
    """What is entered is made by somebody inside. Its owner is one of ours, so are its rights."""
    kinds = "--user --map-root-user --mount --uts --ipc --net --cgroup --pid --fork"
    script = f"unshare {kinds} sh -c 'hostname nested; echo up; sleep 1000'"
    async with linx.enter(target, ["sh", "-c", script], stdout=linx.PIPE) as s:
        await s.proceed()
        assert s.stdout is not None
        assert await s.stdout.receive_some(100) == b"up\n"
        await eventually_async(lambda: nested_in(target.host_pid), "the program in there has executed")
        # The time namespace is the outer container's, and nobody in the inner one may join it; nor may we from there.
        nested = nested_in(target.host_pid)[0]
        assert await ask(nested, "uname -n; id -u", namespaces=KINDS - {"time"}) == "nested\n0\n"


def nested_in(target: int) -> list[int]:
    """The ``sleep`` whose hostname is neither ours nor the target's."""
    known = {link(target, "ns/uts"), link("self", "ns/uts")}
    return [pid for pid in below() if name_of(pid) == "sleep" and link(pid, "ns/uts") not in known]


# ---- namespaces ------------------------------------------------------------------------------------------------------

SUBSETS = [
    *({"user", kind} for kind in sorted(KINDS)),
    {"user", "mount", "uts", "ipc", "net"},
    {"user", "pid", "cgroup", "time"},
    KINDS - {"pid"},
    set(KINDS),
]


@pytest.mark.parametrize("kinds", SUBSETS, ids=lambda kinds: "+".join(sorted(kinds)))
async def test_subsets(target: linx.Session, kinds: set[str]) -> None:
    async with linx.enter(target, SLEEP, namespaces=kinds) as s:
        parked = joined(s, target.host_pid) if os.geteuid() == 0 or "user" not in kinds else kinds
        assert parked == kinds
        await s.proceed()
        assert joined(s, target.host_pid) == kinds
        assert s.info().namespaces == kinds
        assert s.info().mode == "enter"


async def test_none_of_them(target: linx.Session) -> None:
    """That is a spawn, in the target's cgroup."""
    async with linx.enter(target, SLEEP, namespaces=()) as s:
        await s.proceed()
        assert joined(s, target.host_pid) == set()
        assert s.info().namespaces == frozenset()
        assert status_of(s.host_pid)["Uid"] == status_of(os.getpid())["Uid"]


@pytest.mark.parametrize("form", [list, tuple, frozenset, iter])
async def test_how_they_may_be_given(target: linx.Session, form: Any) -> None:
    for kinds in (["user", "uts"], [linx.Namespace("user"), linx.Namespace("uts")]):
        async with linx.enter(target, SLEEP, namespaces=form(kinds)) as s:
            await s.proceed()
            assert joined(s, target.host_pid) == {"user", "uts"}


@pytest.mark.parametrize("asked", [None, KINDS, {"user", "uts", "net", "pid"}])
async def test_shared_ones_are_skipped(asked: Any) -> None:
    """The target has two of its own; the others belong to the host, and could not be joined."""
    async with container({"user", "uts"}) as target, linx.enter(target, SLEEP, namespaces=asked) as s:
        await s.proceed()
        assert joined(s, target.host_pid) == {"user", "uts"}
        assert s.child_pid == s.host_pid
        assert s.info().namespaces == (KINDS if asked is None else frozenset(asked))


async def test_a_workload_says_which(target: linx.Session) -> None:
    workload = linx.Workload(SLEEP, namespaces={"user", "uts"})
    for changes, kinds in (({}, {"user", "uts"}), ({"namespaces": {"user", "net"}}, {"user", "net"})):
        async with linx.enter(target, workload, **changes) as s:  # type: ignore[arg-type]
            await s.proceed()
            assert joined(s, target.host_pid) == kinds
    async with linx.enter(target, linx.Workload(SLEEP)) as s:
        await s.proceed()
        assert joined(s, target.host_pid) == KINDS


async def test_its_hostname_and_pids_are_the_targets(target: linx.Session) -> None:
    script = "uname -n; echo $$; readlink /proc/self"
    async with linx.enter(target, ["sh", "-c", script], stdout=linx.PIPE) as s:
        assert status_of(s.host_pid)["NSpid"].split()[-1] == str(s.child_pid) != str(s.host_pid)
        await s.proceed()
        assert s.stdout is not None
        said = b"".join([bytes(chunk) async for chunk in s.stdout]).decode().split()
        assert said[:2] == ["inner", str(s.child_pid)]
        assert s.info().child_pid == s.child_pid > 1
        assert s.info().host_pid == s.host_pid


# ---- ids -------------------------------------------------------------------------------------------------------------


def ids_of(pid: int) -> tuple[set[str], set[str], list[str]]:
    status = status_of(pid)
    return set(status["Uid"].split()), set(status["Gid"].split()), status["Groups"].split()


@pytest.mark.parametrize("ids", [{}, {"uid": 0}, {"gid": 0}, {"uid": 0, "gid": 0}])
async def test_it_is_root_inside(target: linx.Session, ids: dict[str, int]) -> None:
    """That is who we are outside; and it has every capability in there, and none out here."""
    async with linx.enter(target, SLEEP, **ids) as s:  # type: ignore[arg-type]
        await s.proceed()
        assert ids_of(s.host_pid)[:2] == ({str(os.geteuid())}, {str(os.getegid())})
        status = status_of(s.host_pid)
        assert int(status["CapEff"], 16) == int(status_of(target.host_pid)["CapEff"], 16) != 0
    script = "id -u; id -g; id -ru"
    assert await ask(target, script, **ids) == "0\n0\n0\n"


@needs_root
async def test_groups_of_outside_are_dropped(target: linx.Session) -> None:
    before = os.getgroups()
    os.setgroups([5, 6])
    try:
        async with linx.enter(target, SLEEP) as s:
            await s.proceed()
            assert ids_of(s.host_pid)[2] == []
        async with linx.enter(target, SLEEP, namespaces={"net"}) as s:
            await s.proceed()
            assert ids_of(s.host_pid)[2] == ["5", "6"], "nothing was changed that concerns ids"
    finally:
        os.setgroups(before)


@needs_root
async def test_the_ids_asked_for() -> None:
    async with container(count=65536) as target:
        for ids, expected in (
            ({"uid": 7}, ({"7"}, {"0"}, [])),
            ({"gid": 8}, ({"0"}, {"8"}, [])),
            ({"uid": 7, "gid": 8, "groups": [9, 10]}, ({"7"}, {"8"}, ["9", "10"])),
            ({"uid": 0, "gid": 0, "groups": []}, ({"0"}, {"0"}, [])),
        ):
            async with linx.enter(target, SLEEP, **ids) as s:
                await s.proceed()
                assert ids_of(s.host_pid) == expected


async def test_no_new_privs(target: linx.Session) -> None:
    assert "NoNewPrivs:\t1" in await ask(target, "cat /proc/$$/status", no_new_privs=True, namespaces={"user"})


# ---- directory, program, environment ---------------------------------------------------------------------------------


async def test_it_starts_in_the_root_directory_of_its_mounts(target: linx.Session, tmp_path: Path) -> None:
    with working_in(tmp_path):
        assert await ask(target, "pwd") == "/\n"
        assert await ask(target, "pwd", namespaces={"user", "net"}) == f"{tmp_path}\n"
        assert await ask(target, "pwd", cwd="/usr") == "/usr\n"
        (tmp_path / "sub").mkdir()
        assert await ask(target, "pwd", cwd="sub", namespaces={"user", "uts"}) == f"{tmp_path}/sub\n"


async def mount_inside(target: linx.Session, directory: Path) -> None:
    """A file system there that only those inside see, with a program of its own."""
    program = f"{directory}/linx-inside"
    write = f"printf '#!/bin/sh\\necho from inside\\n' >{program} && chmod 755 {program}"
    script = f"mount -t tmpfs none {directory} && {write}"
    async with linx.enter(target, ["sh", "-c", script], namespaces={"user", "mount"}) as s:
        await s.proceed()
        assert await s.wait() == linx.Exited(0)


async def test_directories_and_programs_are_looked_up_inside(target: linx.Session, tmp_path: Path) -> None:
    await mount_inside(target, tmp_path)
    assert os.listdir(tmp_path) == []
    assert await ask(target, "ls", cwd=tmp_path) == "linx-inside\n"
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    async with linx.enter(target, ["linx-inside"], env=path, stdout=linx.PIPE) as s:
        await s.proceed()
        assert s.stdout is not None
        assert b"".join([bytes(chunk) async for chunk in s.stdout]) == b"from inside\n"
    async with linx.enter(target, ["linx-inside"], env=path, namespaces={"user", "uts"}) as s:
        with pytest.raises(FileNotFoundError):
            await s.proceed()


async def test_the_environment_is_the_callers(target: linx.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINX_TEST_HERE", "here")
    assert await ask(target, "echo $LINX_TEST_HERE") == "here\n"
    assert await ask(target, "echo $A-$LINX_TEST_HERE", env={"A": "1"}) == "1-\n"
    async with linx.enter(target, SLEEP, env={}) as s:
        await s.proceed()
        await eventually_async(lambda: name_of(s.host_pid) == "sleep", "it has executed")
        assert proc(s.host_pid, "environ") == ""


async def test_umask_limits_and_nice(target: linx.Session) -> None:
    async with linx.enter(target, SLEEP, umask=0o27, nice=3, rlimits={"nofile": (50, 60)}) as s:
        await s.proceed()
        await eventually_async(lambda: name_of(s.host_pid) == "sleep", "it has executed")
        assert status_of(s.host_pid)["Umask"] == "0027"
        assert resource.prlimit(s.host_pid, resource.RLIMIT_NOFILE) == (50, 60)
        assert os.getpriority(os.PRIO_PROCESS, s.host_pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    async with linx.enter(target, SLEEP) as s:
        await s.proceed()
        assert resource.prlimit(s.host_pid, resource.RLIMIT_NOFILE) == resource.getrlimit(resource.RLIMIT_NOFILE)


# ---- the session -----------------------------------------------------------------------------------------------------


async def test_checkpoint_and_events(target: linx.Session) -> None:
    send, receive = trio.open_memory_channel[linx.Event](10)
    async with send, linx.enter(target, ["sh", "-c", "exit 7"], owner=send) as s:
        assert (s.state, s.ran) == ("ready", False)
        assert name_of(s.host_pid) != "sh"
        assert (s.info().mode, s.info().argv, s.info().pty) == ("enter", ("sh", "-c", "exit 7"), False)
        assert s.info().namespaces == KINDS
        await s.proceed()
        assert await s.wait() == linx.Exited(7)
        assert s.returncode == 7
    assert [event async for event in receive] == [linx.Ready(s.host_pid), linx.Running(), linx.Exited(7)]
    assert s.usage is not None
    assert s.usage.max_rss > 0
    assert s.usage.wall_time > 0


async def test_auto_proceed(target: linx.Session) -> None:
    async with linx.enter(target, SLEEP, auto_proceed=True) as s:
        assert s.state == "running"
        s.signal(15)
        assert await s.wait() == linx.Signaled(15)


async def test_signals_are_kept(target: linx.Session) -> None:
    async with linx.enter(target, SLEEP) as s:
        s.signal(15)
        assert s.state == "ready"
        await s.proceed()
        assert await s.wait() == linx.Signaled(15)
    assert [event async for event in s.events()] == [linx.Ready(s.host_pid), linx.Running(), linx.Signaled(15)]


async def test_wait_ready(target: linx.Session) -> None:
    async with linx.enter(target, ["sh", "-c", "exit 5"], wait_ready=False) as s:
        await s.proceed()
        assert await s.wait() == linx.Exited(5)


async def test_what_it_used(target: linx.Session) -> None:
    script = "x = bytearray(50_000_000); x[::4096] = x[::4096]; sum(range(3_000_000))"
    async with linx.enter(target, [sys.executable, "-I", "-S", "-c", script]) as s:
        await s.proceed()
        assert await s.wait() == linx.Exited(0)
    assert s.usage is not None
    assert s.usage.max_rss > 50_000_000
    assert s.usage.user_time > 0.01


async def test_each_block_is_entered_once(target: linx.Session) -> None:
    manager = linx.enter(target, ["true"])
    async with manager:
        pass
    with pytest.raises(RuntimeError):
        async with manager:
            pytest.fail("a second time")
