"""Network namespaces to try things in, as anybody may have them, and what ``ip -j`` says about them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import linx_trio as linx
from linx_trio.net import Net

SLEEP = ["sleep", "100000"]


@contextlib.asynccontextmanager
async def namespace() -> AsyncIterator[linx.Session]:
    """A parked session with a network namespace of its own, and the rights over it."""
    async with linx.spawn(SLEEP, namespaces={"user", "net"}, user=linx.user.root_map(), stdio=linx.DEVNULL) as s:
        yield s


@contextlib.asynccontextmanager
async def guest(of: linx.Session) -> AsyncIterator[linx.Session]:
    """One more network namespace, in the same user namespace. Its process runs: a parked one that has entered
    something lets nobody enter it who is not root.
    """
    async with linx.enter(of, SLEEP, unshare={"net"}, stdio=linx.DEVNULL) as s:
        await s.proceed()
        yield s


@contextlib.asynccontextmanager
async def network() -> AsyncIterator[tuple[linx.Session, Net]]:
    """A namespace that is open."""
    async with namespace() as s, linx.net.open(s) as net:
        yield s, net


async def ip(target: linx.Session, *words: str) -> list[dict[str, Any]]:
    """What ``ip -j`` prints in there."""
    return [item for item in await _json(target, "ip", *words) if item]


async def tc(target: linx.Session, *words: str) -> list[dict[str, Any]]:
    return await _json(target, "tc", *words)


async def _json(target: linx.Session, program: str, *words: str) -> list[dict[str, Any]]:
    while "Dump was interrupted" in (done := await run_in(target, program, "-j", *words)):
        pass
    return json.loads(done) if done.strip() else []


async def run_in(target: linx.Session, *argv: str) -> str:
    """What a program prints in there."""
    kinds = {"user", "net"}
    async with linx.enter(
        target, argv, namespaces=kinds, join_cgroup=False, stdin=linx.DEVNULL, stdout=linx.PIPE, stderr=linx.STDOUT
    ) as s:
        await s.proceed()
        assert s.stdout is not None
        text = b"".join([bytes(chunk) async for chunk in s.stdout]).decode()
        assert await s.wait() == linx.Exited(0), text
        return text


async def names(target: linx.Session) -> set[str]:
    """Of the links in there."""
    return {link["ifname"] for link in await ip(target, "link")}
