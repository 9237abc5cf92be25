"""The functions of `linx_trio.mount` on parked workloads and, with ``inside=``, on any process: as whoever runs this,
in a user namespace of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio import mount
from linx_trio.mount import Bind, Dir, File, Overlay, Proc, Symlink, Tmpfs
from tests.agent.probes import proc
from tests.agent.roots import EMPTY, SLEEP, own, parked, points, programs, root_of, seen, told
from tests.support import children_of

REFUSED = "/nonexistent/source"

# ---- each one ----------------------------------------------------------------------------------------------------


async def test_bind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    async with parked(root=EMPTY, mounts=[Tmpfs("/src"), File("/src/file", "x")]) as s:
        await mount.bind(s, "/src", "/dst", readonly=True, noexec=True)
        (entry,) = seen(s, "/dst")
        assert entry.readonly
        assert "noexec" in entry.options
        await mount.bind(s, "/src/file", b"/copy")
        assert (root_of(s) / "copy").read_text() == "x"
        with pytest.raises(FileNotFoundError):
            await mount.bind(s, tmp_path, "/gone")
    async with parked() as s:
        await mount.bind(s, tmp_path)
        assert len(seen(s, tmp_path)) == 1
        assert (root_of(s) / str(tmp_path)[1:] / "file").read_text() == "content"


async def test_mount_and_umount(tmp_path: Path) -> None:
    async with parked() as s:
        await mount.mount(s, "tmpfs", tmp_path, source="one", options="size=8k,mode=0711", nosuid=True)
        await mount.mount(s, "tmpfs", tmp_path, source="two", readonly=True, flags=("noatime",))
        assert [each.source for each in seen(s, tmp_path)] == ["one", "two"]
        await mount.umount(s, tmp_path)
        (entry,) = seen(s, tmp_path)
        assert entry.source == "one"
        assert entry.super_options[:3] == ("rw", "size=8k", "mode=711")
        await mount.umount(s, tmp_path)
        assert seen(s, tmp_path) == []
        with pytest.raises(linx.SetupError) as caught:
            await mount.umount(s, tmp_path)
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(tmp_path))
        await s.proceed()


async def test_umount_what_is_busy(tmp_path: Path) -> None:
    async with parked() as s:
        await mount.apply(s, [Tmpfs(tmp_path), Tmpfs(tmp_path / "sub")])
        with pytest.raises(linx.SetupError) as caught:
            await mount.umount(s, tmp_path)
        assert (caught.value.errno, caught.value.stage) == (errno.EBUSY, "mount")
        await mount.umount(s, tmp_path, detach=True)
        assert not [point for point in points(s) if point.startswith(str(tmp_path))]


@pytest.mark.parametrize("name", ["plain", "with space", "with\nnewline", "back\\slash", " (deleted)", "ümlaut"])
async def test_names_of_any_kind(name: str) -> None:
    async with parked(root=EMPTY, mounts=[*programs(), Proc()]) as s:
        await mount.mount(s, "tmpfs", f"/{name}")
        await mount.bind(s, f"/{name}", f"/{name}/{name}")
        assert points(s)[-2:] == [f"/{name}", f"/{name}/{name}"]
        await mount.umount(s, f"/{name}/{name}")
        await mount.move(s, f"/{name}", "/other")
        assert points(s)[-1] == "/other"


async def test_remount() -> None:
    async with parked(root=EMPTY, mounts=[Tmpfs("/a"), Tmpfs("/a/b")]) as s:
        await mount.remount(s, "/a", readonly=True, flags=["noatime"])
        assert {"ro", "noatime", "nosuid"} <= set(seen(s, "/a")[0].options)
        assert not seen(s, "/a/b")[0].readonly
        await mount.remount(s, "/a", noexec=True, nosuid=False, recursive=True)
        assert {"ro", "noatime", "noexec"} <= set(seen(s, "/a")[0].options)
        assert "nosuid" not in seen(s, "/a/b")[0].options
        await mount.remount(s, "/a", readonly=False, flags=["relatime"])
        assert {"rw", "relatime"} <= set(seen(s, "/a")[0].options)
        await mount.remount(s, "/", readonly=True)
        with pytest.raises(linx.SetupError) as caught:
            await mount.apply(s, [Dir("/new")])
        assert caught.value.errno == errno.EROFS


async def test_move() -> None:
    async with parked(root=EMPTY, mounts=[Tmpfs("/a"), File("/a/file", "x"), Tmpfs("/a/b")]) as s:
        await mount.move(s, "/a", "/new/place")
        assert points(s)[-2:] == ["/new/place", "/new/place/b"]
        assert (root_of(s) / "new/place/file").read_text() == "x"
        with pytest.raises(linx.SetupError) as caught:
            await mount.move(s, "/a", "/c")
        assert caught.value.errno == errno.EINVAL
        assert "'/a' to '/c'" in str(caught.value.filename)


async def test_move_the_mount_of_a_file() -> None:
    """To where there is nothing yet: a file is made for it."""
    async with parked(root=EMPTY, mounts=[File("/file", "x"), Bind("/dev/null", "/null")]) as s:
        await mount.move(s, "/null", "/deep/null")
        assert points(s)[-1] == "/deep/null"


async def test_propagation(tmp_path: Path) -> None:
    async with parked() as s:
        await mount.mount(s, "tmpfs", tmp_path)
        for verb, expected in (
            (mount.make_shared, "shared"),
            (mount.make_private, "private"),
            (mount.make_unbindable, "unbindable"),
            (mount.make_shared, "shared"),
        ):
            await verb(s, tmp_path)
            assert seen(s, tmp_path)[0].propagation == expected
        await mount.apply(s, [Dir(tmp_path / "peer")])
        await mount.bind(s, tmp_path, tmp_path / "peer")
        await mount.make_slave(s, tmp_path / "peer")
        peer = seen(s, tmp_path / "peer")[-1]
        assert peer.propagation == "slave"
        assert peer.master == seen(s, tmp_path)[0].peer_group
        await mount.make_shared(s)
        assert seen(s, "/")[0].propagation == "shared"
        assert {each.propagation for each in mount.mounts(s)} <= {"shared", "shared,slave"}


async def test_pivot_root(tmp_path: Path) -> None:
    async with parked(stdout=linx.PIPE) as s:
        new = tmp_path / "new"
        await mount.apply(s, [Tmpfs(new), Dir(new / "etc"), File(new / "etc/text", "inside")])
        await mount.pivot_root(s, new)
        assert points(s)[0] == "/"
        assert {each.mount_point for each in mount.mounts(s)} == {"/"}
        assert (root_of(s) / "etc/text").read_text() == "inside"
        await mount.mount(s, "tmpfs", "/etc/more")
        assert points(s) == ["/", "/", "/etc/more"] or points(s) == ["/", "/etc/more"]
        with pytest.raises(FileNotFoundError):
            await mount.bind(s, "/usr")
        with pytest.raises(linx.SetupError) as caught:
            await s.proceed()
        assert (caught.value.errno, caught.value.stage) == (errno.ENOENT, "execve")


async def test_a_refused_pivot_root_leaves_all_as_it_was(tmp_path: Path) -> None:
    """pivot_root(2) refuses shared mounts. What comes after it is about the old root, and the directory is the old
    one.
    """
    async with linx.spawn(["pwd"], **own(cwd=None, stdout=linx.PIPE)) as s:
        await mount.make_shared(s)
        with pytest.raises(linx.SetupError) as caught:
            await mount.pivot_root(s, tmp_path)
        assert (caught.value.errno, caught.value.stage) == (errno.EINVAL, "pivot_root")
        assert caught.value.filename == str(tmp_path)
        await mount.mount(s, "tmpfs", "/mnt")
        assert "/mnt" in points(s)
        await s.proceed()
        assert s.stdout is not None
        assert b"".join([bytes(chunk) async for chunk in s.stdout]).decode() == f"{os.getcwd()}\n"


async def test_apply_in_two_parts_is_the_same_as_mounts() -> None:
    entries = [*programs(), Proc(), Dir("/var/x", 0o700), Symlink("x", "/var/y")]
    async with parked(root=EMPTY, mounts=[*entries, Tmpfs("/tmp")]) as s:
        declared = [(each.mount_point, each.fstype, each.options) for each in mount.mounts(s)]
    async with parked(root=EMPTY, mounts=entries) as s:
        await mount.apply(s, [Tmpfs("/tmp")])
        assert [(each.mount_point, each.fstype, each.options) for each in mount.mounts(s)] == declared
        await mount.apply(s, [])
        await mount.apply(s, iter([Dir("/tmp/made")]))
        assert os.listdir(root_of(s) / "tmp") == ["made"]


async def test_what_was_done_while_parked_is_what_it_sees(tmp_path: Path) -> None:
    script = f"cat {tmp_path}/file; touch {tmp_path}/new"
    async with linx.spawn(["sh", "-c", script], **own(stdout=linx.PIPE, stderr=linx.STDOUT)) as s:
        await mount.apply(s, [Tmpfs(tmp_path), File(tmp_path / "file", "hello\n")])
        await mount.remount(s, tmp_path, readonly=True)
        await s.proceed()
        assert s.stdout is not None
        text = b"".join([bytes(chunk) async for chunk in s.stdout]).decode()
        assert text.startswith("hello\n")
        assert "Read-only" in text


async def test_an_overlay_by_verb(tmp_path: Path) -> None:
    layers = [tmp_path / f"{'x' * 100}{number}" for number in range(3)]
    for layer in layers:
        layer.mkdir()
        (layer / layer.name[-1]).touch()
    async with parked() as s:
        await mount.apply(s, [Tmpfs(tmp_path / "dst"), Overlay(tmp_path / "dst/all", layers, userxattr=True)])
        assert sorted(os.listdir(root_of(s) / f"{tmp_path}/dst/all"[1:])) == ["0", "1", "2"]


# ---- refused -----------------------------------------------------------------------------------------------------


async def test_a_refused_step_leaves_it_parked() -> None:
    """What was done before stays, what comes after is not done; and all works as before."""
    async with parked(root=EMPTY, mounts=programs()) as s:
        for _ in range(3):
            with pytest.raises(FileNotFoundError) as caught:
                await mount.apply(s, [Dir("/before"), Bind(REFUSED, "/x"), Dir("/after")])
            assert isinstance(caught.value, linx.SetupError)
            assert (caught.value.errno, caught.value.stage) == (errno.ENOENT, "mount")
            assert caught.value.filename == f"Bind(src={REFUSED!r}, dst='/x')"
            assert s.state == "ready"
            assert (root_of(s) / "before").is_dir()
            assert not (root_of(s) / "after").exists()
        await mount.mount(s, "tmpfs", "/works")
        assert points(s)[-1] == "/works"
        await s.proceed()
        assert s.state == "running"


Verb = Callable[[linx.Session], Awaitable[None]]
VERBS: dict[str, Verb] = {
    "apply": lambda s: mount.apply(s, [Dir("/x")]),
    "bind": lambda s: mount.bind(s, "/usr", "/x"),
    "mount": lambda s: mount.mount(s, "tmpfs", "/x"),
    "remount": lambda s: mount.remount(s, "/x", readonly=True),
    "move": lambda s: mount.move(s, "/x", "/y"),
    "umount": lambda s: mount.umount(s, "/x"),
    "pivot_root": lambda s: mount.pivot_root(s, "/x"),
    "make_private": lambda s: mount.make_private(s, "/x"),
    "make_slave": lambda s: mount.make_slave(s, "/x"),
    "make_shared": lambda s: mount.make_shared(s, "/x"),
    "make_unbindable": lambda s: mount.make_unbindable(s, "/x"),
}


@pytest.mark.parametrize("name", VERBS)
async def test_only_while_parked(name: str) -> None:
    verb = VERBS[name]
    async with linx.spawn(SLEEP, namespaces={"user", "mount"}, wait_ready=False) as s:
        with pytest.raises(linx.NotReady, match=f"^{name}: "):
            await verb(s)
    async with linx.spawn(SLEEP, namespaces={"user", "mount"}) as s:
        await s.proceed()
        with pytest.raises(linx.AlreadyRunning) as late:
            await verb(s)
        assert (late.value.verb, late.value.state) == (name, "running")
    with pytest.raises(linx.NoProcess, match=f"^{name}: "):
        await verb(s)
    with pytest.raises(linx.NoProcess, match=r"^umount: "):
        await mount.umount("/x", inside=s)


async def test_not_once_proceed_has_been_called() -> None:
    async with parked(root=EMPTY, mounts=programs()) as s, trio.open_nursery() as nursery:
        nursery.start_soon(s.proceed)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(linx.AlreadyRunning):
            await mount.apply(s, [Dir("/x")])


@pytest.mark.parametrize("name", VERBS)
async def test_without_a_mount_namespace_of_its_own(name: str) -> None:
    """Whether or not the kernel would let it; and it is parked still."""
    async with linx.spawn(SLEEP, namespaces={"user"}) as s:
        with pytest.raises(ValueError, match=r'no mount namespace of its own.*namespaces=\{"mount"\}.*inside='):
            await VERBS[name](s)
        assert s.state == "ready"


async def test_the_mounts_of_what_was_entered() -> None:
    """They are changed with ``inside=`` only, and one's own with ``unshare=``."""
    async with parked(root=EMPTY, mounts=programs()) as target:
        await target.proceed()
        before = mount.mounts(target)
        async with linx.enter(target, SLEEP, namespaces={"user", "mount"}) as s:
            with pytest.raises(ValueError, match="no mount namespace of its own"):
                await mount.mount(s, "tmpfs", "/x")
        async with linx.enter(target, SLEEP, unshare={"mount"}) as s:
            await mount.mount(s, "tmpfs", "/x")
            assert points(s)[-1] == "/x"
        assert mount.mounts(target) == before


