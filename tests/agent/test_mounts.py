"""``root=`` and ``mounts=`` on the real kernel: every entry, as whoever runs this, in a user namespace of its own."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import mount
from linx_trio.mount import (
    Bind,
    Cgroup2,
    Dev,
    Devpts,
    Dir,
    Entry,
    File,
    Mount,
    Overlay,
    Proc,
    Propagation,
    Remount,
    Symlink,
    Sysfs,
    Tmpfs,
)
from tests.agent.probes import ROOT, working_in
from tests.agent.roots import (
    EMPTY,
    SLEEP,
    busybox_tree,
    is_there,
    needs_busybox,
    own,
    parked,
    points,
    programs,
    root_of,
    seen,
    told,
)
from tests.agent.terminals import read_to_end
from tests.support import DEADLINE, eventually, exists

# ---- the root ----------------------------------------------------------------------------------------------------


@needs_busybox
async def test_a_directory_becomes_the_root(tmp_path: Path) -> None:
    tree = busybox_tree(tmp_path / "tree", "sh", "ls", "pwd")
    assert await told("pwd; ls /; ls /..; echo >/written", root=tree) == "/\nbin\nbin\n"
    assert (tree / "written").read_text() == "\n", "it is that directory, no copy"
    assert await told(["ls"], root=tree) == "bin\nwritten\n", "programs are looked up in there"


@needs_busybox
async def test_a_root_by_a_symlink_and_by_bytes(tmp_path: Path) -> None:
    busybox_tree(tmp_path / "tree", "sh", "ls")
    (tmp_path / "link").symlink_to("tree")
    assert await told("ls /", root=tmp_path / "link") == await told("ls /", root=bytes(tmp_path / "tree")) == "bin\n"


async def test_an_empty_root() -> None:
    listed = "".join(sorted(f"{entry.to_dict().get('dst', '/usr')[1:]}\n" for entry in programs()))
    assert await told("ls /", root=EMPTY, mounts=programs()) == listed
    async with linx.spawn(["/nothing"], **own(root=EMPTY)) as s:
        assert os.listdir(root_of(s)) == []
        (only,) = mount.mounts(s)
        assert (only.fstype, only.mount_point, only.propagation) == ("tmpfs", "/", "private")
        with pytest.raises(FileNotFoundError) as caught:
            await s.proceed()
    assert isinstance(caught.value, linx.SetupError)
    assert (caught.value.stage, caught.value.filename) == ("execve", "/nothing")


@pytest.mark.parametrize("argv", [["/usr/bin/no-such-program"], ["no-such-program"]], ids=" ".join)
async def test_a_root_without_the_program(argv: list[str]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await linx.run(argv, **own(root=EMPTY, mounts=programs()))
    assert isinstance(caught.value, linx.SetupError)
    assert (caught.value.errno, caught.value.stage, caught.value.filename) == (errno.ENOENT, "execve", argv[0])


@pytest.mark.parametrize("kind", ["nothing", "file"])
async def test_a_root_that_is_none(tmp_path: Path, kind: str) -> None:
    root = tmp_path / kind
    if kind == "file":
        root.write_text("")
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["true"], **own(root=root))
    expected = errno.ENOTDIR if kind == "file" else errno.ENOENT
    assert (caught.value.errno, caught.value.stage, caught.value.filename) == (expected, "mount", str(root))


async def test_the_old_root_is_gone() -> None:
    """Nothing of the host's in mountinfo, no fd into it, and no way back over a directory that is still held."""
    script = "cat /proc/self/mountinfo; echo; cd ../../..; pwd; ls -l /proc/self/fd /proc/self/root /proc/self/cwd"
    text = await told(script, root=EMPTY, mounts=[*programs(), Proc()], cwd="/")
    mountinfo, rest = text.split("\n\n", 1)
    assert sorted(line.split()[4] for line in mountinfo.splitlines()) == ["/", "/proc", "/usr"]
    assert rest.startswith("/\n")
    links = dict(re.findall(r"(\S+) -> (\S+)$", rest, re.MULTILINE))
    assert links.pop("/proc/self/root") == links.pop("/proc/self/cwd") == "/"
    assert all(re.match(r"(/dev/null|pipe:|/proc/\d+/fd$)", link) for link in links.values()), links


