"""``root=`` and ``mounts=`` for root itself, without a user namespace: what an ordinary user cannot have, and what the
host could notice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import mount
from linx_trio.mount import Bind, Cgroup2, Dev, Dir, Entry, File, Mount, Overlay, Proc, Remount, Sysfs, Tmpfs
from tests.agent.probes import ROOT, SOMEBODY, needs_root
from tests.agent.roots import EMPTY, SLEEP, busybox_tree, needs_busybox, points, programs, root_of, seen
from tests.agent.terminals import read_to_end

pytestmark = needs_root


def options(*more: str, **rest: Any) -> dict[str, Any]:
    return {"namespaces": {"mount", "pid", *more}, "stdin": linx.DEVNULL, **rest}


async def told(script: str, *more: str, **rest: Any) -> str:
    given = options(*more, capture_stdout=True, stderr=linx.STDOUT, check=False, **rest)
    done = await linx.run(["/bin/sh", "-c", script], **given)
    return done.stdout.decode()


@needs_busybox
async def test_a_directory_becomes_the_root(tmp_path: Path) -> None:
    tree = busybox_tree(tmp_path / "tree", "sh", "ls", "cat")
    text = await told("ls /; cat /proc/self/mountinfo", root=tree, mounts=[Proc()])
    listed, _, mounts = text.partition("proc\n")
    assert listed == "bin\n"
    assert [line.split()[4] for line in mounts.splitlines()] == ["/", "/proc"]
    assert os.listdir(tree / "proc") == [], "what was missing has been made, on the host's disk"


async def test_a_whole_container() -> None:
    mounts: list[Entry] = [
        *programs(), Proc(), Dev(), Sysfs(), Cgroup2(), Tmpfs("/tmp", "1M", 0o1777), File("/etc/hostname", "inner\n"),
        Remount("/", readonly=True),
    ]  # fmt: skip
    script = "cat /etc/hostname; id -u; touch /etc/x /usr/x /tmp/x; ls /tmp; mount -o remount,rw /sys; echo $?"
    text = await told(script, "net", "cgroup", "ipc", root=EMPTY, mounts=mounts)
    assert text.startswith("inner\n0\n")
    assert text.count("Read-only") == 2
    assert "\nx\n" in text


async def test_it_can_be_given_to_somebody() -> None:
    """Ids and directory are those of the workload, of its own file system."""
    mounts = [*programs(), Dir("/home/me", 0o777), Proc()]
    script = "id -u; pwd; touch file; ls -n | tail -1 | cut -d' ' -f3; touch /x"
    text = await told(script, root=EMPTY, mounts=mounts, uid=SOMEBODY, gid=SOMEBODY, cwd="/home/me")
    assert text.startswith(f"{SOMEBODY}\n/home/me\n{SOMEBODY}\n")
    assert "Permission denied" in text


async def test_an_overlay_and_a_file_system_with_options(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").write_text("old")
    mounts = [
        Overlay("/data", [tmp_path / "lower"], tmp_path / "upper", tmp_path / "work"),
        Mount("tmpfs", "/t", options="size=1M,nr_inodes=7", flags=("strictatime",)),
    ]
    async with linx.spawn(SLEEP, **options(root=EMPTY, mounts=mounts)) as s:
        (root_of(s) / "data/file").write_text("new")
        (entry,) = seen(s, "/t")
        assert "nr_inodes=7" in entry.super_options
        assert "relatime" not in entry.options
    assert (tmp_path / "lower/file").read_text() == "old"
    assert (tmp_path / "upper/file").read_text() == "new"


@pytest.fixture
def submount(tmp_path: Path) -> Iterator[Path]:
    """A file system of the host below the directory."""
    place = tmp_path / "sub"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "linx-sub", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


async def test_readonly_holds_for_what_the_host_has_mounted_below(tmp_path: Path, submount: Path) -> None:
    mounts = [*programs(), Bind(tmp_path, "/data", readonly=True), Bind(tmp_path, "/only", recursive=False)]
    text = await told("touch /data/x /data/sub/x; touch /only/x && touch /only/sub/y", root=EMPTY, mounts=mounts)
    assert text.count("Read-only") == 2
    assert sorted(os.listdir(tmp_path)) == ["sub", "x"]
    assert os.listdir(submount) == [], "/only/sub is what lies below the mount"
    (submount / "still").write_text("the host's is not read-only")


async def test_the_terminal_is_the_console_of_a_dev_of_its_own() -> None:
    mounts = [*programs(), Proc(), Dev()]
    argv = ["/bin/sh", "-c", "tty; id -u; echo x >/dev/console; ls -n /dev/console | cut -d' ' -f3"]
    ids = {"uid": SOMEBODY, "gid": SOMEBODY, "cwd": "/"}
    given = {**options("ipc", root=EMPTY, mounts=mounts, stdio=linx.PTY, **ids), "stdin": linx.INHERIT}
    async with linx.spawn(argv, **given) as s:
        await s.proceed()
        assert await read_to_end(s.pty) == f"/dev/console\r\n{SOMEBODY}\r\nx\r\n{SOMEBODY}\r\n".encode()


async def test_verbs_inside_any_process(tmp_path: Path) -> None:
    async with linx.spawn(SLEEP, **options(root=EMPTY, mounts=[*programs(), Proc()])) as s:
        await s.proceed()
        await mount.mount("tmpfs", "/late", options="size=4k", inside=s.host_pid)
        assert points(s)[-1] == "/late"
        await mount.umount("/late", inside=s)
        assert points(s)[-1] != "/late"
        await mount.apply([Dir("/made/here")], inside=s)
        assert (root_of(s) / "made/here").is_dir()


PROPAGATION = """
import subprocess, sys
import trio
import linx_trio as linx
from linx_trio.mount import Propagation
place, type_ = sys.argv[1:]
def has(pid, name):
    return name in open(f"/proc/{pid}/mountinfo").read()
