"""Mount entries as data: what is wrong is said at once, by name; the steps that each becomes; and mountinfo, parsed."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linx_trio import _mount_info, _mount_tree, mount
from linx_trio._mount_steps import FLAGS
from linx_trio._mount_tree import Mask, Protect
from linx_trio._proto import messages as m
from linx_trio._session import Session
from linx_trio._workload import Workload
from linx_trio.mount import (
    Bind,
    Cgroup2,
    Dev,
    Devpts,
    Dir,
    Entry,
    File,
    Mount,
    MountInfo,
    Overlay,
    Proc,
    Propagation,
    Remount,
    Symlink,
    Sysfs,
    Tmpfs,
)
from tests.proto.strategies import relaxed

RDONLY, NOSUID, NODEV, NOEXEC, NOATIME = 1, 2, 4, 8, 0x10

ENTRIES: list[Entry] = [
    Bind("/usr"),
    Bind("/usr", "/mnt/usr", readonly=True, recursive=False, nosuid=True, flags=["noatime"]),
    Cgroup2(),
    Dev(),
    Dev("/mnt/dev"),
    Devpts(),
    Dir("/a/b", 0o700),
    File("/etc/motd", "grüß dich\n"),
    File("/bin/data", b"\xff\x00\xfe", 0o600),
    Mask("/proc/kcore"),
    Mount("mqueue", "/dev/mqueue"),
    Mount("ext4", "/mnt", source="/dev/sda1", options="data=ordered,ro,noatime", noexec=True),
    Overlay("/o", ["/l1", "/l2"]),
    Overlay("/o", ["/l"], "/u", "/w", userxattr=True),
    Proc(),
    Propagation("/", "slave"),
    Protect("/proc/sys"),
    Remount("/", readonly=True, recursive=True, flags=("relatime",)),
    Symlink("usr/bin", "/bin"),
    Sysfs(),
    Tmpfs("/tmp", "64M", 0o1777),
    Tmpfs("/run", 1 << 20, noexec=True),
]
by_repr = pytest.mark.parametrize("entry", ENTRIES, ids=repr)


def test_all_kinds_are_here() -> None:
    assert {type(entry) for entry in ENTRIES} == set(_mount_tree.KINDS.values())
    internal = {"Mask", "Protect"}  # for what the sandbox makes of /proc
    assert {kind.__name__ for kind in _mount_tree.KINDS.values()} - internal <= set(mount.__all__)


# ---- journeys ----------------------------------------------------------------------------------------------------


@by_repr
def test_entries_survive(entry: Entry) -> None:
    assert pickle.loads(pickle.dumps(entry)) == entry
    plain = entry.to_dict()
    again = _mount_tree.entry_of(json.loads(json.dumps(plain)))
    assert again == entry
    assert type(again) is type(entry)
    assert again.steps() == entry.steps()
    assert hash(entry) == hash(again)


@by_repr
def test_entries_are_frozen(entry: Entry) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.dst = "/elsewhere"  # type: ignore[attr-defined]


@by_repr
def test_steps_can_be_sent(entry: Entry) -> None:
    steps = entry.steps()
    assert steps
    for step, thing in steps:
        assert step[0] in m.STEPS
        assert all(type(argument) in (int, bytes) for argument in step[1:])
        assert repr(entry) in thing
        assert hash(step) == hash(tuple(step))
    m.steps([step for step, _ in steps])


def test_what_is_shown() -> None:
    assert repr(Bind("/usr")) == "Bind(src='/usr', dst='/usr')"
    assert repr(Bind(b"/usr", Path("/mnt"), True)) == "Bind(src='/usr', dst='/mnt', readonly=True)"
    assert repr(File("/etc/secret", "hunter2")) == "File(dst='/etc/secret', data=<7 bytes>)"
    assert repr(Proc()) == "Proc()"
    assert repr(Tmpfs("/tmp", mode=0o1777)) == "Tmpfs(dst='/tmp', mode=0o1777)"
    assert repr(Dir("/d", 0o7)) == "Dir(dst='/d', mode=0o007)"


@given(st.binary(max_size=50), st.integers(0, 0o7777))
@relaxed
def test_any_content_survives(data: bytes, mode: int) -> None:
    entry = File("/x", data, mode)
    assert _mount_tree.entry_of(json.loads(json.dumps(entry.to_dict()))) == entry
    assert entry.steps()[0][0] == ("make_file", b"/x", data, mode)


@pytest.mark.parametrize(
    "plain",
    [None, [], "bind", {}, {"kind": "bnid"}, {"src": "/usr"}, {"kind": "bind"}, {"kind": "bind", "src": "/", "x": 1},
     {"kind": "file", "dst": "/x", "data": {"base64": "???"}}, {"kind": ["bind"]}],
    ids=repr,
)  # fmt: skip
def test_wrong_plain_forms(plain: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        _mount_tree.entry_of(plain)


# ---- what is wrong -----------------------------------------------------------------------------------------------

Make = Callable[[], object]

WRONG: list[tuple[Make, type[Exception], list[str]]] = [
    (lambda: Bind("usr"), ValueError, ["src", "absolute", "'usr'"]),
    (lambda: Bind(""), ValueError, ["src", "empty"]),
    (lambda: Bind(5), TypeError, ["src", "5"]),  # type: ignore[arg-type]
    (lambda: Bind("/a\0b"), ValueError, ["src", "NUL"]),
    (lambda: Bind("/\ud800"), ValueError, ["src", r"\ud800"]),
    (lambda: Bind("/" + "x" * 5000), ValueError, ["src", "5001"]),
    (lambda: Bind("/usr", "mnt"), ValueError, ["dst", "absolute", "'mnt'"]),
    (lambda: Bind("/usr", "/"), ValueError, ["dst", "root="]),
    (lambda: Bind("/"), ValueError, ["dst", "root="]),
    (lambda: Bind("/usr", "/mnt/../../etc"), ValueError, ["dst", "'..'"]),
    (lambda: Bind("/usr", readonly=1), TypeError, ["readonly", "1"]),  # type: ignore[arg-type]
    (lambda: Bind("/usr", recursive="no"), TypeError, ["recursive", "'no'"]),  # type: ignore[arg-type]
    (lambda: Bind("/usr", flags="ro"), TypeError, ["flags", "'ro'"]),
    (lambda: Bind("/usr", flags=["nosuit"]), ValueError, ["unknown mount flag", "'nosuit'", "nosuid"]),
    (lambda: Bind("/usr", flags=[8]), ValueError, ["unknown mount flag", "8"]),  # type: ignore[list-item]
    (lambda: Mount("", "/x"), ValueError, ["fstype", "empty"]),
    (lambda: Mount("tmpfs", "x"), ValueError, ["dst", "'x'"]),
    (lambda: Mount("tmpfs", "/x", options=7), TypeError, ["options", "7"]),  # type: ignore[arg-type]
    (lambda: Mount("tmpfs", "/x", options="x" * 5000), ValueError, ["options has 5000 bytes; mount(2) takes 4095"]),
    (lambda: Mount("tmpfs", "/x", flags=["mode=1"]), ValueError, ["unknown mount flag", "'mode=1'"]),
    (lambda: Mount("tmpfs", "/x", source=5), TypeError, ["source", "5"]),  # type: ignore[arg-type]
    (lambda: Tmpfs("/x", 0), ValueError, ["size", "0"]),
    (lambda: Tmpfs("/x", -1), ValueError, ["size", "-1"]),
    (lambda: Tmpfs("/x", "64MB"), ValueError, ["size", "'64MB'"]),
    (lambda: Tmpfs("/x", "1,mode=777"), ValueError, ["size", "'1,mode=777'"]),
    (lambda: Tmpfs("/x", "0"), ValueError, ["size", "'0'"]),
    (lambda: Tmpfs("/x", 1.5), TypeError, ["size", "1.5"]),  # type: ignore[arg-type]
    (lambda: Tmpfs("/x", True), TypeError, ["size", "True"]),
    (lambda: Tmpfs("/x", mode=0o10000), ValueError, ["mode", "0o7777", "0o10000"]),
    (lambda: Tmpfs("/x", mode="755"), TypeError, ["mode", "'755'"]),  # type: ignore[arg-type]
    (lambda: Proc(None), TypeError, ["dst", "None"]),  # type: ignore[arg-type]
    (lambda: Proc("/"), ValueError, ["dst", "root="]),
    (lambda: Dev("dev"), ValueError, ["dst", "'dev'"]),
    (lambda: Overlay("/x", "/lower"), TypeError, ["lower", "'/lower'"]),
    (lambda: Overlay("/x", ["/a", "b"], "/u", "/w"), ValueError, ["lower[1]", "'b'"]),
    (lambda: Overlay("/x", []), ValueError, ["lower", "[]"]),
    (lambda: Overlay("/x", ["/a"]), ValueError, ["lower", "['/a']", "two"]),
    (lambda: Overlay("/x", [], "/u", "/w"), ValueError, ["lower", "one"]),
    (lambda: Overlay("/x", ["/a"], "/u"), ValueError, ["upper='/u'", "work=None"]),
    (lambda: Overlay("/x", ["/a:b", "/c"]), ValueError, ["lower[0]", "'/a:b'"]),
    (lambda: Overlay("/x", ["/a"], "/u,userxattr", "/w"), ValueError, ["upper", "'/u,userxattr'"]),
    (lambda: Overlay("/x", ["/a"], "/u", "/w\\"), ValueError, ["work", "backslash"]),
    (lambda: Overlay("/x", ["/a"], "/u", "/u/"), ValueError, ["upper='/u'", "work='/u/'", "two directories"]),
    (lambda: Overlay("/x", ["/" + "x" * 199] * 21), ValueError, ["lower", "21 paths", "4229 bytes", "4095"]),
    (lambda: Symlink("", "/x"), ValueError, ["target", "empty"]),
    (lambda: Symlink("y", "x"), ValueError, ["dst", "'x'"]),
    (lambda: Dir("/"), ValueError, ["dst", "root="]),
    (lambda: Dir("/x", -1), ValueError, ["mode", "-0o1"]),
    (lambda: File("/x", None), TypeError, ["data", "None"]),  # type: ignore[arg-type]
    (lambda: File("/x", "\ud800"), ValueError, ["data", "UTF-8"]),
    (lambda: File("/x", bytes((1 << 20) + 1)), ValueError, ["data", str((1 << 20) + 1), "Bind"]),
    (lambda: File("/../x", "y"), ValueError, ["dst", "'..'"]),
    (lambda: Remount("/x"), ValueError, ["changes nothing", "readonly="]),
    (lambda: Remount("/x", 1), TypeError, ["readonly", "1"]),  # type: ignore[arg-type]
    (lambda: Remount("/x", flags=["remount"]), ValueError, ["unknown mount flag", "'remount'"]),
    (lambda: Bind("/usr", readonly=True, flags=["rw"]), ValueError, ["Bind", "readonly=True", "'rw' in flags"]),
    (lambda: Bind("/usr", nosuid=True, flags=["suid"]), ValueError, ["Bind", "nosuid=True", "'suid' in flags"]),
    (lambda: Bind("/usr", flags=["noatime", "ro", "relatime"]), ValueError, ["'noatime' in flags", "'relatime' in"]),
    (lambda: Mount("x", "/x", readonly=True, options="a,rw"), ValueError, ["readonly=True", "'rw' in options"]),
    (lambda: Mount("x", "/x", options="ro", flags=["rw"]), ValueError, ["'ro' in options", "'rw' in flags"]),
    (lambda: Mount("x", "/x", options="dev,nodev"), ValueError, ["'dev' in options", "'nodev' in options"]),
    (lambda: Remount("/x", readonly=True, flags=["rw"]), ValueError, ["Remount", "readonly=True", "'rw' in flags"]),
    (lambda: Remount("/x", noexec=False, flags=["noexec"]), ValueError, ["noexec=False", "'noexec' in flags"]),
    (lambda: Remount("/x", flags=["noatime", "strictatime"]), ValueError, ["'noatime'", "'strictatime'"]),
    (lambda: Propagation("/", "rslave"), ValueError, ["type", "'rslave'", "slave"]),
    (lambda: _mount_tree.check_root("srv", "root"), ValueError, ["root", "'srv'"]),
    (lambda: _mount_tree.check_root("", "root"), ValueError, ["root", "empty"]),
    (lambda: _mount_tree.check_root("//", "root"), ValueError, ["root", "leave it out"]),
    (lambda: _mount_tree.check_root(True, "root"), TypeError, ["root", "True"]),
    (lambda: _mount_tree.check_root(Tmpfs("/", "1M"), "root"), ValueError, ["root", "'1M'"]),
    (lambda: _mount_tree.check_root(Tmpfs("/x"), "root"), ValueError, ["root", "'/x'"]),
    (lambda: _mount_tree.check_mounts(Bind("/usr"), "mounts"), TypeError, ["mounts", "Bind(src='/usr'"]),
    (lambda: _mount_tree.check_mounts("/usr", "mounts"), TypeError, ["mounts", "'/usr'"]),
    (lambda: _mount_tree.check_mounts(None, "mounts"), TypeError, ["mounts", "None"]),
    (lambda: _mount_tree.check_mounts([Proc(), "/usr"], "mounts"), TypeError, ["mounts[1]", "'/usr'"]),
    (lambda: _mount_tree.check_mounts([Proc(), Entry()], "mounts"), TypeError, ["mounts[1]", "bare class Entry"]),
    (lambda: _mount_tree.check_mounts([Proc], "mounts"), TypeError, ["mounts[0]", "Proc"]),
    (lambda: _mount_tree.check_mounts([Tmpfs("/")], "mounts"), ValueError, ["mounts[0]", "root="]),
]


@pytest.mark.parametrize(("make", "error", "mentions"), WRONG, ids=[str(case[2]) for case in WRONG])
def test_what_is_wrong(make: Make, error: type[Exception], mentions: list[str]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert type(caught.value) is error, caught.value
    assert [mention for mention in mentions if mention not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize("dst", ["/a//b/", "/a/./b", "//a/b", b"/a/b", Path("/a/b")])
def test_detours_are_straightened(dst: Any) -> None:
    assert Dir(dst) == Dir("/a/b")


# ---- steps -------------------------------------------------------------------------------------------------------

STEPS: list[tuple[Entry, list[tuple[Any, ...]]]] = [
    (Bind("/usr"), [("mount_bind", b"/usr", b"/usr", 0, 1)]),
    (
        Bind("/usr", "/u", readonly=True, recursive=False, nosuid=True, nodev=True, noexec=True),
        [("mount_bind", b"/usr", b"/u", RDONLY | NOSUID | NODEV | NOEXEC, 0)],
    ),
    (
        Bind("/usr", "/u", flags=["ro", "noatime", "suid"]),
        [("mount_bind", b"/usr", b"/u", RDONLY, 1), ("mount_remount", b"/u", NOATIME, 0x70 | NOSUID, 1)],
    ),
    (Bind("/\udcff", "/ü"), [("mount_bind", b"/\xff", "/ü".encode(), 0, 1)]),
    (Tmpfs("/t"), [("mount_new", b"tmpfs", b"tmpfs", b"/t", b"mode=0755", NOSUID | NODEV)]),
    (
        Tmpfs("/t", 4096, 0o1777, nosuid=False, nodev=False),
        [("mount_new", b"tmpfs", b"tmpfs", b"/t", b"mode=1777,size=4096", 0)],
    ),
    (Proc(), [("mount_new", b"proc", b"proc", b"/proc", b"", NOSUID | NODEV | NOEXEC)]),
    (Sysfs("/s"), [("mount_new", b"sysfs", b"sysfs", b"/s", b"", RDONLY | NOSUID | NODEV | NOEXEC)]),
    (Cgroup2(readonly=True), [("mount_new", b"cgroup2", b"cgroup2", b"/sys/fs/cgroup", b"", 15)]),
    (Mount("ext4", "/m", source="/dev/sda"), [("mount_new", b"ext4", b"/dev/sda", b"/m", b"", 0)]),
    (
        Mount("x", "/m", options="a=1\\,ro,nosuid,b,noatime,ro"),
        [("mount_new", b"x", b"x", b"/m", b"a=1\\,ro,b", RDONLY | NOSUID), ("mount_remount", b"/m", NOATIME, 0x70, 0)],
    ),
    (
        Overlay("/o", ["/l1", "/l2"], "/u", "/w", userxattr=True, nodev=True),
        [("mount_new", b"overlay", b"overlay", b"/o", b"lowerdir=/l1:/l2,upperdir=/u,workdir=/w,userxattr", NODEV)],
    ),
    (Symlink("usr/bin", "/bin"), [("make_symlink", b"usr/bin", b"/bin")]),
    (Dir("/d", 0o700), [("make_dir", b"/d", 0o700)]),
    (File("/f", "ü"), [("make_file", b"/f", "ü".encode(), 0o644)]),
    (Remount("/", readonly=True), [("mount_remount", b"/", RDONLY, 0, 0)]),
    (
        Remount("/m", readonly=False, nosuid=True, noexec=False, recursive=True),
        [("mount_remount", b"/m", NOSUID, RDONLY | NOEXEC, 1)],
    ),
    (Remount("/m", flags=["strictatime"]), [("mount_remount", b"/m", 0x20, 0x70, 0)]),
    (Remount("/m", True, nosuid=False, flags=["ro", "ro", "suid"]), [("mount_remount", b"/m", RDONLY, NOSUID, 0)]),
    (
        Mount("x", "/m", readonly=True, options="ro,nosuid", nosuid=True, flags=["nosuid", "noatime", "noatime"]),
        [("mount_new", b"x", b"x", b"/m", b"", RDONLY | NOSUID), ("mount_remount", b"/m", NOATIME, 0x70, 0)],
    ),
    (Remount("/m", flags=["relatime"]), [("mount_remount", b"/m", 0, 0x70, 0)]),
    (Propagation("/", "slave"), [("mount_propagation", b"/", 1 << 19, 1)]),
    (Propagation("/x", "unbindable", False), [("mount_propagation", b"/x", 1 << 17, 0)]),
]


@pytest.mark.parametrize(("entry", "steps"), STEPS, ids=[repr(entry) for entry, _ in STEPS])
def test_steps(entry: Entry, steps: list[tuple[Any, ...]]) -> None:
    assert entry.steps() == [(step, repr(entry)) for step in steps]


def test_a_minimal_dev() -> None:
    steps = [step for step, _ in Dev("/x/dev").steps()]
    assert steps[0][:4] == ("mount_new", b"tmpfs", b"tmpfs", b"/x/dev")
    assert b"mode=0755" in steps[0][4].split(b",")
    devices = [step for step in steps if step[0] == "mount_bind"]
    assert [(step[1], step[2], step[4]) for step in devices] == [
        (b"/dev/" + name, b"/x/dev/" + name, 0) for name in (b"null", b"zero", b"full", b"random", b"urandom", b"tty")
    ]
    assert not any(step[3] & NODEV for step in devices)
    assert {step[2]: step[1] for step in steps if step[0] == "make_symlink"} == {
        b"/x/dev/fd": b"/proc/self/fd",
        b"/x/dev/stdin": b"/proc/self/fd/0",
        b"/x/dev/stdout": b"/proc/self/fd/1",
        b"/x/dev/stderr": b"/proc/self/fd/2",
        b"/x/dev/ptmx": b"pts/ptmx",
    }
    assert [step[1] for step in steps if step[0] == "make_dir"] == [b"/x/dev/pts", b"/x/dev/shm", b"/x/dev/mqueue"]
    pts, shm = steps[-2:]
    assert pts[1:5] == (b"devpts", b"devpts", b"/x/dev/pts", b"newinstance,ptmxmode=0666,mode=0620")
    assert shm[1:5] == (b"tmpfs", b"tmpfs", b"/x/dev/shm", b"mode=1777")
    assert [thing for _, thing in Dev().steps()][1] == "Dev(): null"


@given(st.lists(st.sampled_from(sorted(FLAGS)), min_size=1))
@relaxed
def test_every_flag_is_heeded(words: list[str]) -> None:
    """Whatever there is before, all that the flags say is true afterwards; or they are refused, in any order."""
    try:
        (_, _, to_set, to_clear, _), _ = Remount("/m", flags=words).steps()[0]
    except ValueError:
        with pytest.raises(ValueError, match="contradict each other"):
            Remount("/m", flags=words[::-1])
        return
    for before in (0, 0x2000BF, 0x10, 0x20):
        after = before & ~to_clear | to_set
        for sets, clears in (FLAGS[word] for word in words):
            assert after & (sets | clears) == sets
    if to_set & 0x70:
        assert to_clear & 0x70 == 0x70, "mount_setattr(2) wants all of these cleared"


# ---- the whole list ----------------------------------------------------------------------------------------------


def names(root: Any, entries: list[Entry]) -> list[tuple[Any, ...]]:
    checked = _mount_tree.check_root(root, "root"), _mount_tree.check_mounts(entries, "mounts")
    return [(step[0], thing) for step, thing in _mount_tree.steps_of(*checked)]


def test_the_order_is_the_one_given() -> None:
    entries = [Tmpfs("/tmp"), Bind("/usr"), Dir("/tmp/x")]
    inner = [(step[0], repr(entry)) for entry in entries for step, _ in entry.steps()]
    assert names(None, entries) == inner
    assert names("/srv", entries) == [("mount_root", "/srv"), *inner, ("pivot_root", "/srv")]
    assert names("/srv", []) == [("mount_root", "/srv"), ("pivot_root", "/srv")]
    assert names(None, []) == []


def test_an_empty_root() -> None:
    root = _mount_tree.check_root(Tmpfs("/"), "root")
    assert _mount_tree.steps_of(root, [])[0] == (("mount_root", b""), "Tmpfs(dst='/')")
    assert _mount_tree.steps_of(_mount_tree.check_root(b"/srv/\xff", "root"), [])[0][0] == ("mount_root", b"/srv/\xff")


def test_propagation_is_chosen_before_the_root() -> None:
    slave = Propagation("/", "slave")
    assert [name for name, _ in names("/srv", [slave, Proc()])] == [
        "mount_propagation",
        "mount_root",
        "mount_new",
        "pivot_root",
    ]
    assert _mount_tree.says_propagation((slave,))
    for other in ([], [Proc(), slave], [Propagation("/mnt", "slave")]):
        assert not _mount_tree.says_propagation(other)
    assert [name for name, _ in names("/srv", [Proc(), slave])][1:3] == ["mount_new", "mount_propagation"]


@pytest.mark.parametrize("root", ["/srv", Tmpfs("/")], ids=["directory", "empty"])
def test_a_root_on_one_that_is_shared(root: Any) -> None:
    """It would be mounted on the host's root before pivot_root(2) refuses."""
    shared = Propagation("/", "shared", False)
    message = r"mounts\[0\]=Propagation\(dst='/', type='shared'.* and root=.*pivot_root"
    with pytest.raises(ValueError, match=message):
        Workload(["true"], root=root, mounts=[shared, Proc()])
    with pytest.raises(ValueError, match=message):
        Workload(["true"], mounts=[shared]).replace(root=root)
    with pytest.raises(ValueError, match=message):
        Workload(["true"], root=root).replace(mounts=[shared])
    for mounts in ([Propagation("/", "slave")], [Proc(), shared, Propagation("/", "private")]):
        assert Workload(["true"], root=root, mounts=mounts).mounts == tuple(mounts)
    assert Workload(["true"], mounts=[shared]).mounts == (shared,)


