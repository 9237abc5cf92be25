"""A terminal's name and owner as the workload sees them: the host's, or its own where it has its own mounts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from tests.agent.probes import ROOT, SOMEBODY, as_somebody, needs_root
from tests.agent.terminals import on_terminal, read_to_end, read_until, slave_of

OPEN_ALL = 'tty; for name in /dev/tty "$(tty)"; do echo "by $name" >"$name"; done'
OWN_DEVPTS = "mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts /dev/pts"


async def mount_inside(session: linx.Session, command: str) -> None:
    """In the mount namespace of the parked workload, from outside."""
    await linx.run(["nsenter", "--mount", "-t", str(session.host_pid), "sh", "-c", command])


@needs_root
@pytest.mark.parametrize("namespaces", [set(), {"mount"}, {"net", "pid"}], ids=lambda kinds: "+".join(sorted(kinds)))
async def test_where_dev_pts_is_the_hosts_so_is_the_name(namespaces: set[str]) -> None:
    async with on_terminal(OPEN_ALL, namespaces=namespaces) as s:
        name = slave_of(s)
        assert name.startswith("/dev/pts/")
        expected = f"{name}\r\nby /dev/tty\r\nby {name}\r\n"
        assert await read_to_end(s.pty) == expected.encode()


@needs_root
@pytest.mark.parametrize("more", [set(), {"pid", "uts", "ipc", "net"}], ids=len)
async def test_with_its_own_devpts_the_name_is_dev_console(more: set[str]) -> None:
    before = os.stat("/dev/console")
    async with linx.spawn(["sh", "-c", OPEN_ALL], stdio=linx.PTY, namespaces={"mount"} | more) as s:
        await mount_inside(s, OWN_DEVPTS)
        await s.proceed()
        assert await read_to_end(s.pty) == b"/dev/console\r\nby /dev/tty\r\nby /dev/console\r\n"
        assert await s.wait() == linx.Exited(0)
    after = os.stat("/dev/console")
    assert (after.st_dev, after.st_ino, after.st_rdev) == (before.st_dev, before.st_ino, before.st_rdev)


@needs_root
async def test_with_a_dev_of_its_own_the_name_is_made_there() -> None:
    """As in a container: an empty /dev in which there is no console yet."""
    own_dev = f"mount -t tmpfs -o mode=755 tmpfs /dev && mkdir /dev/pts && {OWN_DEVPTS}"
    async with linx.spawn(["sh", "-c", "tty; ls -1 /dev"], stdio=linx.PTY, namespaces={"mount"}) as s:
        await mount_inside(s, own_dev)
        await s.proceed()
        assert await read_to_end(s.pty) == b"/dev/console\r\nconsole\r\npts\r\n"


@needs_root
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("mount -t tmpfs -o mode=755 tmpfs /dev && umount /dev/pts 2>/dev/null; true", b"/dev/console\r\n"),
        ("mount --bind /proc/sys /dev", None),
        ("mount -t tmpfs -o mode=755 tmpfs /dev && mkdir /dev/console", None),
    ],
    ids=["no /dev/pts", "nothing can be made in /dev", "a directory"],
)
async def test_other_devs(command: str, says: bytes | None) -> None:
    """Where the terminal cannot be named the workload has it all the same."""
    async with linx.spawn(["sh", "-c", "test -t 0 && tty; exit 0"], stdio=linx.PTY, namespaces={"mount"}) as s:
        await mount_inside(s, command)
        await s.proceed()
        assert await s.wait() == linx.Exited(0)
        seen = await read_to_end(s.pty)
        assert seen == says or (says is None and b"/dev/console" not in seen)


@needs_root
async def test_two_workloads_have_each_their_own_console() -> None:
    async with contextlib.AsyncExitStack() as stack:
        sessions = []
        for number in range(2):
            s = await stack.enter_async_context(
                linx.spawn(["sh", "-c", f"echo {number} >/dev/console"], stdio=linx.PTY, namespaces={"mount"})
            )
            await mount_inside(s, OWN_DEVPTS)
            sessions.append(s)
        for s in sessions:
            await s.proceed()
        assert [await read_to_end(s.pty) for s in sessions] == [b"0\r\n", b"1\r\n"]


# ---- whose it is -----------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("own_devpts", [False, True])
async def test_the_terminal_is_the_workloads_users(own_devpts: bool) -> None:
    options: dict[str, Any] = {"uid": SOMEBODY, "gid": SOMEBODY, "cwd": "/", "stdio": linx.PTY}
    script = f"{OPEN_ALL}; id -u; stat -c %u -L $(tty)"
    async with linx.spawn(["sh", "-c", script], namespaces={"mount"} if own_devpts else (), **options) as s:
        name = "/dev/console" if own_devpts else slave_of(s)
        assert os.stat(slave_of(s)).st_uid == os.geteuid(), "what is parked is not yet that user's"
        if own_devpts:
            await mount_inside(s, OWN_DEVPTS)
        await s.proceed()
        expected = f"{name}\r\nby /dev/tty\r\nby {name}\r\n{SOMEBODY}\r\n{SOMEBODY}\r\n"
        assert await read_to_end(s.pty) == expected.encode()


@needs_root
async def test_without_a_uid_it_stays_the_callers() -> None:
    async with on_terminal("echo up; read x") as s:
        await read_until(s.pty, b"up")
        assert os.stat(slave_of(s)).st_uid == os.geteuid()


@needs_root
async def test_a_uid_that_is_not_mapped_is_the_fault_of_the_uid() -> None:
    """Not of the terminal, which only would have been nice to own."""
    async with linx.spawn(["true"], stdio=linx.PTY, namespaces={"user"}, uid=SOMEBODY) as s:
        with pytest.raises(linx.SetupError) as refused:
            await s.proceed()
    assert refused.value.stage in ("setuid", "setgroups")


ROOTLESS = """
OPEN_ALL, OWN_DEVPTS = {script!r}, {mount!r}
async def main():
    async with linx.spawn(["sh", "-c", OPEN_ALL], stdio=linx.PTY, namespaces={{"user", "mount"}}) as s:
        for kind in ("uid", "gid"):
            if kind == "gid":
                with open(f"/proc/{{s.host_pid}}/setgroups", "w") as file:
                    file.write("deny")
            with open(f"/proc/{{s.host_pid}}/{{kind}}_map", "w") as file:
                file.write(f"0 {{os.getuid() if kind == 'uid' else os.getgid()}} 1")
        enter = ["nsenter", "--user", "--preserve-credentials", "--mount", "-t", str(s.host_pid)]
        await linx.run([*enter, "sh", "-c", OWN_DEVPTS])
        await s.proceed()
        return b"".join([chunk async for chunk in s.pty]).decode()
