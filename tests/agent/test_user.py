"""Id maps on real parked workloads: as whoever runs this, as an ordinary user, and with ranges granted to one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio import _idmap_files, user
from linx_trio.user import IdMap
from tests.agent.probes import ROOT, SOMEBODY, as_somebody, needs_root, proc

ME = os.geteuid()
MY_GROUP = os.getegid()
SLEEP = ["sleep", "600"]


@contextlib.asynccontextmanager
async def parked(argv: list[str] = SLEEP, **options: Any) -> AsyncIterator[linx.Session]:
    async with linx.spawn(argv, namespaces={"user"}, **options) as s:
        yield s


def root_is_me(s: linx.Session) -> None:
    user.setup_maps(s, uid=[(0, ME, 1)], gid=[(0, MY_GROUP, 1)])


# ---- one's own id ------------------------------------------------------------------------------------------------


async def test_root_inside_me_outside() -> None:
    script = "id -u; id -g; cat /proc/self/setgroups"
    async with parked(["sh", "-c", script], stdout=linx.PIPE) as s:
        assert user.read_uid_map(s) == user.read_gid_map(s) == []
        root_is_me(s)
        assert user.read_uid_map(s) == [IdMap(0, ME, 1)]
        assert user.read_gid_map(s) == [IdMap(0, MY_GROUP, 1)]
        await s.proceed()
        assert s.stdout is not None
        assert b"".join([bytes(chunk) async for chunk in s.stdout]) == b"0\n0\ndeny\n"
        assert await s.wait() == linx.Exited(0)


async def test_any_id_inside() -> None:
    async with parked() as s:
        user.set_uid_map(s, IdMap(31337, ME, 1))
        assert user.read_uid_map(s) == [(31337, ME, 1)]
        assert user.read_gid_map(s) == []
        user.deny_setgroups(s)
        user.deny_setgroups(s)
        user.set_gid_map(s, (4711, MY_GROUP, 1))
        assert user.read_gid_map(s) == [(4711, MY_GROUP, 1)]
        assert proc(s.host_pid, "setgroups") == "deny\n"


TARGETS: dict[str, Callable[[linx.Session], Any]] = {
    "session": lambda s: s,
    "pid": lambda s: s.host_pid,
    "pidfd": lambda s: s.pidfd,
    "path": lambda s: f"/proc/{s.host_pid}",
    "bytes": lambda s: b"/proc/%d" % s.host_pid,
}


@pytest.mark.parametrize("kind", TARGETS)
async def test_targets(kind: str) -> None:
    async with parked() as s:
        target = TARGETS[kind](s)
        user.setup_maps(target, uid=[(0, ME, 1)], gid=[(0, MY_GROUP, 1)])
        assert user.read_uid_map(target) == [(0, ME, 1)]
        await s.proceed()
        assert user.read_gid_map(target) == [(0, MY_GROUP, 1)], "a running one can be read as well"


# ---- once --------------------------------------------------------------------------------------------------------


async def test_each_is_written_once() -> None:
    async with parked() as s:
        root_is_me(s)
        for verb, stage, own in ((user.set_uid_map, "uid_map", ME), (user.set_gid_map, "gid_map", MY_GROUP)):
            for target in (s, s.host_pid):
                with pytest.raises(linx.SetupError) as caught:
                    verb(target, [(1, own, 1)])
                error = caught.value
                assert (error.errno, error.stage, error.filename) == (errno.EPERM, stage, f"1 {own} 1")
                assert isinstance(error, PermissionError)
                assert "already" in str(error.hint)
        with pytest.raises(PermissionError) as denied:
            user.deny_setgroups(s)
        assert isinstance(denied.value, linx.SetupError)
        assert denied.value.stage == "setgroups"
        assert "before the gid map" in str(denied.value.hint)
        assert user.read_uid_map(s) == [(0, ME, 1)]
        await s.proceed()


async def test_a_host_pid_without_a_namespace_of_its_own() -> None:
    async with linx.spawn(SLEEP) as s:
        with pytest.raises(linx.SetupError) as caught:
            user.set_uid_map(s, [(0, ME, 1)])
        assert (caught.value.errno, caught.value.stage) in ((errno.EPERM, "uid_map"), (errno.EACCES, "uid_map"))


async def test_more_than_a_page_of_lines() -> None:
    """340 lines are what the kernel takes, but of less than a page of text: which only it knows."""
    lines = [(4000000000 + 2 * i, 3000000000 + 2 * i, 1) for i in range(340)]
    async with parked() as s:
        with pytest.raises(linx.SetupError) as caught:
            user.set_uid_map(s, lines)
        assert caught.value.stage == "uid_map"
        assert (
            str(caught.value.filename) == "4000000000 3000000000 1, 4000000002 3000000002 1, 4000000004 3000000004 1, …"
        )
        assert caught.value.hint is not None
        if ME == 0:
            assert caught.value.errno == errno.EINVAL
            assert "fewer lines" in caught.value.hint
        assert user.read_uid_map(s) == []


# ---- whose turn --------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[linx.Session], object]] = {
    "setup_maps": root_is_me,
    "set_uid_map": lambda s: user.set_uid_map(s, (0, ME, 1)),
    "set_gid_map": lambda s: user.set_gid_map(s, (0, MY_GROUP, 1)),
    "deny_setgroups": user.deny_setgroups,
}
READERS: dict[str, Callable[[linx.Session], object]] = {
    "read_uid_map": user.read_uid_map,
    "read_gid_map": user.read_gid_map,
}


@pytest.mark.parametrize("verb", VERBS)
async def test_only_while_parked(verb: str) -> None:
    async with linx.spawn(SLEEP, namespaces={"user"}, wait_ready=False) as s:
        with pytest.raises(linx.NotReady) as early:
            VERBS[verb](s)
        assert (early.value.verb, early.value.state) == (verb, "starting")
    async with parked() as s:
        await s.proceed()
        with pytest.raises(linx.AlreadyRunning) as late:
            VERBS[verb](s)
        assert (late.value.verb, late.value.state) == (verb, "running")
        assert user.read_uid_map(s) == user.read_gid_map(s) == []
    with pytest.raises(linx.NoProcess) as over:
        VERBS[verb](s)
    assert (over.value.verb, over.value.state) == (verb, "signaled")


@pytest.mark.parametrize("verb", READERS)
async def test_readers(verb: str) -> None:
    async with linx.spawn(SLEEP, namespaces={"user"}, wait_ready=False) as s:
        with pytest.raises(linx.NotReady) as early:
            READERS[verb](s)
        assert early.value.verb == verb
    with pytest.raises(linx.NoProcess) as over:
        READERS[verb](s)
    assert over.value.verb == verb


class Handle:
    """An object with a pidfd."""

    def __init__(self, fd: int) -> None:
        self.fileno = lambda: fd


async def test_nobody() -> None:
    async with parked() as s:
        pid = s.host_pid
        pidfd = os.pidfd_open(pid)
        assert user.read_uid_map(Handle(pidfd)) == []
    try:
        for target in (pid, f"/proc/{pid}", "/nonexistent"):
            with pytest.raises(linx.SetupError) as caught:
                user.setup_maps(target, uid=(0, ME, 1), gid=(0, MY_GROUP, 1))
            assert (caught.value.errno, caught.value.stage) == (errno.ENOENT, "open_ns_user")
        with pytest.raises(FileNotFoundError):
            user.read_uid_map(Handle(pidfd))
    finally:
        os.close(pidfd)


def test_a_pinned_process_is_not_mixed_up_with_another() -> None:
    """The files are opened below the fd: when the process is gone, so are they, whoever has its pid."""

    async def main() -> None:
        async with parked() as s:
            directory = os.open(f"/proc/{s.host_pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with pytest.raises(linx.SetupError) as caught:
                _idmap_files.write_maps(directory, user.root_map())
            assert (caught.value.errno, caught.value.stage) == (errno.ENOENT, "setgroups")
        finally:
            os.close(directory)

    trio.run(main)


# ---- more than one's own id, as root -----------------------------------------------------------------------------


@needs_root
async def test_root_writes_what_it_likes() -> None:
    uid = [IdMap(0, 500000, 1000), IdMap(1000, 0, 1), IdMap(5000, 700000, 7)]
    gid = [IdMap(0, 600000, 1000)]
    async with parked() as s:
        user.setup_maps(s, uid=uid, gid=gid, setgroups="allow")
        assert user.read_uid_map(s) == uid
        assert user.read_gid_map(s) == gid
        assert proc(s.host_pid, "setgroups") == "allow\n"
    async with parked() as s:
        user.setup_maps(s, uid=uid, gid=gid)
        assert proc(s.host_pid, "setgroups") == "deny\n"


GROUPS = """
import json, os, sys
import linx_trio as linx
maps = linx.user.Maps(uid=(0, 200000, 1000), gid=(0, 200000, 1000), setgroups={setgroups!r})
done = linx.run_sync(["grep", "^Groups:", "/proc/self/status"], user=maps, capture_stdout=True, {options})
print(done.stdout.decode())
"""


@needs_root
@pytest.mark.parametrize(
    ("setgroups", "options", "groups"),
    [
        ("allow", "", []),
        ("allow", "uid=33, gid=33", []),
        ("allow", "uid=33, gid=33, groups=[7]", ["7"]),
        ("allow", "capabilities=linx.capabilities.keep(())", []),
        ("deny", "", ["65534", "65534"]),
    ],
)
def test_the_callers_groups_are_not_those_of_somebody_else(setgroups: str, options: str, groups: list[str]) -> None:
    """With them the caller's rights over files would have come in."""
    code = GROUPS.format(setgroups=setgroups, options=options)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], extra_groups=[0, 42], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == groups


