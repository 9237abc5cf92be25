"""What links of a lab do to packets, where the kernel can (netem): the guest of ``make test-vm``."""

from __future__ import annotations

import trio

from tests.agent.labs import is_out_of_reach, needs_netem, ping, tc, two_hosts
from tests.agent.roots import needs_busybox

pytestmark = [needs_netem, needs_busybox]


async def test_a_delay_is_that_long_each_way() -> None:
    async with two_hosts(delay=0.15) as (lab, a, _b):
        (link,) = lab.links
        assert await ping(a, "10.0.0.2"), "somebody has been asked for the address"
        started = trio.current_time()
        assert await ping(a, "10.0.0.2")
        assert trio.current_time() - started >= 0.3
        await link.shape(delay="1ms", jitter="0.5ms", loss=0.001, rate="100mbit")
        (found,) = await tc(a, "qdisc", "show", "dev", "eth0")
        assert found["kind"] == "netem"
        assert round(found["options"]["delay"]["jitter"], 5) == 0.0005
        assert await ping(a, "10.0.0.2")
        await link.shape()
        assert [qdisc["kind"] for qdisc in await tc(a, "qdisc", "show", "dev", "eth0")] == ["noqueue"]


async def test_what_is_lost_does_not_arrive() -> None:
    async with two_hosts(loss="100%") as (lab, a, _b):
        (link,) = lab.links
        assert await is_out_of_reach(a, "10.0.0.2")
        await link.shape(loss=0)
        assert await ping(a, "10.0.0.2")
