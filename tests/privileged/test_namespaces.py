"""Fresh namespaces, seen from outside while the workload is parked in them: each kind, all together, rootless too."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from tests.agent.probes import as_somebody, cat, needs_root, proc, settled, status_of
from tests.support import eventually_async, exists

LINKS = {
    "net": "net",
    "mount": "mnt",
    "pid": "pid",
    "uts": "uts",
    "ipc": "ipc",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}
"""The kinds, and their names under ``/proc/<pid>/ns``."""

SLEEP = ["sleep", "600"]


def namespaces_of(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{link}") for kind, link in LINKS.items()}


def fresh(pid: int) -> set[str]:
    """The kinds in which that process is elsewhere than we are."""
    theirs, ours = namespaces_of(pid), namespaces_of("self")
    return {kind for kind in LINKS if theirs[kind] != ours[kind]}


def test_these_are_all_kinds() -> None:
    assert {member.value for member in linx.Namespace} == set(LINKS)


@needs_root
@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("as_member", [False, True])
async def test_one_kind(kind: str, as_member: bool) -> None:
    wanted = [linx.Namespace(kind)] if as_member else [kind]
    async with linx.spawn(SLEEP, namespaces=wanted) as s, linx.spawn(SLEEP, namespaces=wanted) as other:
        assert s.state == "ready"
        parked = namespaces_of(s.host_pid)
        assert fresh(s.host_pid) == {kind}
        assert parked[kind] != namespaces_of(other.host_pid)[kind], "each session has its own"
        assert s.info().namespaces == {kind}
        await s.proceed()
        assert namespaces_of(s.host_pid) == parked, "and it runs where it was parked"
    assert s.outcome == linx.Signaled(9)
    assert other.outcome == linx.Aborted()


@needs_root
async def test_none() -> None:
    async with linx.spawn(SLEEP) as s:
        assert fresh(s.host_pid) == set()
        assert s.info().namespaces == frozenset()


@needs_root
@pytest.mark.parametrize("kinds", [set(LINKS), set(LINKS) - {"user"}, {"net", "uts"}, {"pid", "mount", "uts", "ipc"}])
async def test_several_at_once(kinds: set[str]) -> None:
    async with linx.spawn(SLEEP, namespaces=kinds) as s:
        assert fresh(s.host_pid) == kinds == s.info().namespaces
        await s.proceed()
        assert fresh(s.host_pid) == kinds
    assert s.outcome == linx.Signaled(9)


@needs_root
def test_in_run_sync() -> None:
    done = linx.run_sync(["readlink", "/proc/self/ns/uts"], namespaces={"uts"}, capture_stdout=True)
    assert done.stdout is not None
    assert done.stdout.decode().strip() != namespaces_of("self")["uts"]


ROOTLESS = """
LINKS = {links}
def namespaces_of(pid):
    return {{kind: os.readlink(f"/proc/{{pid}}/ns/{{link}}") for kind, link in LINKS.items()}}
async def fresh(kinds):
    async with linx.spawn(["sleep", "600"], namespaces=kinds) as s:
        parked = namespaces_of(s.host_pid)
        await s.proceed()
        assert namespaces_of(s.host_pid) == parked
        ours = namespaces_of("self")
        found = sorted(kind for kind in LINKS if parked[kind] != ours[kind])
    return found, s.containment, repr(s.outcome)
