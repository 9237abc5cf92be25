"""Python is killed with -9: what its scopes have made outside of its sessions goes all the same."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import linx_trio as linx
from tests.agent.networks import guest, names, namespace, run_in

PROGRAM = """
import sys, trio
import linx_trio as linx
async def main():
    target, other = sys.argv[1:]
    async with linx.net.open(int(target)) as net:
        await net.create_bridge("br0")
        await net.create_bridge("kept", keep=True)
        await net.create_bridge("deleted")
        await net.delete("deleted")
        await net.create_veth("v0", "v1")
        await net.move_to_netns("v0", int(other), name="moved")
        await net.create_veth("w0", "w1", peer_netns=int(other))
        await net.create_macvlan("mv", "v1", netns=int(other))
        print("made", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


SHARED = """
import sys, trio
import linx_trio as linx
async def main():
    async with linx.enter(int(sys.argv[1]), ["sleep", "100000"], stdio=linx.DEVNULL) as s:
        await s.proceed()
        async with linx.net.open(s) as net:
            await net.create_bridge("br0")
            await net.create_bridge("kept", keep=True)
            print("made", flush=True)
            await trio.sleep_forever()
trio.run(main)
"""

MOVED = """
import sys, trio
import linx_trio as linx
async def main():
    target = int(sys.argv[1])
    async with linx.enter(target, ["sleep", "100000"], unshare={"net"}, stdio=linx.DEVNULL) as s:
        await s.proceed()
        async with linx.net.open(s) as net, linx.net.open(target) as there:
            await net.create_bridge("br0")
            await net.create("moved", "ifb")
            await net.move_to_netns("moved", target)
            await net.create("moved2", "ifb")
            await net.move_to_netns("moved2", there)
            await net.create("made", "ifb", netns=there)
            print("made", flush=True)
            await trio.sleep_forever()
trio.run(main)
"""


@contextlib.contextmanager
def python(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Waited for at the end."""
    root = str(Path(linx.__file__).parents[1])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
async def test_nothing_is_left(signum: signal.Signals) -> None:
    async with namespace() as s, guest(s) as g:
        argv = [sys.executable, "-c", PROGRAM, str(s.host_pid), str(g.host_pid)]
        with python(argv) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"made\n"
            assert await names(s) == {"lo", "br0", "kept", "v1", "w0"}
            assert await names(g) == {"lo", "moved", "w1", "mv"}
            await run_in(s, "ip", "link", "set", "br0", "name", "renamed")
            await run_in(s, "ip", "link", "add", "br0", "type", "bridge")  # somebody else's
            process.send_signal(signum)
        with trio.fail_after(60):
            while await names(s) != {"lo", "kept", "br0"} or await names(g) != {"lo"}:
                await trio.lowlevel.checkpoint()


async def test_a_session_in_others_namespace_leaves_nothing_there() -> None:
    """What it has joined goes on without it."""
    async with namespace() as s:
        await s.proceed()
        with python([sys.executable, "-c", SHARED, str(s.host_pid)]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"made\n"
            assert await names(s) == {"lo", "br0", "kept"}
            process.kill()
        with trio.fail_after(60):
            while await names(s) != {"lo", "kept"}:
                await trio.lowlevel.checkpoint()


async def test_nothing_is_left_of_what_a_sessions_own_namespace_has_sent_to_others() -> None:
    async with namespace() as s:
        await s.proceed()
        with python([sys.executable, "-c", MOVED, str(s.host_pid)]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"made\n"
            assert await names(s) == {"lo", "moved", "moved2", "made"}
            process.kill()
        with trio.fail_after(60):
            while await names(s) != {"lo"}:
                await trio.lowlevel.checkpoint()


async def test_there_is_no_keeper_for_what_goes_with_its_session() -> None:
    async with namespace() as s, guest(s) as g, linx.net.open(s) as net:
        await net.create_bridge("br0")
        await net.create_macvlan("mv", await net.create_veth("v0", "v1"), netns=g)
        await net.move_to_netns("v0", g)
        assert net._keeper is None
