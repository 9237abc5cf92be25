"""Labs to look at, and who looks: ``ip -j``, ``tc -j`` and busybox' ``ping``, run on their hosts."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import _lab_site
from linx_trio.net import Host, Lab, LabLink
from tests.agent.roots import BUSYBOX

Facts = list[dict[str, Any]]


@pytest.fixture(params=[pytest.param("rootless", id="rootless"), pytest.param("as root", id="root")])
def rights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """In a user namespace of the lab's own, as anybody has it; and as root, where that is what runs the tests."""
    if request.param == "rootless":
        monkeypatch.setattr(_lab_site, "_is_privileged", lambda: False)
    elif os.geteuid() != 0:
        pytest.skip("root only: a lab without a user namespace of its own")
    name: str = request.param
    return name


async def output(host: Host, *argv: str) -> str:
    done = await host.run(argv, capture_stdout=True)
    assert done.stdout is not None
    return done.stdout.decode()


async def _json(host: Host, *argv: str) -> Facts:
    text = await output(host, *argv)
    return [item for item in json.loads(text) if item] if text.strip() else []


async def ip(host: Host, *words: str) -> Facts:
    return await _json(host, "ip", "-j", *words)


async def tc(host: Host, *words: str) -> Facts:
    return await _json(host, "tc", "-j", *words)


async def link_of(host: Host, name: str = "eth0") -> dict[str, Any]:
    """One link with its addresses, as ``ip`` sees it."""
    (found,) = await ip(host, "addr", "show", "dev", name)
    return found


def addresses_of(link: dict[str, Any]) -> set[str]:
    """Without those that the kernel gives by itself."""
    return {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global"}


async def routes_of(host: Host, version: int = 4) -> set[tuple[str, str]]:
    """Those with a gateway."""
    routes = await ip(host, f"-{version}", "route")
    return {(route["dst"], route["gateway"]) for route in routes if "gateway" in route}


async def ping(host: Host, whom: str, *options: str) -> bool:
    """One that is answered within some seconds."""
    assert BUSYBOX is not None
    argv = [BUSYBOX, "ping", "-c", "1", "-W", "5", *options, whom]
    done = await host.run(argv, check=False, stdout=linx.DEVNULL, stderr=linx.DEVNULL)
    return done.returncode == 0


async def is_out_of_reach(host: Host, whom: str) -> bool:
    """It is asked three times, and not waited for long: what is not sent does not come."""
    assert BUSYBOX is not None
    argv = [BUSYBOX, "ping", "-c", "3", "-A", "-w", "1", whom]
    done = await host.run(argv, check=False, stdout=linx.DEVNULL, stderr=linx.DEVNULL)
    return done.returncode != 0


def pair(lab: Lab, **options: Any) -> tuple[Host, Host, LabLink]:
    """Two hosts with a cable between them, 10.0.0.1 and 10.0.0.2, fd00::1 and fd00::2."""
    a, b = lab.host("a"), lab.host("b")
    addresses = [["10.0.0.1/24", "fd00::1/64"], ["10.0.0.2/24", "fd00::2/64"]]
    return a, b, lab.link(a, b, address=addresses[0], peer_address=addresses[1], **options)


@asynccontextmanager
async def two_hosts(**options: Any) -> AsyncIterator[tuple[Lab, Host, Host]]:
    """The same, made."""
    async with Lab() as lab:
        a, b, _ = pair(lab, **options)
        await lab.start()
        yield lab, a, b


@functools.cache
def netem_is_there() -> bool:
    """Whether this kernel can delay and lose packets."""
    argv = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return subprocess.run(["unshare", "-rn", *argv], capture_output=True, check=False).returncode == 0


needs_netem = pytest.mark.skipif(not netem_is_there(), reason="needs netem (sch_netem)")