result = {{" ".join(kinds): trio.run(fresh, kinds) for kinds in {wanted}}}
"""


def test_as_an_ordinary_user() -> None:
    """Every kind, in a user namespace of its own; rights of any sort are not needed."""
    wanted = [["user"], *(sorted({"user", kind}) for kind in LINKS if kind != "user"), sorted(LINKS)]
    results = as_somebody(ROOTLESS.format(links=LINKS, wanted=wanted))
    for kinds in wanted:
        containment = "pidns" if "pid" in kinds else "subreaper"
        assert results[" ".join(kinds)] == [kinds, containment, "Signaled(signum=9, core_dumped=False)"]


# ---- pids --------------------------------------------------------------------------------------------------------


@needs_root
async def test_pids_in_a_fresh_pid_namespace() -> None:
    async with linx.spawn(["sh", "-c", "echo $$"], namespaces={"pid"}, stdout=linx.PIPE) as s:
        assert s.child_pid == s.info().child_pid == 1
        assert s.host_pid == s.info().host_pid
        assert s.host_pid > 1
        assert status_of(s.host_pid)["NSpid"].split() == [str(s.host_pid), "1"]
        assert s.containment == s.info().containment == "pidns"
        await s.proceed()
        assert s.stdout is not None
        assert await s.stdout.receive_some() == b"1\n"
        assert await s.wait() == linx.Exited(0)


@needs_root
@pytest.mark.parametrize("kinds", [(), ("net", "uts", "ipc", "mount", "user", "cgroup", "time")])
async def test_pids_without_one(kinds: Iterable[str]) -> None:
    async with linx.spawn(["sh", "-c", "echo $$"], namespaces=kinds, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.child_pid == s.host_pid
        assert s.containment == "subreaper"
        assert s.stdout is not None
        assert await s.stdout.receive_some() == b"%d\n" % s.host_pid


@needs_root
async def test_pid_1_takes_all_with_it() -> None:
    script = "setsid sleep 600 & setsid sh -c 'sleep 600 & sleep 600' & echo up; read x"
    options: Any = {"stdin": linx.PIPE, "stdout": linx.PIPE, "namespaces": {"pid"}}
    async with linx.spawn(["sh", "-c", script], auto_proceed=True, **options) as s:
        assert s.stdin is not None
        assert s.stdout is not None
        assert await s.stdout.receive_some() == b"up\n"
        link = os.readlink(f"/proc/{s.host_pid}/ns/pid")
        await eventually_async(lambda: len(inhabitants(link)) == 5, "all five are there")
        await s.stdin.aclose()
        assert await s.wait() == linx.Exited(1)
        assert not inhabitants(link), "when the outcome is known, the kernel has ended the rest"


def inhabitants(link: str) -> list[int]:
    """The processes in that PID namespace."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/ns/pid") == link:
                    found.append(int(name))
            except OSError:
                pass  # gone, or nobody's: a zombie has none
    return found


@needs_root
async def test_signals_to_pid_1() -> None:
    """It has no default actions (``pid_namespaces(7)``): what it does not handle is dropped, but not SIGKILL."""
    async with cat(namespaces={"pid"}) as s:
        s.terminate()
        s.signal(signal.SIGINT)
        await settled(s)
        assert s.state == "running"
        s.kill()
        assert await s.wait() == linx.Signaled(9)


@needs_root
async def test_kept_signals_to_pid_1() -> None:
    async with linx.spawn(SLEEP, namespaces={"pid"}) as s:
        s.signal(15)
        s.signal(9)
        await s.proceed()
        assert await s.wait() == linx.Signaled(9)
        assert s.ran


@needs_root
async def test_a_grace_for_a_pid_1_that_handles_sigterm() -> None:
    script = "trap 'exit 5' TERM; echo up; while :; do sleep 600 & wait; done"
    options: Any = {"stdout": linx.PIPE, "namespaces": {"pid"}, "shutdown": linx.Kill(grace=60)}
    async with linx.spawn(["sh", "-c", script], auto_proceed=True, **options) as s:
        assert s.stdout is not None
        assert await s.stdout.receive_some() == b"up\n"
        started = time.monotonic()
    assert s.outcome == linx.Exited(5)
    assert time.monotonic() - started < 30


@needs_root
async def test_abort_and_refusals_in_all_kinds() -> None:
    async with linx.spawn(SLEEP, namespaces=set(LINKS)) as s:
        await s.abort()
        assert s.outcome == linx.Aborted()
        assert not exists(s.host_pid)
    async with linx.spawn(["/nonexistent"], namespaces=set(LINKS)) as s:
        with pytest.raises(FileNotFoundError):
            await s.proceed()
    assert [event async for event in s.events()] == [linx.Ready(s.host_pid), linx.Failed(2, "execve")]
    assert s.child_pid == 1


@needs_root
async def test_killed_while_parked_as_pid_1() -> None:
    async with linx.spawn(SLEEP, namespaces={"pid"}) as s:
        os.kill(s.host_pid, signal.SIGKILL)
        assert await s.wait() == linx.Signaled(9)
        assert not s.ran


# ---- what the namespaces are good for ----------------------------------------------------------------------------


@needs_root
async def test_hostname() -> None:
    before = os.uname().nodename
    for name in ("linx-test", "x" * 64, "ü"):
        done = await linx.run(["uname", "-n"], namespaces={"uts"}, hostname=name, capture_stdout=True)
        assert done.stdout == os.fsencode(name) + b"\n"
    assert os.uname().nodename == before
    with pytest.raises(ValueError, match="'uts'"):
        linx.spawn(["true"], hostname="linx-test")


