"""`enter` with ``unshare=``: namespaces of its own, inside of those that it has joined."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import mount
from linx_trio._target import UNSHARED
from tests.agent.containers import KINDS, container, is_untouched

FILES = {"mount": "mnt"}


@pytest.fixture
async def target() -> AsyncIterator[linx.Session]:
    async with container() as session:
        yield session


async def links_of(target: linx.Session, **options: Any) -> dict[str, str]:
    """The namespaces that what has entered is in."""
    names = sorted(FILES.get(kind, kind) for kind in KINDS)
    paths = [f"/proc/thread-self/ns/{name}" for name in names]
    async with linx.enter(target, ["readlink", *paths], stdout=linx.PIPE, auto_proceed=True, **options) as s:
        assert s.stdout is not None
        shown = b"".join([data async for data in s.stdout]).decode().split()
        assert await s.wait() == linx.Exited(0)
    return dict(zip(names, shown, strict=True))


@pytest.mark.parametrize("kind", sorted(UNSHARED))
async def test_one_kind(target: linx.Session, kind: str) -> None:
    name = FILES.get(kind, kind)
    theirs = await links_of(target)
    inside = await links_of(target, unshare={kind})
    assert {each for each in theirs if inside[each] != theirs[each]} == {name}
    assert inside[name] != os.readlink(f"/proc/self/ns/{name}")
    assert is_untouched(target)


async def test_all_kinds_with_what_belongs_to_them(target: linx.Session) -> None:
    """Names, sysctls and mounts are then of its own, and the target keeps its."""
    script = "hostname; cat /proc/sys/net/ipv4/ip_forward; stat -f -c %T /mnt"
    options: dict[str, Any] = {
        "unshare": UNSHARED,
        "hostname": "nested",
        "sysctls": {"net.ipv4.ip_forward": 1},
        "mounts": [mount.Tmpfs("/mnt")],
    }
    for given in (["sh", "-c", script], linx.Workload(["sh", "-c", script])):
        async with linx.enter(target, given, stdout=linx.PIPE, auto_proceed=True, **options) as s:
            assert s.stdout is not None
            assert b"".join([data async for data in s.stdout]) == b"nested\n1\ntmpfs\n"
            assert s.info().namespaces == KINDS
    async with linx.enter(target, ["sh", "-c", script], stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdout is not None
        name, forwards, kind = b"".join([data async for data in s.stdout]).split()
        assert (name, forwards) == (b"inner", b"0")
        assert (kind == b"tmpfs") == any(each.mount_point == "/mnt" for each in mount.mounts(target))


async def test_its_mounts_do_not_get_out(target: linx.Session) -> None:
    before = mount.mounts(target)
    async with linx.enter(target, ["sleep", "600"], unshare={"mount"}) as s:
        await mount.mount(s, "tmpfs", "/mnt")
        await s.proceed()
        assert "/mnt" in {each.mount_point for each in mount.mounts(s)}
        assert mount.mounts(target) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unshare": {"pid"}}, "unshare has 'pid'; what can be fresh"),
        ({"unshare": {"user"}}, "unshare has 'user'"),
        ({"unshare": {"typo"}}, "unknown namespace 'typo'"),
        ({"domainname": "x", "unshare": {"net"}}, r"domainname='x'.*unshare=\{'uts'\}"),
        ({"mounts": [mount.Tmpfs("/mnt")]}, r"mounts=.*unshare=\{'mount'\}"),
        ({"root": "/srv"}, r"root='/srv'.*unshare=\{'mount'\}"),
        ({"sysctls": {"net.ipv4.ip_forward": 1}}, "net/ipv4/ip_forward.*'net'"),
        ({"user": linx.user.root_map()}, "user=.*use spawn"),
        ({"init": True}, "init=True.*use spawn"),
        ({"time_offsets": {"boottime": 1}}, "time_offsets=.*use spawn"),
    ],
)
def test_what_needs_a_fresh_namespace(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        linx.enter(os.getpid(), ["true"], **options)


async def test_unshare_is_an_iterable() -> None:
    with pytest.raises(TypeError, match=r"unshare.*\{'net'\}"):
        linx.enter(os.getpid(), ["true"], unshare="net")