# ---- verbs -------------------------------------------------------------------------------------------------------


class Parked(Session):
    """What a session would have been told."""

    def __init__(self, *namespaces: str) -> None:
        self.told: list[Any] = []
        self._workload = Workload(["true"], namespaces=namespaces)

    def __repr__(self) -> str:
        return "Parked()"

    async def take_steps(self, steps: Any) -> None:
        self.told += steps


VERBS: list[tuple[Callable[[Any], Any], list[tuple[Any, ...]]]] = [
    (lambda s: mount.bind(s, "/usr", "/u", readonly=True), [("mount_bind", b"/usr", b"/u", RDONLY, 1)]),
    (lambda s: mount.bind(s, "/usr", recursive=False, nodev=True), [("mount_bind", b"/usr", b"/usr", NODEV, 0)]),
    (
        lambda s: mount.mount(s, "tmpfs", "/t", source="me", options="size=1M,nosuid", noexec=True),
        [("mount_new", b"tmpfs", b"me", b"/t", b"size=1M", NOSUID | NOEXEC)],
    ),
    (lambda s: mount.remount(s, "/", readonly=True, recursive=True), [("mount_remount", b"/", RDONLY, 0, 1)]),
    (lambda s: mount.remount(s, "/t", flags=["rw", "noexec"]), [("mount_remount", b"/t", NOEXEC, RDONLY, 0)]),
    (lambda s: mount.move(s, "/a", "/b"), [("mount_move", b"/a", b"/b")]),
    (lambda s: mount.umount(s, "/a"), [("mount_umount", b"/a", 0)]),
    (lambda s: mount.umount(s, "/a", detach=True), [("mount_umount", b"/a", 2)]),
    (lambda s: mount.umount(s, "/a", detach=True, force=True), [("mount_umount", b"/a", 3)]),
    (lambda s: mount.pivot_root(s, "/new"), [("mount_root", b"/new"), ("pivot_root",)]),
    (mount.make_private, [("mount_propagation", b"/", 1 << 18, 1)]),
    (lambda s: mount.make_slave(s, "/a"), [("mount_propagation", b"/a", 1 << 19, 1)]),
    (lambda s: mount.make_shared(s, "/a", recursive=False), [("mount_propagation", b"/a", 1 << 20, 0)]),
    (lambda s: mount.make_unbindable(s, "/a"), [("mount_propagation", b"/a", 1 << 17, 1)]),
    (lambda s: mount.apply(s, [Proc(), Dir("/d")]), [step for step, _ in Proc().steps() + Dir("/d").steps()]),
]