async def test_the_workload_starts_in_its_root_unless_cwd_says_else() -> None:
    for cwd, expected in ((None, "/\n"), ("/usr/bin", "/usr/bin\n")):
        assert await told("pwd -P", root=EMPTY, mounts=programs(), cwd=cwd) == expected


COVERS: dict[str, Callable[[Path], list[Entry]]] = {
    "itself": lambda d: [Bind(d, readonly=True)],
    "what is above": lambda d: [Bind(d.parent, readonly=True)],
    "another one": lambda d: [Tmpfs(d), Dir(d / "sub"), Remount(d, readonly=True)],
}


@pytest.mark.parametrize("cwd", [None, ".", "sub"])
@pytest.mark.parametrize("covers", COVERS)
async def test_what_is_mounted_on_the_working_directory_holds_there(
    covers: str, cwd: str | None, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    with working_in(tmp_path):
        entries = COVERS[covers](tmp_path)
        assert "Read-only" in await told("touch ./here", mounts=entries, cwd=cwd)
        async with linx.spawn(["touch", "here"], **own(cwd=cwd, stderr=linx.DEVNULL)) as s:
            await mount.apply(s, entries)
            await s.proceed()
            assert await s.wait() == linx.Exited(1)
        assert sorted(os.listdir(tmp_path)) == ["sub"]
        assert os.listdir(tmp_path / "sub") == []


async def test_a_working_directory_that_is_hidden(tmp_path: Path) -> None:
    with working_in(tmp_path):
        with pytest.raises(linx.SetupError) as caught:
            await told("ls", mounts=[Tmpfs(tmp_path.parent)])
        assert (caught.value.errno, caught.value.stage) == (errno.ENOENT, "chdir")
        assert caught.value.filename == "the caller's working directory"
        assert "cwd=" in (caught.value.hint or "")
        assert await told("pwd", mounts=[Tmpfs(tmp_path.parent)], cwd="/") == "/\n"


# ---- what the host has -------------------------------------------------------------------------------------------


async def test_the_hosts_programs_cannot_be_written() -> None:
    name = f"/usr/linx-{os.getpid()}"
    script = f"echo >{name}; mkdir {name}; mount -o remount,rw /usr; rm /usr/bin/env; echo $?"
    text = await told(script, root=EMPTY, mounts=programs())
    assert text.count("Read-only file system") >= 2
    assert not is_there(name)
    assert is_there("/usr/bin/env")


@pytest.mark.parametrize("recursive", [True, False])
async def test_readonly_is_so_below_too(tmp_path: Path, recursive: bool) -> None:
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    source, target = tmp_path / "from", tmp_path / "to"
    mounts = [
        Tmpfs(source),
        Tmpfs(source / "sub"),
        Tmpfs(source / "sub/sub"),
        Bind(source, target, readonly=True, recursive=recursive),
    ]
    async with parked(mounts=mounts) as s:
        below = [str(target / part) for part in ("", "sub", "sub/sub")] if recursive else [str(target)]
        assert [each.mount_point for each in mount.mounts(s) if each.mount_point.startswith(f"{target}")] == below
        for path in below:
            assert seen(s, path)[-1].readonly
            with pytest.raises(OSError, match="Read-only"):
                (root_of(s) / path[1:] / "file").write_text("")
        assert not any(seen(s, source / part)[-1].readonly for part in ("", "sub", "sub/sub"))


async def test_bind_flags_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    flags: dict[str, Any] = {"nosuid": True, "nodev": True, "noexec": True, "flags": ["nosymfollow"]}
    mounts = [Bind(tmp_path / "file", "/deep/er/copy", **flags), Bind(tmp_path, b"/\xff")]
    async with parked(root=EMPTY, mounts=mounts) as s:
        (entry,) = seen(s, "/deep/er/copy")
        assert {"nosuid", "nodev", "noexec", "nosymfollow", "rw"} <= set(entry.options)
        assert (root_of(s) / "deep/er/copy").read_text() == "content"
        (root_of(s) / "deep/er/copy").write_text("changed")
        assert os.listdir(os.fsencode(root_of(s)) + b"/\xff") == [b"file"]
    assert (tmp_path / "file").read_text() == "changed"


async def test_the_whole_host_below_an_empty_root() -> None:
    """The empty root is not among what is bound."""
    async with parked(root=EMPTY, mounts=[Bind("/", "/host", readonly=True), Dir("/mine")]) as s:
        assert sorted(os.listdir(root_of(s) / "host")) == sorted(os.listdir("/"))
        assert sorted(os.listdir(root_of(s))) == ["host", "mine"]


# ---- every entry -------------------------------------------------------------------------------------------------


async def test_every_entry(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/below").write_text("lower")
    mounts: list[Entry] = [
        Propagation("/", "private"),
        *programs(),
        Proc(),
        Dev(),
        Sysfs(),
        Cgroup2(),
        Tmpfs("/tmp", "1M", 0o1777, noexec=True),
        Mount("tmpfs", "/srv/any", source="named", options="mode=0700,ro,size=4096,noatime"),
        Devpts("/more/pts"),
        Overlay("/data", [tmp_path / "lower"], tmp_path / "upper", tmp_path / "work", userxattr=True),
        Symlink("../data/below", "/etc/link"),
        Dir("/var/private", 0o700),
        File("/etc/text", "grüße\n"),
        File("/etc/bytes", b"\0\xff", 0o600),
        Remount("/tmp", noexec=False, nodev=True),
        Remount("/", readonly=True),
    ]
    async with linx.spawn(SLEEP, **own("net", "cgroup", "ipc", root=EMPTY, mounts=mounts)) as s:
        types = {each.mount_point: each.fstype for each in mount.mounts(s)}
        for point, fstype in {
            "/proc": "proc",
            "/sys": "sysfs",
            "/sys/fs/cgroup": "cgroup2",
            "/data": "overlay",
        }.items():
            assert types[point] == fstype
        assert types["/dev/pts"] == types["/more/pts"] == "devpts"
        assert all(each.propagation == "private" for each in mount.mounts(s))
        (any_,) = seen(s, "/srv/any")
        assert (any_.source, any_.readonly) == ("named", True)
        assert "noatime" in any_.options
        assert "size=4k" in any_.super_options
        (tmp,) = seen(s, "/tmp")
        assert "noexec" not in tmp.options
        assert {"nosuid", "nodev"} <= set(tmp.options)
        assert seen(s, "/")[0].readonly
        root = root_of(s)
        assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
        assert (root / "var/private").stat().st_mode & 0o7777 == 0o700
        assert (root / "etc/text").read_text() == "grüße\n"
        assert (root / "etc/text").stat().st_mode & 0o7777 == 0o644
        assert (root / "etc/bytes").read_bytes() == b"\0\xff"
        assert (root / "etc/bytes").stat().st_mode & 0o7777 == 0o600
        assert os.readlink(root / "etc/link") == "../data/below"
        (root / "data/above").write_text("upper")
        await s.proceed()
    assert (tmp_path / "upper/above").read_text() == "upper"


async def test_dev_is_usable() -> None:
    script = """
    echo lost >/dev/null; head -c 3 /dev/zero | od -An -tx1; head -c 3 /dev/urandom | wc -c; env echo x >/dev/full
    echo err >/dev/stderr; ls /dev /dev/pts; echo data >/dev/shm/x && cat /dev/shm/x; readlink /dev/ptmx /dev/fd
    """
    text = await told(script, root=EMPTY, mounts=[*programs(), Proc(), Dev()])
    assert "No space left" in text
    lines = [line.strip() for line in text.splitlines() if "No space" not in line]
    listed = "/dev: fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert lines == ["00 00 00", "3", "err", *(listed.replace(": ", ":\n").split()), "", "/dev/pts:", "ptmx", "data",
                     "pts/ptmx", "/proc/self/fd"]  # fmt: skip


async def test_proc_is_that_of_the_workloads_own_processes() -> None:
    assert await told("ls /proc | grep -c '^[0-9]'; echo /proc/[0-9]*", root=EMPTY, mounts=[*programs(), Proc()])
    text = await told("echo /proc/[0-9]*", root=EMPTY, mounts=[*programs(), Proc()])
    assert text == "/proc/1\n"


async def test_sysfs_shows_the_own_network_only() -> None:
    assert await told("ls /sys/class/net; echo >/sys/x", "net", root=EMPTY, mounts=[*programs(), Sysfs()]) in {
        f"lo\n/bin/sh: 1: cannot create /sys/x: {why}\n" for why in ("Read-only file system", "Permission denied")
    }


async def test_made_whatever_the_umask_is() -> None:
    mounts = [File("/a/b/file", "x"), Dir("/c/d", 0o750), Tmpfs("/e/f"), Bind("/dev/null", "/g/null")]
    async with parked(root=EMPTY, mounts=mounts, umask=0o777) as s:
        modes = {
            path: (root_of(s) / path).stat().st_mode & 0o7777 for path in ("a", "a/b", "a/b/file", "c", "c/d", "e")
        }
        assert modes == {"a": 0o755, "a/b": 0o755, "a/b/file": 0o644, "c": 0o755, "c/d": 0o750, "e": 0o755}


@pytest.mark.parametrize("mode", [0, 0o755, 0o1777, 0o2775, 0o4711, 0o7777], ids=oct)
async def test_a_directory_of_any_mode(tmp_path: Path, mode: int) -> None:
    """On a tmpfs, and elsewhere."""
    async with parked(mounts=[Dir(tmp_path / "here", mode), Tmpfs("/tmp"), Dir("/tmp/there", mode)], umask=0o777) as s:
        assert (root_of(s) / "tmp/there").stat().st_mode & 0o7777 == mode
    assert (tmp_path / "here").stat().st_mode & 0o7777 == mode


async def test_an_overlay_of_more_than_a_string(tmp_path: Path) -> None:
    """fsconfig(2) takes 255 bytes, of which four paths of tests are more."""
    layers = []
    for number in range(12):
        layers.append(tmp_path / f"{'layer' * 8}{number}")
        layers[-1].mkdir()
        (layers[-1] / f"file{number}").write_text("")
        (layers[-1] / "same").write_text(f"{number}")
    assert len(":".join(map(str, layers))) > 255 * 2
    async with parked(root=EMPTY, mounts=[Overlay("/all", layers, userxattr=True, nosuid=True)]) as s:
        assert sorted(os.listdir(root_of(s) / "all")) == sorted([*(f"file{i}" for i in range(12)), "same"])
        assert (root_of(s) / "all/same").read_text() == "0", "the topmost comes first"
        assert "nosuid" in seen(s, "/all")[0].options


async def test_an_overlay_of_more_than_a_page_is_refused(tmp_path: Path) -> None:
    """mount(2) cuts what is longer, without a word; the rest would be another overlay than the one asked for. `Overlay`
    refuses it before; this is for those who speak to the agent.
    """
    layers = []
    for number in range(40):
        layers.append(tmp_path / f"{'x' * 100}{number:02}")
        layers[-1].mkdir()
    options = os.fsencode("lowerdir=" + ":".join(map(str, layers)))
    step = ("mount_new", b"overlay", b"overlay", os.fsencode(tmp_path), options, 0)
    async with parked() as s:
        with pytest.raises(linx.SetupError) as caught:
            await s.take_steps([(step, "an overlay")])
    assert caught.value.errno in (errno.E2BIG, errno.ENAMETOOLONG)
    assert caught.value.stage == "mount"


@pytest.mark.parametrize("mode", [0, 0o444, 0o644, 0o2755, 0o4755, 0o7777], ids=oct)
@pytest.mark.parametrize("there", [False, True])
async def test_a_file_of_any_mode(tmp_path: Path, mode: int, there: bool) -> None:
    if there:
        (tmp_path / "file").write_text("what was there before")
    async with parked(mounts=[File(tmp_path / "file", "text", mode=mode)]):
        assert (tmp_path / "file").stat().st_mode & 0o7777 == mode
        (tmp_path / "file").chmod(0o600)
        assert (tmp_path / "file").read_text() == "text"


async def test_a_file_of_a_mebibyte() -> None:
    data = os.urandom(1 << 20)
    async with parked(root=EMPTY, mounts=[File("/big", data)]) as s:
        assert (root_of(s) / "big").read_bytes() == data


async def test_many_entries() -> None:
    mounts: list[Entry] = []
    for number in range(50):
        place = f"/m/{number}"
        mounts += [
            Tmpfs(place),
            File(f"{place}/f", str(number)),
            Bind("/etc", f"{place}/etc"),
            Symlink("f", f"{place}/l"),
        ]
    async with parked(root=EMPTY, mounts=mounts) as s:
        assert len(mounts) == 200
        assert [(root_of(s) / f"m/{number}/l").read_text() for number in range(50)] == list(map(str, range(50)))
        assert len({point for point in points(s) if re.fullmatch("/m/[0-9]+(/etc)?", point)}) == 100


# ---- with a terminal ---------------------------------------------------------------------------------------------


async def test_a_terminal_in_a_dev_of_its_own() -> None:
    options = own("ipc", root=EMPTY, mounts=[*programs(), Proc(), Dev(), Remount("/", readonly=True)], cwd="/")
    del options["stdin"]
    script = "tty; echo by name >/dev/console; echo by tty >/dev/tty; ls /dev/pts"
    async with linx.spawn(["/bin/sh", "-c", script], stdio=linx.PTY, **options) as s:
        await s.proceed()
        assert await read_to_end(s.pty) == b"/dev/console\r\nby name\r\nby tty\r\nptmx\r\n"
        assert await s.wait() == linx.Exited(0)


# ---- what is refused ---------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Entry, int]] = {
    "no source": (Bind("/nonexistent/source", "/x"), errno.ENOENT),
    "no type": (Mount("nosuchfs", "/x"), errno.ENODEV),
    "no option": (Mount("tmpfs", "/x", options="nonsense=1"), errno.EINVAL),
    "a bad value": (Mount("tmpfs", "/x", options="mode=9"), errno.EINVAL),
    "no layers": (Overlay("/x", ["/nonexistent/1", "/nonexistent/2"]), errno.ENOENT),
    "no mount": (Remount("/etc/nothing", readonly=True), errno.ENOENT),
    "not the root of a mount": (Remount("/dir", readonly=True), errno.EINVAL),
    "below a file": (Dir("/file/below"), errno.ENOTDIR),
    "a directory on a file": (Bind("/etc", "/file"), errno.EINVAL),
    "a file on a directory": (Bind("/dev/null", "/dir"), errno.EINVAL),
    "a directory that is a file": (Dir("/file"), errno.ENOTDIR),
    "a file that is a directory": (File("/dir", ""), errno.EISDIR),
    "another link": (Symlink("there", "/link"), errno.EEXIST),
    "a place for a dangling link": (Tmpfs("/link/x"), errno.ENOENT),
}
BEFORE: list[Entry] = [File("/file", ""), Dir("/dir"), Symlink("nowhere", "/link")]


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refused_entry_fails_the_session_by_name(case: str) -> None:
    entry, number = REFUSED[case]
    async with linx.spawn(SLEEP, wait_ready=False, **own(root=EMPTY, mounts=[*BEFORE, entry, Dir("/never")])) as s:
        with pytest.raises(linx.SetupError) as caught:
            await s.wait()
        assert s.state == "failed"
        assert not s.ran
    error = caught.value
    assert (error.errno, error.stage) == (number, "mount"), error
    assert str(error.filename).startswith(repr(entry)), error