@needs_root
async def test_hostname_is_set_while_parked() -> None:
    async with linx.spawn(SLEEP, namespaces={"uts"}, hostname="parked") as s:
        done = await linx.run(["nsenter", "--uts", "-t", str(s.host_pid), "uname", "-n"], capture_stdout=True)
        assert done.stdout == b"parked\n"


def test_hostname_as_an_ordinary_user() -> None:
    result = as_somebody("""
done = linx.run_sync(["uname", "-n"], namespaces={"user", "uts"}, hostname="mine", capture_stdout=True)
result = done.stdout.decode(), os.uname().nodename
""")
    assert result == ["mine\n", os.uname().nodename]


@needs_root
async def test_a_fresh_network_has_nothing_but_lo() -> None:
    async with linx.spawn(SLEEP, namespaces={"net"}) as s:
        lines = proc(s.host_pid, "net/dev").splitlines()[2:]
        assert "lo" in [line.split(":")[0].strip() for line in lines]
        assert "eth0" not in "".join(lines)


@needs_root
async def test_the_network_is_set_up_from_outside_while_parked() -> None:
    """The seeds' reason for the checkpoint: host-side work on a network that the workload then finds ready."""
    script = "cat /proc/net/dev; cat /proc/net/fib_trie"
    async with linx.spawn(["sh", "-c", script], namespaces={"net"}, stdout=linx.PIPE) as s:
        inside = ["nsenter", "--net", "-t", str(s.host_pid)]
        for command in (
            "ip link add ct0 type veth peer name ct1",
            "ip address add 10.99.0.5/24 dev ct0",
            "ip link set ct0 up",
        ):
            await linx.run([*inside, *command.split()])
        await s.proceed()
        assert s.stdout is not None
        seen = b"".join([bytes(chunk) async for chunk in s.stdout])
        assert await s.wait() == linx.Exited(0)
    assert b"ct0:" in seen
    assert b"10.99.0.5" in seen


def map_root_to(inside: int, pid: int) -> None:
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"{inside} 0 1\n")


@needs_root
async def test_ids_are_mapped_from_outside_while_parked() -> None:
    async with linx.spawn(["sh", "-c", "id -u; id -g"], namespaces={"user"}, stdout=linx.PIPE) as s:
        assert proc(s.host_pid, "uid_map") == ""
        map_root_to(7, s.host_pid)
        await s.proceed()
        assert s.stdout is not None
        assert b"".join([bytes(chunk) async for chunk in s.stdout]) == b"7\n7\n"


@needs_root
async def test_mounts_stay_inside(tmp_path: Path) -> None:
    script = f"mount -t tmpfs linx-test {tmp_path} && touch {tmp_path}/inside && grep -c linx-test /proc/self/mountinfo"
    options: Any = {"namespaces": {"mount"}, "capture_stdout": True}
    assert (await linx.run(["sh", "-c", script], **options)).stdout == b"1\n"
    assert os.listdir(tmp_path) == []
    assert "linx-test" not in proc("self", "mountinfo")


@needs_root
async def test_cwd_in_a_fresh_mount_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's directory is the same place there, but on the namespace's own mount, not on the caller's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    script = 'ls; exec 9<.; set $(grep mnt_id /proc/self/fdinfo/9); grep -c "^$2 " /proc/self/mountinfo'
    done = await linx.run(["sh", "-c", script], namespaces={"mount"}, capture_stdout=True)
    assert done.stdout == b"here\n1\n"


@needs_root
async def test_ipc_is_separate() -> None:
    before = proc("sysvipc", "msg")
    script = "ipcmk -Q >&2 && tail -n +2 /proc/sysvipc/msg | wc -l"
    done = await linx.run(["sh", "-c", script], namespaces={"ipc"}, capture_stdout=True)
    assert done.stdout == b"1\n"
    assert proc("sysvipc", "msg") == before


# ---- neighbours --------------------------------------------------------------------------------------------------


@needs_root
async def test_neighbours_do_not_meet() -> None:
    """Sessions side by side, with and without fresh namespaces: none is in any of another's."""
    links: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        for kinds in [set(LINKS), set[str](), {"net"}, {"pid"}, {"uts", "ipc"}] * 4:
            s = await stack.enter_async_context(linx.spawn(SLEEP, namespaces=kinds))
            await s.proceed()
            assert fresh(s.host_pid) == kinds
            theirs = namespaces_of(s.host_pid)
            links.extend(theirs[kind] for kind in kinds)
    assert len(links) == 4 * (8 + 1 + 1 + 2)
    assert len(set(links)) == len(links)