@needs_root
async def test_root_needs_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    async with parked(["/bin/sleep", "600"]) as s:
        user.setup_maps(s, uid=(0, 500000, 10), gid=(0, 500000, 10))


# ---- as an ordinary user -----------------------------------------------------------------------------------------

ATTEMPT = """
async def attempt(verb, *arguments, **options):
    async with linx.spawn(["/bin/sleep", "600"], namespaces={"user"}) as s:
        refusal = refusal_of(verb, s, *arguments, **options)
        status = open(f"/proc/{s.host_pid}/setgroups").read().strip()
        return [refusal, linx.user.read_uid_map(s), linx.user.read_gid_map(s), status]

import linx_trio.user
me, my_group = os.geteuid(), os.getegid()
result = trio.run(lambda: attempt(linx.user.setup_maps, uid={uid}, gid={gid}, setgroups={setgroups!r}))
"""


def attempted(uid: str, gid: str, setgroups: str = "deny", before: str = "") -> list[Any]:
    """What an ordinary user gets: the refusal, both maps, and setgroups. `me` and `my_group` are its ids."""
    body = ATTEMPT.replace("{uid}", uid).replace("{gid}", gid).replace("{setgroups!r}", repr(setgroups))
    result: list[Any] = as_somebody(before + body)
    return result