HINTS: dict[str, tuple[list[Entry], str]] = {
    "a directory on a file": ([Bind("/etc", "/file")], "a directory can be bound on a directory only"),
    "a file on a directory": ([Bind("/dev/null", "/dir")], "a file on a file"),
    "remount": ([Remount("/dir", readonly=True)], "no mount point: bind it onto itself first"),
    "propagation": ([Propagation("/dir", "private")], "no mount point: bind it onto itself first"),
    "a file system on a file": ([Tmpfs("/file")], "there is a file where it is to be mounted"),
    "an option": ([Mount("tmpfs", "/x", options="mode=9")], "not these options"),
    "a part of what is locked": ([Bind("/", "/x", recursive=False)], "recursive=False"),
}


@pytest.mark.parametrize("case", HINTS)
async def test_invalid_is_explained_by_the_entry(case: str) -> None:
    """errno is EINVAL for all of these; what the others are is left out."""
    entries, hint = HINTS[case]
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["true"], **own(root=EMPTY, mounts=[*BEFORE, *entries]))
    assert (caught.value.errno, caught.value.stage) == (errno.EINVAL, "mount")
    assert hint in str(caught.value.hint)
    assert ("options" in str(caught.value.hint)) == isinstance(entries[0], (Mount, Tmpfs))