@pytest.mark.parametrize("target", [os.getpid, lambda: "/proc/self"], ids=["pid", "path"])
async def test_the_callers_own_root_stays(target: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"inside=.* is in the caller's own mount namespace"):
        await mount.pivot_root(REFUSED, inside=target())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: mount.bind(s, "relative"), "Bind: src"),
        (lambda s: mount.bind(s, "/usr", "/"), "dst"),
        (lambda s: mount.mount(s, "tmpfs", "/a/../b"), "'/a/../b'"),
        (lambda s: mount.mount(s, "tmpfs", "/x", flags=["nonsense"]), "'nonsense'"),
        (lambda s: mount.remount(s, "/x"), "changes nothing"),
        (lambda s: mount.move(s, "x", "/y"), "src"),
        (lambda s: mount.umount(s, "/x\0"), "dst"),
        (lambda s: mount.umount(s, "/x", detach=1), "detach"),  # type: ignore[call-overload]
        (lambda s: mount.apply(s, [Dir("/x"), "/y"]), r"entries\[1\]"),  # type: ignore[list-item]
        (lambda s: mount.apply(s, Dir("/x")), "entries"),  # type: ignore[call-overload]
        (lambda s: mount.bind(None, "/usr"), "inside="),
        (lambda s: mount.bind(s, "/usr", inside=s.host_pid), "not both"),
    ],
)
async def test_bad_input_is_refused_at_once(call: Callable[[linx.Session], Any], message: str) -> None:
    async with parked() as s:
        before = mount.mounts(s)
        with pytest.raises((TypeError, ValueError), match=message):
            await call(s)
        assert mount.mounts(s) == before
        assert s.state == "ready"


