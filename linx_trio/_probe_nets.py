"""What is tried in fresh network namespaces. See `_probe_bench`."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from linx_trio._cause_kernel import kernel_module
from linx_trio._probe_bench import Bench, Refused, Trial

if TYPE_CHECKING:
    from linx_trio._net import Net

GROUP = "links in a fresh network namespace"


@contextlib.asynccontextmanager
async def _net(bench: Bench, module: str, option: str) -> AsyncIterator[Net]:
    """A fresh namespace. That the kernel does not know what is asked for there is told as `module` lacking."""
    from linx_trio import _net  # the one part that needs pyroute2

    async with bench.parked() as session:
        try:
            async with _net.open(session) as net:
                yield net
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            raise Refused(kernel_module(bench.machine, module, option)) from None


async def _loopback(bench: Bench) -> None:
    async with _net(bench, "rtnetlink", "CONFIG_NET") as net:
        await net.set_up("lo")


async def _veth(bench: Bench) -> None:
    async with _net(bench, "veth", "CONFIG_VETH") as net:
        await net.create_veth("linx0", "linx1")


async def _bridge(bench: Bench) -> None:
    async with _net(bench, "bridge", "CONFIG_BRIDGE") as net:
        await net.create_bridge("linx0")


async def _macvlan(bench: Bench) -> None:
    async with _net(bench, "macvlan", "CONFIG_MACVLAN") as net:
        await net.create_veth("linx0", "linx1")
        await net.create_macvlan("linx2", "linx0")


async def _netem(bench: Bench) -> None:
    async with _net(bench, "sch_netem", "CONFIG_NET_SCH_NETEM") as net:
        await net.add_qdisc("lo", "netem", delay=0.001)


TRIALS = (
    Trial("net:lo", GROUP, "rtnetlink(7), and the loopback link", _loopback, kinds=("net",)),
    Trial("net:veth", GROUP, "pairs of links", _veth, ("net:lo",), ("net",)),
    Trial("net:bridge", GROUP, "bridges", _bridge, ("net:lo",), ("net",)),
    Trial("net:macvlan", GROUP, "links on top of another", _macvlan, ("net:veth",), ("net",)),
    Trial("net:netem", GROUP, "delay, loss and the like", _netem, ("net:lo",), ("net",)),
)