async def main():
    first = [] if type_ == "default" else [Propagation("/", type_)]
    async with linx.spawn(["sleep", "600"], namespaces={"mount"}, mounts=first) as s:
        subprocess.run(["mount", "-t", "tmpfs", "linx-outside", place], check=True)
        seen_inside = has(s.host_pid, "linx-outside")
        subprocess.run(["umount", place], check=True)
        await linx.mount.mount(s, "tmpfs", place, source="linx-inside")
        print(seen_inside, has("self", "linx-inside"))
import linx_trio.mount
assert "shared:" in open("/proc/self/mountinfo").readline()
trio.run(main)
"""


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        ("default", "False False\n"),
        ("private", "False False\n"),
        ("unbindable", "False False\n"),
        ("slave", "True False\n"),
        ("shared", "True True\n"),
    ],
)
def test_propagation_is_as_asked_for(tmp_path: Path, type_: str, expected: str) -> None:
    """On a host whose mounts are shared, as systemd has them: what is mounted outside gets in, and the other way."""
    outer = ["unshare", "--mount", "--propagation", "shared", sys.executable, "-c", PROPAGATION, str(tmp_path), type_]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(outer, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


async def test_init_holds_nothing_of_the_old_root() -> None:
    """The pid 1 that `init=True` puts above the workload can be looked into by it, which is root."""
    script = "for fd in /proc/1/fd/*; do test ! -d $fd || echo $fd; done; ls /proc/1/root/ /proc/1/cwd/; echo end"
    text = await told(script, root=EMPTY, mounts=[*programs(), Proc()], init=True)
    listed, _, rest = text.partition("/proc/1/cwd/:\n")
    assert listed == "", "no directory is open there"
    assert "usr\n" in rest
    assert await told("ls /", root=EMPTY, mounts=[*programs(), Proc()]) in rest
    assert rest.endswith("end\n")