# ---- at once, and cancelled --------------------------------------------------------------------------------------


async def test_several_tasks_at_once() -> None:
    """Each gets its own answer."""
    outcomes: dict[int, str] = {}

    async def one(s: linx.Session, number: int) -> None:
        try:
            await mount.bind(s, "/usr" if number % 3 else f"{REFUSED}/{number}", f"/at/{number}")
        except linx.SetupError as exc:
            outcomes[number] = str(exc.filename)
        else:
            outcomes[number] = "done"

    async with parked(root=EMPTY, mounts=[*programs()]) as s:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(one, s, number)
        assert {number for number in range(60) if outcomes[number] == "done"} == {n for n in range(60) if n % 3}
        for number in range(0, 60, 3):
            assert f"{REFUSED}/{number}'" in outcomes[number]
        assert len([point for point in points(s) if point.startswith("/at/")]) == 40


async def test_two_sessions_at_once() -> None:
    async with contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(parked(root=EMPTY)) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for number, s in enumerate(sessions):
                nursery.start_soon(mount.apply, s, [File("/who", str(number))] * 50)
        assert [(root_of(s) / "who").read_text() for s in sessions] == ["0", "1", "2"]


async def test_cancelled_verbs_do_not_mix_up_the_answers() -> None:
    """What is cancelled may still be done, and answered later; the next one gets its own answer."""
    async with parked(root=EMPTY) as s:
        for number in range(20):
            with trio.move_on_after(0.0002 * number), contextlib.suppress(FileNotFoundError):
                await mount.apply(s, [Dir(f"/d{number}"), Bind(REFUSED, "/x")])
            await mount.apply(s, [Dir(f"/after{number}")])
            assert (root_of(s) / f"after{number}").is_dir()
            with pytest.raises(FileNotFoundError):
                await mount.apply(s, [Bind(REFUSED, "/x")])


