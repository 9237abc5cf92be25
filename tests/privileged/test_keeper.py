"""The keeper: what undoes things outside of any workload when Python does not come to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import linx_trio as linx
from linx_trio import _keeper
from linx_trio import _netlink_messages as nl
from linx_trio._netlink_frames import REQUEST, pack
from linx_trio._netns import open_netlink
from tests.agent.probes import needs_root
from tests.support import eventually, eventually_async

pytestmark = needs_root
TAG = "linx-0123456789abcdef"
ANCHOR = ["sleep", "1000"]


def delete(name: str) -> bytes:
    """The message that deletes a link by its name."""
    return pack(nl.DELLINK, REQUEST, 1, nl.payload(nl.DELLINK, {}, [("IFLA_IFNAME", name)]))


def links(pid: int) -> set[str]:
    shown = subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", "-j", "link"], capture_output=True, check=True)
    return {link["ifname"] for link in json.loads(shown.stdout)}


def add(pid: int, name: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", "link", "add", name, "type", "bridge"], check=True)


async def test_the_wills_that_are_left_are_executed() -> None:
    async with linx.spawn(ANCHOR, namespaces={"net"}) as anchor:
        with await open_netlink(anchor) as sock:
            keeper = await _keeper.start("netlink", sock.fileno())
        numbers = []
        for name in ("br0", "br1", "br2"):
            add(anchor.host_pid, name)
            numbers.append(keeper.keep(delete(name)))
        keeper.revoke(numbers[1])
        keeper.revoke(10**9)
        before = links(anchor.host_pid)
        assert before >= {"br0", "br1", "br2"}
        keeper.close()
        keeper.close()
        await eventually_async(lambda: links(anchor.host_pid) == before - {"br0", "br2"}, "the wills are executed")


async def test_nonsense_is_the_end() -> None:
    async with linx.spawn(ANCHOR, namespaces={"net"}) as anchor:
        with await open_netlink(anchor) as sock:
            keeper = await _keeper.start("netlink", sock.fileno())
        add(anchor.host_pid, "br0")
        keeper.keep(delete("br0"))
        keeper.keep(bytes(5000))
        await eventually_async(lambda: "br0" not in links(anchor.host_pid), "who speaks nonsense is not heard any more")
        keeper.close()


PROGRAM = """
import os, signal, socket, sys, time
import trio
from linx_trio import _keeper
async def main():
    fd = int(sys.argv[2])
    keeper = await _keeper.start(sys.argv[1], fd)
    for data in sys.argv[3:]:
        keeper.keep(bytes.fromhex(data))
    os.close(fd)
    print("kept", flush=True)
    await trio.sleep_forever()
trio.run(main)
"""


def killed_while_keeping(kind: str, fd: int, *data: bytes) -> None:
    """A Python that has told a keeper, and is killed."""
    argv = [sys.executable, "-c", PROGRAM, kind, str(fd), *(item.hex() for item in data)]
    root = str(Path(linx.__file__).parents[1])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, pass_fds=[fd], env={**os.environ, "PYTHONPATH": root}) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"kept\n"
        child.send_signal(signal.SIGKILL)


async def test_python_is_killed() -> None:
    async with linx.spawn(ANCHOR, namespaces={"net"}) as anchor:
        add(anchor.host_pid, "br0")
        with await open_netlink(anchor) as sock:
            killed_while_keeping("netlink", sock.fileno(), delete("br0"))
        await eventually_async(lambda: "br0" not in links(anchor.host_pid), "the keeper outlives it")


def v2() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    pytest.skip("needs a cgroup v2 hierarchy")


@pytest.fixture
def group() -> Iterator[Path]:
    path = v2() / f"linx-keeper-{os.getpid()}"
    path.mkdir()
    yield path
    for each in sorted(path.rglob("*"), reverse=True):
        if each.is_dir():
            each.rmdir()
    if path.exists():
        path.rmdir()


def test_a_cgroup_with_processes_and_groups_in_it(group: Path) -> None:
    inner = group / "kept" / "inner"
    inner.mkdir(parents=True)
    (group / "other").mkdir()
    with subprocess.Popen(ANCHOR) as sleeper:
        (inner / "cgroup.procs").write_text(str(sleeper.pid))
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        try:
            killed_while_keeping("cgroup", fd, b"kept", b"../escape", b"not-there")
        finally:
            os.close(fd)
        assert sleeper.wait() == -signal.SIGKILL
    eventually(lambda: not (group / "kept").exists(), "it is removed")
    assert (group / "other").exists()


GROUPS = """
import sys, trio
import linx_trio as linx
async def main():
    async with linx.cgroup.Cgroup.create(sys.argv[1] + "/made") as group:
        await linx.run(["mkdir", "-p", group.path + "/inner"])
        group.add(int(sys.argv[2]))
        print("made", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_the_groups_of_a_killed_python_go(group: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(linx.__file__).parents[1])}
    with subprocess.Popen(ANCHOR) as sleeper:
        argv = [sys.executable, "-c", GROUPS, str(group), str(sleeper.pid)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"made\n"
            assert (group / "made" / "inner").exists()
            child.send_signal(signal.SIGKILL)
        assert sleeper.wait() == -signal.SIGKILL
    eventually(lambda: not (group / "made").exists(), "it is removed")


OWNER = """
import sys, trio
import linx_trio as linx
async def main():
    async with linx.net.open() as here:
        await here.create_bridge("br0")
        await here.create_veth("v0", "v1")
        await here.create_bridge("kept", keep=True)
        await here.create_bridge("deleted")
        await here.delete("deleted")
        await here.create("far0", "bridge", netns=int(sys.argv[1]))
        await here.create_veth("far1", "near1")
        await here.move_to_netns("far1", int(sys.argv[1]), name="far2")
        print("made", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_the_links_of_a_killed_python_go() -> None:
    """Wherever they are by then."""
    root = str(Path(linx.__file__).parents[1])
    async with linx.spawn(ANCHOR, namespaces={"net"}) as other, linx.spawn(ANCHOR, namespaces={"net"}) as here:
        argv = [sys.executable, "-c", OWNER, str(other.host_pid)]
        maker = linx.enter(
            here, argv, stdout=linx.PIPE, env={**os.environ, "PYTHONPATH": root}, auto_proceed=True, namespaces={"net"}
        )
        async with maker as python:
            assert python.stdout is not None
            assert (await python.stdout.receive_some()).startswith(b"made")
            assert links(here.host_pid) == {"lo", "br0", "v0", "v1", "kept", "near1"}
            assert links(other.host_pid) == {"lo", "far0", "far2"}
            python.signal(signal.SIGKILL)
            await eventually_async(lambda: links(here.host_pid) == {"lo", "kept"}, "those here go")
            await eventually_async(lambda: links(other.host_pid) == {"lo"}, "those elsewhere too")
