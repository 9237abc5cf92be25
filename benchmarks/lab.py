"""What a lab costs, against Mininet and a script of ``ip`` commands: 30 hosts on 3 switches, set up and torn down.

    python benchmarks/lab.py [--rounds N] [--quick] [--json FILE]

All rivals make the same: a network namespace for each host, a veth pair from each to one of three bridges in a row, an
address each. Every lab has to carry a ping from the first host to the last before it counts, and that is not timed.
Set-up and tear-down are a table each. `benchmarks/README.md` says how to read them.

Mininet and the script leave their bridges in the network namespace that they are started in. So the benchmark starts
itself anew in fresh namespaces first, as root or with a user namespace.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import trio

# A script finds only its own folder. Last on the path: an installed linx_trio is the one to measure.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import command
from benchmarks.harness import Batch, Contender, Table, Target
from benchmarks.machine import NO_LINX

HOSTS, SWITCHES = 30, 3
LAST = f"10.0.0.{HOSTS}"
PING = ["ping"] if shutil.which("ping") else ["busybox", "ping"]
DEBIAN = "/usr/lib/python3/dist-packages"  # its Mininet has no other place, and is pure Python
INSIDE = "LINX_BENCHMARK_INSIDE"


class Rival(ABC):
    """One way to have the lab."""

    @abstractmethod
    async def up(self) -> Any:
        """Makes it, until it could be used. Returns whatever the others need."""

    @abstractmethod
    async def pings(self, lab: Any) -> bool:
        """Whether the first host reaches the last."""

    @abstractmethod
    async def down(self, lab: Any) -> None:
        """Until it says that all is gone."""


class Linx(Rival):
    async def up(self) -> Any:
        import linx_trio as linx

        lab = linx.net.Lab()
        await lab.__aenter__()
        switches = [lab.switch(f"s{i + 1}") for i in range(SWITCHES)]
        for one, other in itertools.pairwise(switches):
            lab.link(one, other)
        for i in range(HOSTS):
            lab.link(lab.host(f"h{i + 1}"), switches[i % SWITCHES], address=f"10.0.0.{i + 1}/24")
        await lab.start()
        return lab

    async def pings(self, lab: Any) -> bool:
        done = await lab["h1"].run([*PING, "-c", "1", "-W", "5", LAST], check=False, capture_stdout=True)
        return bool(done.returncode == 0)

    async def down(self, lab: Any) -> None:
        await lab.__aexit__(None, None, None)


class Mininet(Rival):
    """With Linux bridges and no controller: nothing that the others do not have. It blocks."""

    async def up(self) -> Any:
        from mininet.net import Mininet as Net
        from mininet.nodelib import LinuxBridge
        from mininet.topo import Topo

        Net.inited = True  # it would raise limits and sysctls of the whole machine
        topology = Topo()
        switches = [topology.addSwitch(f"s{i + 1}") for i in range(SWITCHES)]
        for one, other in itertools.pairwise(switches):
            topology.addLink(one, other)
        for i in range(HOSTS):
            topology.addLink(topology.addHost(f"h{i + 1}", ip=f"10.0.0.{i + 1}/24"), switches[i % SWITCHES])
        net = Net(topology, switch=LinuxBridge, controller=None)
        net.start()
        return net

    async def pings(self, lab: Any) -> bool:
        said = lab.get("h1").cmd(f"{' '.join(PING)} -c 1 -W 5 {LAST} && echo answered")
        return "answered" in said

    async def down(self, lab: Any) -> None:
        lab.stop()


UP = """
ip link set lo up
for s in $(seq {switches}); do ip link add s$s type bridge; ip link set s$s up; done
for s in $(seq 2 {switches}); do
    ip link add s$s-up type veth peer name s$((s - 1))-down
    ip link set s$s-up master s$s up
    ip link set s$((s - 1))-down master s$((s - 1)) up
done
for h in $(seq {hosts}); do
    s=$(((h - 1) % {switches} + 1))
    ip netns add h$h
    ip link add s$s-h$h type veth peer name eth0 netns h$h
    ip link set s$s-h$h master s$s up
    ip -n h$h link set lo up
    ip -n h$h addr add 10.0.0.$h/24 dev eth0
    ip -n h$h link set eth0 up
