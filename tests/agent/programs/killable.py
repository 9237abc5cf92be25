"""A Python that is to be killed: ``python -m tests.agent.programs.killable SCENE [POLICY]``.

It sets its scene, writes one line of JSON that says which processes there are, and waits for its end. Many of its
workloads have its standard output: end of file there means that they are gone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

import linx_trio as linx
from tests.agent.programs.phases import FAMILY, PHASES, family, reach, send_proceed, spawn_in, stop, stop_now, zygote
from tests.support import children_of, eventually, monitor_of

POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "kill": {"orphan_policy": linx.Kill()},
    "grace": {"orphan_policy": linx.Kill(grace=0.2)},
    "long-grace": {"orphan_policy": linx.Kill(grace=3600.0)},
    "linger": {"orphan_policy": linx.LINGER},
}


def report(**more: object) -> None:
    """In one piece: workloads write to the same pipe."""
    os.write(1, json.dumps({"zygote": zygote(), **more}).encode() + b"\n")


async def phase(name: str, options: dict[str, Any]) -> None:
    """One session in one of the phases."""
    async with spawn_in(name, **options) as s:
        pids = await reach(s, name)
        if name == "starting":  # no checkpoint from here on: the second half of the request stays where it is
            eventually(lambda: len(children_of(zygote())) == 1, "there is a monitor")
        report(monitors=children_of(zygote()), pids=pids)
        signal.pause()


async def unheard(options: dict[str, Any]) -> None:
    """The zygote has not yet looked: no monitor."""
    await linx.run(["true"])
    stop_now(zygote())
    async with spawn_in("starting", **options):
        report(monitors=[], pids=[])
        signal.pause()


async def all_phases(options: dict[str, Any]) -> None:
    pids: list[int] = []
    async with AsyncExitStack() as stack:
        for name in PHASES * 3:
            session = await stack.enter_async_context(spawn_in(name, **options))
            pids += await reach(session, name)
        report(monitors=children_of(zygote()), pids=pids)
        await trio.sleep_forever()


async def trapping(options: dict[str, Any]) -> None:
    """A workload that writes TERM when it is told to end, and stays."""
    await shell("trap 'echo TERM' TERM; echo up; while :; do sleep 3600 & wait; done", options)


async def obeying(options: dict[str, Any]) -> None:
    """The same, but it goes; what it leaves behind does not."""
    immune = "(trap '' TERM; exec setsid sleep 3600) &"
    await shell(f"trap 'echo TERM; exit' TERM; {immune} echo up; while :; do sleep 3600 & wait; done", options)


async def waiting(options: dict[str, Any]) -> None:
    """A workload that ends by itself, when standard input does, after a last word."""
    await shell("echo up; read line; echo survived", options, stdin=0)


async def released(options: dict[str, Any]) -> None:
    """Past the checkpoint but stopped short of execve."""
    async with linx.spawn(["sh", "-c", "echo up; read line; echo survived"], stdin=0, **options) as s:
        await stop(s.host_pid)
        await send_proceed(s)
        report(monitors=[monitor_of(s.host_pid)], pids=[s.host_pid])
        await trio.sleep_forever()


async def left_behind(options: dict[str, Any]) -> None:
    """The leader has ended, the rest of the family has not."""
    async with spawn_in("ended", ("quiet", *FAMILY), **options) as s, neighbour() as other:
        pids = await reach(s, "ended")
        report(monitors=children_of(zygote()), pids=pids, neighbour=other.host_pid)
        await trio.sleep_forever()


async def shell(code: str, options: dict[str, Any], **more: Any) -> None:
    """A shell that says ``up`` on the shared standard output."""
    async with linx.spawn(["sh", "-c", code], **more, **options) as s, neighbour() as other:
        await s.proceed()
        report(monitors=children_of(zygote()), pids=[s.host_pid], neighbour=other.host_pid)
        await trio.sleep_forever()


@asynccontextmanager
async def neighbour() -> AsyncIterator[linx.Session]:
    """A session that is to be killed without grace: its end shows that the agent has noticed."""
    policy = linx.Kill()
    async with linx.spawn(family("quiet", *FAMILY), stdout=linx.DEVNULL, orphan_policy=policy) as s:
        await s.proceed()
        yield s


async def storm(options: dict[str, Any]) -> None:
    """Sessions beginning, running and ending all the time."""
    rng = random.Random(sys.argv[2])
    daemons = "trap '' TERM; sleep 3600 & setsid sleep 3600 & wait"
    await linx.run(["true"])
    report(monitors=[], pids=[])

    async def one_after_another() -> None:
        while True:
            with trio.move_on_after(rng.random() * 0.02):
                async with linx.spawn(["sh", "-c", daemons], orphan_policy=linx.Kill()) as s:
                    await s.proceed()
                    await s.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one_after_another)


async def forked(options: dict[str, Any]) -> None:
    """This Python has forked. The child has a session of its own, in a thread: it is still inside of trio.run."""
    async with AsyncExitStack() as stack:
        pids: list[int] = []
        for name in PHASES[1:]:
            session = await stack.enter_async_context(spawn_in(name, **options))
            pids += await reach(session, name)
        monitors = children_of(zygote())
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            thread = threading.Thread(target=_in_the_fork, args=(write_end,))
            thread.start()
            thread.join()
            while True:
                signal.pause()
        os.close(write_end)
        word = os.read(read_end, 100).decode()
        report(monitors=monitors, pids=pids, child=child, word=word.strip())
        await trio.sleep_forever()


def _in_the_fork(write_end: int) -> None:
    completed = linx.run_sync(["sh", "-c", "echo hello"], capture_stdout=True)
    os.write(write_end, completed.stdout)
    os.close(write_end)


async def replaced(options: dict[str, Any]) -> None:
    """This Python becomes another program, which knows nothing of sessions."""
    async with spawn_in("running", **options) as s:
        pids = await reach(s, "running")
        report(monitors=children_of(zygote()), pids=pids)
        os.execv("/bin/sleep", ["sleep", "3600"])


async def exiting(options: dict[str, Any]) -> None:
    """It ends without unwinding."""
    async with spawn_in("running", **options) as s:
        pids = await reach(s, "running")
        report(monitors=children_of(zygote()), pids=pids)
        os._exit(5)


async def lab(options: dict[str, Any]) -> None:
    """Hosts with programs, and a guest: all in namespaces that keep each other alive."""
    async with linx.net.Lab() as made:
        switch = made.switch("s")
        hosts = [made.host(f"h{i}", ["sleep", "100000"], **options) for i in range(3)]
        for i, host in enumerate(hosts, 1):
            made.link(host, switch, address=f"10.0.0.{i}/24")
        await made.start()
        async with hosts[0].spawn(["sh", "-c", "setsid sleep 100000 & wait"], **options) as guest:
            await guest.proceed()
            sessions = [session for each in hosts for session in (each.anchor, each.session) if session is not None]
            pids = [session.host_pid for session in (*sessions, guest)]
            report(monitors=children_of(zygote()), pids=pids, namespace=os.stat(f"/proc/{pids[0]}/ns/net").st_ino)
            await trio.sleep_forever()


SCENES: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
    "unheard": unheard,
    "all-phases": all_phases,
    "trapping": trapping,
    "obeying": obeying,
    "waiting": waiting,
    "released": released,
    "left-behind": left_behind,
    "storm": storm,
    "forked": forked,
    "replaced": replaced,
    "exiting": exiting,
    "lab": lab,
}


async def main(scene: str, policy: str) -> None:
    options = POLICIES.get(policy, {})
    if scene in PHASES:
        await phase(scene, options)
    else:
        await SCENES[scene](options)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