async def test_what_the_hints_say_helps() -> None:
    entries = [Dir("/dir"), Bind("/", "/whole"), Remount("/whole", nosuid=True), *programs()]
    await linx.run(["true"], **own(root=EMPTY, mounts=entries))


async def test_proc_needs_a_fresh_pid_namespace() -> None:
    with pytest.raises(PermissionError) as caught:
        await linx.run(["true"], **{**own(root=EMPTY, mounts=[Proc()]), "namespaces": {"user", "mount"}})
    assert isinstance(caught.value, linx.SetupError)
    assert "pid namespace" in str(caught.value.hint)


TRUE = Path(shutil.which("true") or "/bin/true").resolve()


@pytest.mark.parametrize("name", ["there", "missing", "hidden", "in PATH"])
async def test_a_program_is_missing_in_the_workloads_own_root(name: str, tmp_path: Path) -> None:
    """Whatever the host has at the same path."""
    shutil.copy(TRUE, tmp_path / "true")
    options: dict[str, dict[str, Any]] = {
        "there": {"root": tmp_path},
        "missing": {"root": EMPTY},
        "hidden": {"mounts": [Tmpfs(TRUE.parent)]},
        "in PATH": {"root": tmp_path, "env": {"PATH": "/"}},
    }
    program = {"there": "/true", "in PATH": "true"}.get(name, str(TRUE))
    with pytest.raises(FileNotFoundError) as caught:
        await linx.run([program], **own(**options[name]))
    error = caught.value
    assert isinstance(error, linx.SetupError)
    assert (error.stage, error.filename) == ("execve", program)
    for part in ("the workload's own root", "interpreter", "loader"):
        assert part in str(error.hint)
    assert ("PATH" in str(error.hint)) == (name == "in PATH")
    assert "exists" not in str(error.hint)