OWN = ("(0, me, 1)", "(0, my_group, 1)")
SOMEBODYS = SOMEBODY if ME == 0 else ME
SOMEBODYS_GROUP = SOMEBODY if ME == 0 else MY_GROUP


def test_the_own_id_takes_no_program() -> None:
    result = attempted(*OWN, before="os.environ['PATH'] = '/nonexistent'\n")
    assert result == [None, [[0, SOMEBODYS, 1]], [[0, SOMEBODYS_GROUP, 1]], "deny"]


def test_more_without_the_program() -> None:
    refusal, uid, gid, setgroups = attempted("(0, 100000, 5)", OWN[1], before="os.environ['PATH'] = '/nonexistent'\n")
    assert (refusal["errno"], refusal["stage"], refusal["filename"]) == (errno.EPERM, "uid_map", "0 100000 5")
    assert "PermissionError" in refusal["classes"]
    assert "CAP_SETUID" in refusal["hint"]
    assert "newuidmap" in refusal["hint"]
    assert "uidmap" in refusal["hint"]
    assert (uid, gid, setgroups) == ([], [[0, SOMEBODYS_GROUP, 1]], "deny")
    refusal, _, gid, _ = attempted(OWN[0], "(0, 100000, 5)", before="os.environ['PATH'] = '/nonexistent'\n")
    assert refusal["stage"] == "gid_map"
    assert "newgidmap" in refusal["hint"]
    assert gid == []


NEWUIDMAP = shutil.which("newuidmap")
needs_uidmap = pytest.mark.skipif(NEWUIDMAP is None, reason="newuidmap(1) is needed: Debian's package uidmap")


@needs_uidmap
def test_a_program_that_is_not_privileged() -> None:
    assert NEWUIDMAP is not None
    with tempfile.TemporaryDirectory() as directory:  # not pytest's, which is closed to other users
        os.chmod(directory, 0o755)
        copy = Path(directory, "newuidmap")
        shutil.copyfile(NEWUIDMAP, copy)
        copy.chmod(0o755)
        refusal, *_ = attempted("(0, 100000, 5)", OWN[1], before=f"os.environ['PATH'] = {directory!r}\n")
    assert (refusal["errno"], refusal["stage"]) == (errno.EPERM, "uid_map")
    assert f"{copy} is not set-user-ID root" in refusal["hint"]


@needs_uidmap
def test_a_process_that_gains_no_rights() -> None:
    before = "import ctypes\nassert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0\n"  # PR_SET_NO_NEW_PRIVS
    refusal, *_ = attempted("(0, 100000, 5)", OWN[1], before=before)
    assert "no_new_privs" in refusal["hint"]