result = trio.run(main)
"""


def test_as_an_ordinary_user() -> None:
    result = as_somebody(ROOTLESS.format(script=OPEN_ALL, mount=OWN_DEVPTS))
    assert result == "/dev/console\r\nby /dev/tty\r\nby /dev/console\r\n"


# ---- mounts stay where they were made --------------------------------------------------------------------------------

SHARED = """
import os, subprocess, sys
import trio
import linx_trio as linx
def has(pid):
    return sys.argv[1] in open(f"/proc/{pid}/mountinfo").read()
async def main():
    async with linx.spawn(["sleep", "600"], namespaces={"mount"}) as s:
        inside = ["nsenter", "--mount", "-t", str(s.host_pid)]
        subprocess.run([*inside, "mount", "-t", "tmpfs", "linx-inside", sys.argv[1]], check=True)
        print(has(s.host_pid), has("self"))
        subprocess.run([*inside, "umount", sys.argv[1]], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "linx-outside", sys.argv[1]], check=True)
        print(has(s.host_pid), has("self"))
        await s.proceed()
        print(has(s.host_pid))
assert "shared:" in open("/proc/self/mountinfo").readline()
trio.run(main)
"""


@needs_root
def test_a_mount_made_inside_does_not_appear_outside_nor_the_other_way_round(tmp_path: Path) -> None:
    """Where systemd runs, the host's mounts are shared: what is mounted in a copy of them is mounted in all."""
    outer = ["unshare", "--mount", "--propagation", "shared", sys.executable, "-c", SHARED, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(outer, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True False\nFalse True\nFalse\n"), done.stderr