@pytest.mark.parametrize(("verb", "steps"), VERBS)
async def test_verbs(verb: Callable[[Any], Any], steps: list[tuple[Any, ...]]) -> None:
    session = Parked("mount")
    await verb(session)
    assert [step for step, _ in session.told] == steps
    assert all(type(thing) is str and thing for _, thing in session.told)


@pytest.mark.parametrize(("verb", "steps"), VERBS)
async def test_verbs_need_a_mount_namespace_of_its_own(verb: Callable[[Any], Any], steps: object) -> None:
    """Else the mounts would be the host's, and stay."""
    session = Parked("user")
    with pytest.raises(ValueError, match=r'Parked\(\) has no mount namespace .* namespaces=\{"mount"\}.*inside='):
        await verb(session)
    assert session.told == []


untyped: Any = mount

WRONG_CALLS: list[tuple[Callable[[Any], Any], type[Exception], list[str]]] = [
    (lambda s: untyped.bind(s, "usr", "/u"), ValueError, ["src", "'usr'"]),
    (lambda s: untyped.bind(s, "/usr", "/u", flags=["bind"]), ValueError, ["unknown mount flag 'bind'"]),
    (lambda s: mount.bind(s, "/usr", readonly=True, flags=["rw"]), ValueError, ["readonly=True", "'rw' in flags"]),
    (lambda s: mount.mount(s, "x", "/t", nodev=True, options="dev"), ValueError, ["nodev=True", "'dev' in options"]),
    (lambda s: mount.remount(s, "/t", nosuid=True, flags=["suid"]), ValueError, ["nosuid=True", "'suid' in flags"]),
    (lambda s: untyped.mount(s, "tmpfs", "../t"), ValueError, ["dst", "'../t'"]),
    (lambda s: untyped.mount(s, "tmpfs", "/t", flags=["noexce"]), ValueError, ["unknown mount flag 'noexce'"]),
    (lambda s: untyped.mount(s, "tmpfs", "/t", nosuit=True), TypeError, ["nosuit"]),
    (lambda s: mount.remount(s, "/t"), ValueError, ["changes nothing"]),
    (lambda s: mount.move(s, "/", "/t"), ValueError, ["src", "root="]),
    (lambda s: mount.move(s, "/t", "t"), ValueError, ["dst", "'t'"]),
    (lambda s: untyped.umount(s, "/"), ValueError, ["dst"]),
    (lambda s: untyped.umount(s, "/t", detach=2), TypeError, ["detach", "2"]),
    (lambda s: mount.pivot_root(s, "new"), ValueError, ["new_root", "'new'"]),
    (lambda s: mount.make_private(s, "x"), ValueError, ["dst", "'x'"]),
    (lambda s: untyped.apply(s, ["/usr"]), TypeError, ["entries[0]", "'/usr'"]),
    (lambda s: untyped.bind(None, "/usr", "/u"), TypeError, ["s must be", "None"]),
    (lambda s: untyped.bind(4711, "/usr", "/u"), TypeError, ["s must be", "4711"]),
    (lambda s: untyped.bind(s, "/usr", "/u", inside=1), TypeError, ["inside=1", "not both"]),
    (lambda s: untyped.bind("/usr", "/u", inside=0), ValueError, ["target", "0"]),
    (lambda s: untyped.make_private(inside=True), TypeError, ["target", "True"]),
]