async def test_cancelled_while_the_child_takes_the_steps() -> None:
    async with parked(root=EMPTY) as s:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.apply, s, [Dir(f"/d/{number}") for number in range(500)])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await mount.apply(s, [Dir("/after")])
        assert len(os.listdir(root_of(s) / "d")) == 500, "they were done all the same, before what came after them"


async def test_killed_while_it_takes_the_steps() -> None:

    async def apply(s: linx.Session) -> None:
        with pytest.raises(linx.NoProcess):
            await mount.apply(s, [File("/big", bytes(1 << 20))] * 15)

    async with parked(root=EMPTY) as s:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(apply, s)
            await trio.testing.wait_all_tasks_blocked()
            s.kill()
        assert await s.wait() in (linx.Signaled(9), linx.Aborted())


# ---- inside= -----------------------------------------------------------------------------------------------------


async def test_inside_a_running_workload() -> None:
    """Whatever names it; and nothing is left in there besides the mounts."""
    async with linx.spawn(SLEEP, **own(root=EMPTY, mounts=[*programs(), Proc()])) as s:
        await s.proceed()
        pidfd = os.pidfd_open(s.host_pid)
        try:
            targets: list[Any] = [s, s.host_pid, s.pidfd, f"/proc/{s.host_pid}", os.fsencode(f"/proc/{s.host_pid}")]
            for number, target in enumerate(targets):
                await mount.mount("tmpfs", f"/m/{number}", inside=target)
                assert points(s)[-1] == f"/m/{number}"
                await mount.bind(None, "/usr", f"/u/{number}", readonly=True, inside=target)
                assert seen(s, f"/u/{number}")[0].readonly
        finally:
            os.close(pidfd)
        await mount.apply([File("/m/0/text", "hi")], inside=s)
        assert (root_of(s) / "m/0/text").read_text() == "hi"
        await mount.remount("/m/0", readonly=True, inside=s)
        await mount.move("/m/0", "/moved", inside=s)
        assert seen(s, "/moved")[0].readonly
        await mount.make_shared("/moved", inside=s)
        assert seen(s, "/moved")[0].propagation == "shared"
        await mount.make_private("/moved", inside=s)
        await mount.umount("/moved", inside=s)
        assert seen(s, "/moved") == []
        assert children_of(s.host_pid) == []