# ---- nothing is left ---------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import trio
import linx_trio as linx
from tests.agent.roots import EMPTY, own, programs
from linx_trio.mount import Dev, Proc, Tmpfs
async def main():
    async with linx.spawn(["sleep", "600"], **own(root=EMPTY, mounts=[*programs(), Proc(), Dev(), Tmpfs("/tmp")])) as s:
        if sys.argv[1] == "running":
            await s.proceed()
        print(s.host_pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""


@pytest.mark.parametrize("state", ["ready", "running"])
def test_nothing_is_left_when_python_is_killed(state: str) -> None:
    """Not the mounts either: the autouse fixture looks at them."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, state], env=env, capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    eventually(lambda: not exists(int(done.stdout)), "the workload is gone")


async def test_more_files_than_a_frame_holds() -> None:
    files = [File(f"/big{number}", bytes(1 << 20)) for number in range(17)]
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["true"], **own(root=EMPTY, mounts=files))
    assert (caught.value.errno, caught.value.stage, caught.value.filename) == (errno.E2BIG, "request", "mounts")
    assert "16 MiB" in str(caught.value.hint)


async def test_a_shared_root_cannot_be_pivoted_into() -> None:
    with pytest.raises(linx.SetupError) as caught:
        await linx.run(["true"], **own(root=EMPTY, mounts=[*programs(), Propagation("/", "shared")]))
    assert (caught.value.errno, caught.value.stage) == (errno.EINVAL, "pivot_root")
    assert "Propagation('/', 'shared')" in str(caught.value.hint)