done
"""
DOWN = """
for h in $(seq {hosts}); do ip netns del h$h; done
for s in $(seq 2 {switches}); do ip link del s$s-up; done
for s in $(seq {switches}); do ip link del s$s; done
"""


class Script(Rival):
    """What one writes by hand, one command after the other."""

    async def _run(self, script: str) -> None:
        script = script.format(hosts=HOSTS, switches=SWITCHES)
        await trio.run_process(["sh", "-ec", script])

    async def up(self) -> Any:
        await self._run(UP)

    async def pings(self, lab: Any) -> bool:
        argv = ["ip", "netns", "exec", "h1", *PING, "-c", "1", "-W", "5", LAST]
        return (await trio.run_process(argv, capture_stdout=True, check=False)).returncode == 0

    async def down(self, lab: Any) -> None:
        await self._run(DOWN)


def part(rival: Rival, which: int) -> Batch:
    """0: the set-up's time, 1: the tear-down's."""

    async def batch(sessions: int, warmup: int) -> float:
        total = 0
        for i in range(max(warmup + sessions, 1)):  # none: the harness' rehearsal
            moments = [time.perf_counter_ns()]
            lab = await rival.up()
            moments.append(time.perf_counter_ns())
            connected = await rival.pings(lab)
            moments.append(time.perf_counter_ns())
            await rival.down(lab)
            moments.append(time.perf_counter_ns())
            if not connected:
                raise RuntimeError("the first host does not reach the last")
            if i >= warmup:
                total += moments[2 * which + 1] - moments[2 * which]
        return total / max(sessions, 1)

    return batch


def no_mininet() -> str | None:
    if DEBIAN not in sys.path:
        sys.path.append(DEBIAN)
    try:
        import mininet.net  # noqa: F401
    except Exception as exc:
        return f"Mininet is not installed (Debian's packages mininet and bridge-utils): {exc}"
    for program in ("mnexec", "brctl", "ifconfig"):
        if shutil.which(program) is None:
            return f"Mininet lacks {program}"
    return None


def tables() -> list[Table]:
    mininet = no_mininet()
    rivals: list[tuple[str, Rival, str | None]] = [
        ("linx.net.Lab", Linx(), NO_LINX),
        ("mininet", Mininet(), mininet),
        ("ip-script", Script(), None if shutil.which("ip") else "there is no ip(8)"),
    ]
    baseline = "ip-script" if mininet else "mininet"
    target = Target("at most", 0.33)
    return [
        Table(
            key=f"lab-{name}",
            title=f"{HOSTS} hosts and {SWITCHES} switches: {name}",
            measure="time",
            baseline=baseline,
            contenders=tuple(
                Contender(
                    rival, part(how, which), target if rival == "linx.net.Lab" else None, absent, rival != "mininet"
                )
                for rival, how, absent in rivals
            ),
            sessions=1,
            warmup=0,
        )
        for which, name in enumerate(("set-up", "tear-down"))
    ]


async def benchmark(plan: command.Plan, made: list[Table]) -> tuple[command.Report, bool]:
    reports: command.Report = []
    fine = True
    for number, table in enumerate(made, 1):
        if number in plan.parts:
            report, ok = await command.run_table(plan, table)
            reports += report
            fine = fine and ok
    return reports, fine


def go_inside() -> None:
    """This program again, with network and mounts of its own: what it leaves there goes with it."""
    if INSIDE in os.environ:
        return
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    prepare = 'mount -t tmpfs tmpfs /run && mount -t sysfs sysfs /sys && exec "$@"'
    argv = ["unshare", "--net", "--mount", *rights, "sh", "-c", prepare, "sh", sys.executable, *sys.argv]
    os.execvpe(argv[0], argv, {**os.environ, INSIDE: "yes"})


def main(argv: list[str] | None = None) -> int:
    parser = command.parser("lab.py", "What a lab of 30 hosts and 3 switches costs.", rounds=15, tables=2)
    parser.set_defaults(settle=500.0)  # the kernel takes namespaces apart after they have been left
    plan = command.plan(parser, parser.parse_args(argv))
    made = tables()
    command.refuse_unknown_names(parser, plan, made)
    go_inside()
    for name, version in (("mininet", ["mn", "--version"]), ("ip", ["ip", "-V"])):
        done = (
            subprocess.run(version, capture_output=True, text=True, check=False) if shutil.which(version[0]) else None
        )
        print(f"{name:>10}  {(done.stdout + done.stderr).strip() if done else 'not installed'}")
    return command.run(plan, partial(benchmark, plan, made), "pyroute2")


if __name__ == "__main__":
    sys.exit(main())