async def test_pivot_root_inside() -> None:
    """pivot_root(2) takes all along that had the old root, the running workload too."""
    async with linx.spawn(SLEEP, **own(root=EMPTY, mounts=[*programs(), Tmpfs("/new"), File("/new/text", "new")])) as s:
        await s.proceed()
        await mount.pivot_root("/new", inside=s)
        assert os.listdir(root_of(s)) == ["text"]


async def test_inside_refused() -> None:
    async with linx.spawn(SLEEP, **own(root=EMPTY, mounts=programs())) as s:
        await s.proceed()
        with pytest.raises(FileNotFoundError) as caught:
            await mount.bind(REFUSED, "/x", inside=s)
        assert isinstance(caught.value, linx.SetupError)
        assert (caught.value.stage, caught.value.filename) == ("mount", f"Bind(src={REFUSED!r}, dst='/x')")
        pid = s.host_pid
    with pytest.raises(linx.SetupError) as gone:
        await mount.bind("/usr", "/x", inside=pid)
    assert (gone.value.errno, gone.value.stage) == (errno.ENOENT, "open_ns_user")
    with pytest.raises(linx.NoProcess):
        await mount.bind("/usr", "/x", inside=s)


# ---- mounts() ----------------------------------------------------------------------------------------------------


async def test_mounts_of_anybody() -> None:
    assert len(mount.mounts(os.getpid())) == len(proc("self", "mountinfo").splitlines())
    async with parked(root=EMPTY, mounts=programs()) as s:
        assert mount.mounts(s) == mount.mounts(s.host_pid) == mount.mounts(f"/proc/{s.host_pid}")
        pid = s.host_pid
    for target, error in ((s, linx.NoProcess), (pid, FileNotFoundError), (f"/proc/{pid}", FileNotFoundError)):
        with pytest.raises(error):
            mount.mounts(target)


async def test_a_workload_may_mount_by_itself(tmp_path: Path) -> None:
    assert await told(f"mount -t tmpfs none {tmp_path} && grep -c {tmp_path} /proc/self/mountinfo") == "1\n"


async def test_more_than_one_message_takes() -> None:
    """Refused before anything is sent; the answers to what follows are not mixed up."""
    async with parked(root=EMPTY) as s:
        with pytest.raises(linx.SetupError) as caught:
            await mount.apply(s, [File(f"/{number}", bytes(1 << 20)) for number in range(17)])
        assert (caught.value.errno, caught.value.stage) == (errno.E2BIG, "request")
        with trio.fail_after(20):
            await mount.apply(s, [Dir("/after")])
        assert os.listdir(root_of(s)) == ["after"]
        with pytest.raises(FileNotFoundError):
            await mount.bind(s, REFUSED, "/x")
