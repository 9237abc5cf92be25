"""A root that somebody else has filled cannot send what is made or mounted in it anywhere else: symlinks in it end
within it, and what is at a place is never followed out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import linx_trio as linx
from linx_trio import mount
from linx_trio.mount import Bind, Dir, Entry, File, Mount, Overlay, Proc, Symlink, Tmpfs
from tests.agent.probes import needs_root
from tests.agent.roots import EMPTY, SLEEP, is_there, own, parked, points, programs, root_of, seen, told

LINKS = {
    "up": "../../../../../../../..",
    "absolute": "/",
    "deep": "a/b/../../../../../..",
    "chain": "up",
    "host": "{outside}",
    "relative": "../outside",
    "self": "/proc/self/root",
    "magic": "/proc/self/cwd",
}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A root with links out of it, and beside it a directory that must stay as it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    root = tmp_path / "tree"
    (root / "a/b").mkdir(parents=True)
    for name, target in LINKS.items():
        (root / name).symlink_to(target.format(outside=outside))
    yield root
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "untouched"
    assert not os.path.lexists(tmp_path / "made")
    assert not os.path.lexists("/made")


ENTRIES: dict[str, Entry] = {
    "dir": Dir("/{}/made"),
    "file": File("/{}/made", "x"),
    "symlink": Symlink("x", "/{}/made"),
    "tmpfs": Tmpfs("/{}/made"),
    "bind": Bind("/usr", "/{}/made"),
    "bind file": Bind("/dev/null", "/{}/made"),
    "overlay": Overlay("/{}/made", ["/usr", "/etc"]),
}


def at(entry: Entry, name: str) -> Entry:
    plain = entry.to_dict()
    return mount_entry({**plain, "dst": plain["dst"].format(name)})


def mount_entry(plain: dict[str, object]) -> Entry:
    workload = linx.Workload.from_dict({"argv": ["x"], "mounts": [plain]})
    (entry,) = workload.mounts
    return entry


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("name", ["up", "absolute", "deep", "chain"])
async def test_what_is_made_behind_a_link_is_in_the_root(tree: Path, name: str, kind: str) -> None:
    async with parked(root=tree, mounts=[at(ENTRIES[kind], name)]) as s:
        assert "made" in os.listdir(root_of(s))
    assert sorted(os.listdir(tree.parent)) == ["outside", "tree"]


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("name", ["host", "self", "magic"])
async def test_a_link_to_what_the_root_has_not(tree: Path, name: str, kind: str) -> None:
    """What it names be right outside; in here there is nothing, and a link is not filled in."""
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["/x"], **own(root=tree, mounts=[at(ENTRIES[kind], name)]))
    assert (caught.value.errno, caught.value.stage) == (errno.ENOENT, "mount")


@pytest.mark.parametrize("name", ["host", "relative", "up", "loop", "file"])
async def test_a_file_is_not_written_through_a_link(tree: Path, name: str) -> None:
    (tree / "loop").symlink_to("loop")
    (tree / "own").write_text("own")
    (tree / "file").symlink_to("own")
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["/x"], **own(root=tree, mounts=[File(f"/{name}", "overwritten")]))
    assert (caught.value.errno, caught.value.stage) == (errno.ELOOP, "mount")
    assert caught.value.filename == f"File(dst='/{name}', data=<11 bytes>)"
    assert (tree / "own").read_text() == "own"


@pytest.mark.parametrize("kind", ["dir", "tmpfs", "bind", "bind file"])
async def test_a_dangling_link_is_no_mount_point(tree: Path, kind: str) -> None:
    (tree / "made").symlink_to("nowhere")
    entry = at(ENTRIES[kind], ".")
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["/x"], **own(root=tree, mounts=[entry]))
    assert caught.value.errno in (errno.ENOENT, errno.EEXIST)
    assert not (tree / "nowhere").exists()


@pytest.mark.parametrize("place", ["/proc/self/root", "/proc/1/root/made", "/proc/self/cwd", "/proc/self/fd/0/x"])
async def test_magic_links_of_proc_are_not_followed(tree: Path, place: str) -> None:
    """Of a procfs that is in the root already."""
    for entry in (Dir(f"{place}/made"), Tmpfs(f"{place}/made"), File(f"{place}/made", "x")):
        with pytest.raises(linx.SetupError) as caught:
            await linx.run(["/x"], **own(root=tree, mounts=[Proc(), entry]))
        assert caught.value.stage == "mount"
        assert caught.value.errno in (errno.ELOOP, errno.EXDEV)


async def test_verbs_do_not_leave_the_root_either(tree: Path) -> None:
    """After pivot_root(2) there is nothing outside; a link ends where the workload's own would."""
    async with parked(root=tree) as s:
        for number, name in enumerate(("up", "absolute", "deep", "chain")):
            await mount.mount(s, "tmpfs", f"/{name}/t{number}")
            assert points(s)[-1] == f"/t{number}"
            await mount.umount(s, f"/{name}/t{number}")
            assert seen(s, f"/t{number}") == []
        with pytest.raises(FileNotFoundError):
            await mount.bind(s, tree.parent / "outside", "/made")


