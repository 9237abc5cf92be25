"""Thirty hosts on three switches, on this machine, now: everybody pings everybody, a cable is pulled, and all is gone.

    python docs/examples/lab.py

It needs no root. Each host has a network, a name and mounts of its own; its files are otherwise the machine's.
"""

import itertools
import os
import shutil
import time

import trio

import linx_trio as linx
from linx_trio.net import Host, Lab, LabLink

HOSTS, SWITCHES = 30, 3
PING = "ping" if shutil.which("ping") else "busybox ping"


def build(lab: Lab) -> LabLink:
    """The switches in a row, the hosts in turn at each of them. Nothing is made yet."""
    switches = [lab.switch(f"s{i + 1}") for i in range(SWITCHES)]
    trunks = [lab.link(one, other) for one, other in itertools.pairwise(switches)]
    for i in range(HOSTS):
        host = lab.host(f"h{i + 1}")
        lab.link(host, switches[i % SWITCHES], address=f"10.0.0.{i + 1}/24")
    return trunks[-1]


async def answers(host: Host, names: list[str]) -> int:
    """How many of them answer to one ping."""
    script = f'for name; do {PING} -c 1 -W 5 "$name" >/dev/null 2>&1 && echo "$name"; done; true'
    done = await host.run(["sh", "-c", script, "sh", *names], capture_stdout=True)
    return len(done.stdout.split())


async def everybody_pings_everybody(lab: Lab) -> int:
    counts = []

    async def one(host: Host) -> None:
        counts.append(await answers(host, [other.name for other in lab.hosts if other is not host]))

    async with trio.open_nursery() as nursery:
        for host in lab.hosts:
            nursery.start_soon(one, host)
    return sum(counts)


async def reaches(host: Host, name: str) -> str:
    done = await host.run(["sh", "-c", f"{PING} -c 1 -W 1 {name}"], check=False, stdout=linx.DEVNULL)
    return "reaches" if done.returncode == 0 else "does not reach"


async def main() -> None:
    before = set(os.listdir("/sys/class/net"))
    started = time.perf_counter()
    async with Lab() as lab:
        trunk = build(lab)
        await lab.start()
        seconds = time.perf_counter() - started
        print(f"{HOSTS} hosts and {SWITCHES} switches, wired and ready in {seconds:.2f} s")

        started = time.perf_counter()
        count = await everybody_pings_everybody(lab)
        seconds = time.perf_counter() - started
        print(f"everybody pings everybody, by name: {count} of {HOSTS * (HOSTS - 1)} answer, in {seconds:.1f} s")

        h1, *others = lab.hosts[:SWITCHES]
        await trunk.set_down()
        print(f"the cable {trunk.names[0]} - {trunk.names[1]} is pulled:")
        for other in others:
            print(f"  h1 {await reaches(h1, other.name)} {other.name}")
        await trunk.set_up()
        print(f"and put back: h1 {await reaches(h1, others[-1].name)} {others[-1].name}")

        stats = await h1.net.stats("eth0")
        print(f"h1 has sent {stats.tx_packets} packets and received {stats.rx_packets}")
        started = time.perf_counter()
    print(f"the block is left: all of it is gone, in {time.perf_counter() - started:.2f} s")
    assert set(os.listdir("/sys/class/net")) == before


if __name__ == "__main__":
    trio.run(main)