@pytest.fixture
def granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[range]:
    """A range that the ordinary user of `as_somebody` may map, for users and groups.

    As root it is granted here: in a mount namespace of that Python's own, where that user has a name and a range.
    """
    if NEWUIDMAP is None:
        pytest.skip("newuidmap(1) is needed: Debian's package uidmap")
    if ME != 0:
        ranges = user.subids()
        if not ranges.uid or ranges.uid != ranges.gid:
            pytest.skip("a range in /etc/subuid, and the same one in /etc/subgid, are needed for this user")
        yield ranges.uid[0]
        return
    files = {
        "passwd": Path("/etc/passwd").read_text() + f"linx-somebody:x:{SOMEBODY}:{SOMEBODY}::/:/bin/sh\n",
        "subuid": "linx-somebody:300000:5000\n",
        "subgid": "linx-somebody:300000:5000\n",
    }
    script = "#!/bin/sh\n"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
        script += f"test -e /etc/{name} && mount --bind {tmp_path / name} /etc/{name} || exit 99\n"
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec unshare --mount {tmp_path / "inside"} "$@"\n')
    (tmp_path / "inside").write_text(f'{script}exec {sys.executable} "$@"\n')
    for name in ("python", "inside"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    yield range(300000, 305000)


def test_subids(granted: range) -> None:
    result = as_somebody("""
import linx_trio.user, pwd
found = linx.user.subids()
assert found == linx.user.subids(os.getuid()) == linx.user.subids(pwd.getpwuid(os.getuid()).pw_name)
result = [[each.start, each.stop] for each in (*found.uid, *found.gid)]
""")
    assert [granted.start, granted.stop] in result


def test_ranges_that_are_granted(granted: range) -> None:
    first, count = granted.start, len(granted)
    uid = f"[(0, me, 1), (1, {first}, {count})]"
    gid = f"[(0, my_group, 1), (1, {first}, {count})]"
    wanted_uid = [[0, SOMEBODYS, 1], [1, first, count]]
    wanted_gid = [[0, SOMEBODYS_GROUP, 1], [1, first, count]]
    assert attempted(uid, gid) == [None, wanted_uid, wanted_gid, "deny"]
    assert attempted(uid, gid, "allow") == [None, wanted_uid, wanted_gid, "allow"]
    parts = f"[(10 * i, {first} + 7 * i, 5) for i in range(100)]"
    lines = [[10 * i, first + 7 * i, 5] for i in range(100)]
    assert attempted(parts, OWN[1]) == [None, lines, [[0, SOMEBODYS_GROUP, 1]], "deny"]


def test_a_range_that_exceeds_what_is_granted(granted: range) -> None:
    wanted = f"{granted.start + 1}-{granted.stop}"
    refusal, uid, _, _ = attempted(f"[(0, me, 1), (1, {granted.start + 1}, {len(granted)})]", OWN[1])
    assert (refusal["errno"], refusal["stage"]) == (errno.EPERM, "uid_map")
    assert uid == []
    for mention in ("/etc/subuid", f"{granted.start}-{granted.stop - 1}", wanted, f"--add-subuids {wanted}"):
        assert mention in refusal["hint"]
    refusal, _, gid, _ = attempted(OWN[0], f"(0, {granted.stop - 1}, 2)")
    assert (refusal["errno"], refusal["stage"]) == (errno.EPERM, "gid_map")
    assert "/etc/subgid" in refusal["hint"]
    assert "--add-subgids" in refusal["hint"]
    assert gid == []


def test_somebody_elses_id(granted: range) -> None:
    refusal, uid, _, _ = attempted("(0, 0, 1)", OWN[1])
    assert (refusal["errno"], refusal["stage"], refusal["filename"]) == (errno.EPERM, "uid_map", "0 0 1")
    assert uid == []


def test_setgroups_that_cannot_be_allowed(granted: range) -> None:
    """The own group alone is mapped only where setgroups is denied, and that is not what was asked for."""
    refusal, uid, _, _ = attempted(*OWN, setgroups="allow")
    assert (refusal["errno"], refusal["stage"], refusal["filename"]) == (errno.EPERM, "setgroups", "allow")
    assert uid == []


def test_granted_ranges_are_written_once(granted: range) -> None:
    result = as_somebody(f"""
import linx_trio.user
async def main():
    async with linx.spawn(["/bin/sleep", "600"], namespaces={{"user"}}) as s:
        linx.user.set_uid_map(s, (0, {granted.start}, 5))
        return refusal_of(linx.user.set_uid_map, s, (0, {granted.start}, 7)), linx.user.read_uid_map(s)
result = trio.run(main)
""")
    refusal, uid = result
    assert (refusal["errno"], refusal["stage"]) == (errno.EPERM, "uid_map")
    assert "already" in refusal["hint"]
    assert uid == [[0, granted.start, 5]]


@needs_root
def test_another_users_workload() -> None:
    """The ordinary user may look, and not write."""

    async def main() -> Any:
        async with parked() as s:
            body = f"""
import linx_trio.user
result = refusal_of(linx.user.set_uid_map, {s.host_pid}, (0, os.geteuid(), 1)), linx.user.read_uid_map({s.host_pid})
"""
            found = await trio.to_thread.run_sync(as_somebody, body)
            assert user.read_uid_map(s) == []
            return found

    refusal, seen = trio.run(main)
    assert (refusal["errno"], refusal["stage"]) == (errno.EACCES, "uid_map")
    assert "another user" in refusal["hint"]
    assert seen == []