@pytest.mark.parametrize(("call", "error", "mentions"), WRONG_CALLS, ids=[str(case[2]) for case in WRONG_CALLS])
async def test_wrong_calls(call: Callable[[Any], Any], error: type[Exception], mentions: list[str]) -> None:
    session = Parked("mount")
    with pytest.raises((TypeError, ValueError)) as caught:
        await call(session)
    assert type(caught.value) is error, caught.value
    assert [mention for mention in mentions if mention not in str(caught.value)] == [], caught.value
    assert session.told == []


# ---- mountinfo ---------------------------------------------------------------------------------------------------

LINES = rb"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
22 1 0:20 / / ro,relatime shared:7 master:3 propagate_from:2 - tmpfs  rw
23 22 0:21 / /a\040b\011c\012d\134e rw unbindable - fuse.sshfs host:/\043x rw,user_id=0
24 22 0:22 / /o rw shared:9 future:tag - overlay overlay rw,lowerdir=/l\0541:/l2
25 22 0:23 / /x/\377//deleted rw - proc proc rw
"""


def test_mountinfo() -> None:
    first, second, third, fourth, fifth = _mount_info.parse(LINES)
    assert first == MountInfo(
        mount_id=36,
        parent_id=35,
        device=(98, 0),
        root="/mnt1",
        mount_point="/mnt2",
        options=("rw", "noatime"),
        optional=("master:1",),
        fstype="ext3",
        source="/dev/root",
        super_options=("rw", "errors=continue"),
    )
    assert (first.propagation, first.master, first.peer_group, first.readonly) == ("slave", 1, None, False)
    assert (second.propagation, second.master, second.peer_group) == ("shared,slave", 3, 7)
    assert (second.source, second.readonly) == ("", True)
    assert (third.mount_point, third.source, third.fstype) == ("/a b\tc\nd\\e", "host:/#x", "fuse.sshfs")
    assert third.propagation == "unbindable"
    assert (fourth.propagation, fourth.super_options) == ("shared", ("rw", "lowerdir=/l,1:/l2"))
    assert (fifth.propagation, fifth.mount_point) == ("private", "/x/\udcff//deleted")
    assert _mount_info.parse(b"") == ()


@pytest.mark.parametrize(
    "line",
    [b"x", b"1 2 3:4 / / rw", b"1 2 3:4 / / rw - ext4 x", b"1 2 3 / / rw - ext4 x rw", b"a 2 3:4 / / rw - ext4 x rw"],
)
def test_what_is_no_mountinfo(line: bytes) -> None:
    with pytest.raises(ValueError, match="no line of a mountinfo") as caught:
        _mount_info.parse(LINES + line)
    assert repr(line) in str(caught.value)


fields = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from(" \t\n\\#,-\udc80")
)
words = st.lists(fields.filter(bool), max_size=4).map(tuple)
tags = st.lists(st.sampled_from(["shared:1", "master:2", "propagate_from:3", "unbindable"]), max_size=4).map(tuple)
ids = st.integers(0, 2**31 - 1)
infos = st.builds(MountInfo, ids, ids, st.tuples(ids, ids), fields, fields, words, tags, fields, fields, words)


@given(st.lists(infos, max_size=5).map(tuple))
@example((MountInfo(1, 2, (3, 4), "-", "-", ("-",), (), "-", "-", ("-",)),))
@relaxed
def test_mountinfo_round_trip(entries: tuple[MountInfo, ...]) -> None:
    text = _mount_info.render(entries)
    assert _mount_info.parse(text) == entries
    assert text.count(b"\n") == len(entries)


def test_our_own_mounts() -> None:
    found = mount.mounts(os.getpid())
    text = Path("/proc/self/mountinfo").read_bytes()
    assert found == mount.mounts("/proc/self") == _mount_info.parse(text)
    assert _mount_info.parse(_mount_info.render(found)) == found
    proc = next(each for each in found if each.mount_point == "/proc" and each.fstype == "proc")
    status = os.stat("/proc")
    assert proc.device == (os.major(status.st_dev), os.minor(status.st_dev))


@pytest.mark.parametrize("target", [None, True, 0, -1, "", 1.5])
def test_wrong_targets(target: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="target"):
        mount.mounts(target)


def test_nobodys_mounts() -> None:
    with pytest.raises(FileNotFoundError):
        mount.mounts("/nonexistent")


def test_verbs_can_be_introspected() -> None:
    """They are wrapped, and keep their names and their documentation."""
    for name in ("apply", "bind", "mount", "remount", "move", "umount", "pivot_root", "make_private"):
        verb = getattr(mount, name)
        assert (verb.__name__, verb.__module__) == (name, "linx_trio.mount")
        assert verb.__doc__
