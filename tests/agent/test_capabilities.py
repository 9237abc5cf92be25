"""Capabilities on the kernel: reading anybody's, and the verbs, in a fresh user namespace, which gives all of them to
anybody.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import capabilities
from linx_trio._capabilities import CapSets, caps_of, existing, mask_of
from linx_trio.capabilities import Capability

# ---- reading ----------------------------------------------------------------------------------------------------


def raw_sets(pid: int | str) -> dict[str, int]:
    """The kernel's masks by the kernel's names."""
    found = re.findall(r"^(Cap\w+):\t([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return {name: int(mask, 16) for name, mask in found}


def masks_of(sets: CapSets) -> dict[str, int]:
    five = (sets.inheritable, sets.permitted, sets.effective, sets.bounding, sets.ambient)
    return dict(zip(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), map(mask_of, five), strict=True))


class PidfdObject:
    def __init__(self, pid: int) -> None:
        self.fd = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self.fd


def test_reading_any_process() -> None:
    assert capabilities.last_cap() == int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    pidfd = PidfdObject(os.getpid())
    try:
        for target in (os.getpid(), pidfd, "/proc/self", Path("/proc/thread-self"), b"/proc/self"):
            assert masks_of(capabilities.read(target)) == raw_sets("self"), target
    finally:
        os.close(pidfd.fd)
    assert masks_of(capabilities.read(1)) == raw_sets(1)


@pytest.mark.parametrize("target", [2**22 + 1, "/proc/nobody", "/nowhere"], ids=repr)
def test_reading_nobody(target: Any) -> None:
    with pytest.raises(linx.SetupError) as caught:
        capabilities.read(target)
    assert isinstance(caught.value, FileNotFoundError)
    assert str(target) in str(caught.value)


@pytest.mark.parametrize(
    ("target", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (None, TypeError), ("", ValueError)]
)
def test_reading_what_is_no_target(target: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="target"):
        capabilities.read(target)


async def test_reading_a_session() -> None:
    async with linx.spawn(["/bin/sleep", "60"], namespaces={"user"}) as s:
        assert capabilities.read(s) == CapSets.in_new_user_namespace(capabilities.last_cap())
        assert capabilities.read(s) == capabilities.read(s.pidfd) == capabilities.read(s.host_pid)
        await s.proceed()
        assert capabilities.read(s).permitted == frozenset()  # no uid is 0 there, so execve(2) took them
    with pytest.raises(linx.NoProcess, match="read"):
        capabilities.read(s)


# ---- verbs ------------------------------------------------------------------------------------------------------


async def test_the_verbs() -> None:
    every = existing(capabilities.last_cap())
    async with linx.spawn(["/bin/sleep", "60"], namespaces={"user"}) as s:
        await capabilities.drop_bounding(s, {"net_raw", Capability.CAP_KILL, 62})
        assert capabilities.read(s) == CapSets(every, every, frozenset(), every - {5, 13})
        await capabilities.set_thread_sets(s, inheritable={"CHOWN", "fowner"})
        await capabilities.set_ambient(s, {"chown", "fowner"})
        await capabilities.set_ambient(s, {"cap_chown"})
        assert capabilities.read(s) == CapSets(every, every, caps_of(0b1001), every - {5, 13}, caps_of(1))
        await capabilities.set_thread_sets(s, effective=(), permitted={"chown"})
        await s.proceed()
        chown = caps_of(1)
        assert capabilities.read(s) == CapSets(chown, chown, caps_of(0b1001), every - {5, 13}, chown)


@pytest.mark.parametrize(
    ("sets", "mention"),
    [
        ({"effective": {"chown"}, "permitted": ()}, "effective set must lie within it"),
        ({"permitted": {"chown", "kill"}}, "permitted set can only shrink"),
        ({"inheritable": {"kill"}}, "in the bounding set"),
    ],
)
async def test_what_the_sets_allow_each_other_is_in_the_hint(sets: dict[str, Any], mention: str) -> None:
    async with linx.spawn(["/bin/sleep", "60"], namespaces={"user"}) as s:
        await capabilities.drop_bounding(s, {"kill"})
        await capabilities.set_thread_sets(s, effective={"chown", "setpcap"}, permitted={"chown", "setpcap"})
        with pytest.raises(linx.SetupError, match="stage cap_set_thread") as caught:
            await capabilities.set_thread_sets(s, **sets)
        assert caught.value.errno == errno.EPERM
        assert mention in str(caught.value.hint)


async def test_refused_verbs() -> None:
    """Each by its stage, with the capabilities; the session goes on."""
    async with linx.spawn(["/bin/sleep", "60"], namespaces={"user"}) as s:
        with pytest.raises(linx.SetupError, match=r"CAP_KILL.*stage cap_set_ambient") as ambient:
            await capabilities.set_ambient(s, {"kill"})
        with pytest.raises(
            linx.SetupError, match=r"effective: CAP_KILL; permitted: none.*stage cap_set_thread"
        ) as thread:
            await capabilities.set_thread_sets(s, effective={"kill"}, permitted=())
        with pytest.raises(linx.SetupError, match=r"'62'.*stage cap_set_thread") as unknown:
            await capabilities.set_thread_sets(s, inheritable={62})
        with pytest.raises(linx.SetupError, match=r"'62'.*stage cap_set_ambient") as lacking:
            await capabilities.set_ambient(s, {62})
        assert lacking.value.hint == unknown.value.hint
        assert "cap_last_cap" in str(lacking.value.hint)
        await capabilities.set_thread_sets(s, effective=(), permitted=(), inheritable=())
        with pytest.raises(linx.SetupError, match=r"CAP_CHOWN.*stage cap_drop_bounding") as bounding:
            await capabilities.drop_bounding(s, {"chown"})
        errors = [caught.value.errno for caught in (ambient, thread, unknown, lacking, bounding)]
        assert errors == [errno.EPERM, errno.EPERM, errno.EINVAL, errno.EINVAL, errno.EPERM]
        await s.proceed()
        for name, late in {
            "drop_bounding": capabilities.drop_bounding(s, ()),
            "set_thread_sets": capabilities.set_thread_sets(s, effective=()),
            "set_ambient": capabilities.set_ambient(s, ()),
        }.items():
            with pytest.raises(linx.AlreadyRunning, match=f"^{name}: "):
                await late