SPECIAL = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}


@pytest.mark.parametrize("kind", ["fifo", "socket", pytest.param("device", marks=needs_root)])
async def test_a_file_over_what_is_no_file(tmp_path: Path, kind: str) -> None:
    """It is refused, and nobody waits for a reader."""
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mknod(tree / "file", 0o600 | SPECIAL[kind], os.makedev(1, 3))
    with trio.fail_after(20), pytest.raises(linx.SetupError) as caught:
        await linx.run(["/x"], **own(root=tree, mounts=[File("/file", "x", 0o666)]))
    assert (caught.value.errno, caught.value.stage) == (errno.EEXIST, "mount")
    assert kind in str(caught.value.hint).lower()
    assert stat.S_IMODE((tree / "file").stat().st_mode) == 0o600


async def test_a_file_over_a_fifo_that_is_being_read(tree: Path) -> None:
    os.mkfifo(tree / "fifo", 0o600)
    reader = os.open(tree / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(linx.SetupError) as caught:
            await linx.run(["/x"], **own(root=tree, mounts=[File("/fifo", "x", 0o666)]))
        assert caught.value.errno == errno.EEXIST
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
    assert stat.S_IMODE((tree / "fifo").stat().st_mode) == 0o600


async def test_a_file_over_one_that_has_another_name(tree: Path) -> None:
    """Which may be outside of the root: that one stays as it is."""
    outside = tree.parent / "outside/file"
    os.link(outside, tree / "file")
    before = outside.stat().st_mode
    async with parked(root=tree, mounts=[File("/file", "new", 0o666)]):
        assert (tree / "file").read_text() == "new"
        assert stat.S_IMODE((tree / "file").stat().st_mode) == 0o666
    assert (outside.stat().st_mode, outside.stat().st_nlink) == (before, 1)


async def test_a_file_over_a_file(tree: Path) -> None:
    """It is that file still, for those who have it open."""
    (tree / "file").write_text("longer than the new one")
    with (tree / "file").open() as file:
        async with parked(root=tree, mounts=[File("/file", "new", 0o604)]):
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o604
        assert file.read() == "new"


async def test_lookups_hold_while_the_host_mounts(tmp_path: Path) -> None:
    """openat2(2) gives up (EAGAIN) on a ".." that it crosses while anything is mounted or renamed anywhere."""
    tree = tmp_path / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "link").symlink_to("a/b/c/" + "../../../a/b/c/" * 100)
    (tree / "busy").mkdir()
    rounds = 30
    loop = "while :; do mount -t tmpfs x /busy; umount /busy; done"
    async with linx.spawn(["/bin/sh", "-c", loop], **own(root=EMPTY, mounts=[*programs(), Dir("/busy")])) as noise:
        await noise.proceed()
        async with parked(root=tree) as s:
            for number in range(rounds):
                await mount.apply(s, [Dir(f"/link/{number}/{part}") for part in range(50)])
    assert len(os.listdir(tree / "a/b/c")) == rounds


async def test_there_is_nothing_below_the_root() -> None:
    """Unmounted by the workload itself, which is root in there."""
    text = await told("umount -l /; umount -l /usr; ls /", root=EMPTY, mounts=programs())
    assert "usr" in text


async def test_readonly_can_not_be_undone_in_a_namespace_below() -> None:
    """The workload is root of its own namespace, in which the flag is its own; in one that it makes it is locked."""
    script = "unshare -Urm sh -c 'mount -o remount,bind,rw /usr; touch /usr/linx-x'"
    text = await told(script, root=EMPTY, mounts=[*programs(), Proc()])
    assert "Read-only" in text
    assert not is_there("/usr/linx-x")


async def test_a_mount_with_a_source_from_outside_the_root() -> None:
    """Sources are the host's until the root has changed, and never again."""
    async with linx.spawn(SLEEP, **own(root=EMPTY, mounts=[Bind("/etc", "/x/etc"), Mount("tmpfs", "/x/t")])) as s:
        with pytest.raises(FileNotFoundError):
            await mount.bind(s, "/etc", "/y")
        await mount.bind(s, "/x/etc", "/y")
        assert os.listdir(root_of(s) / "y") == os.listdir("/etc")
