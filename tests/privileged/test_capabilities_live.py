"""Capabilities as root has them to give: other ids, set-user-ID programs, programs with capabilities of their own."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import capabilities
from linx_trio._capabilities import CapSets, mask_of
from linx_trio.capabilities import drop, keep
from tests.agent.probes import SOMEBODY, needs_root, status_of
from tests.agent.test_capabilities_live import EVERY, NONE, all_five

pytestmark = needs_root

IDS: Any = {"uid": SOMEBODY, "gid": SOMEBODY}
OURS = capabilities.read("/proc/self")
RAW, BIND = frozenset({13}), frozenset({10})
"""CAP_NET_RAW and CAP_NET_BIND_SERVICE."""


@pytest.fixture
def program() -> Iterator[Path]:
    """A copy of ``sleep`` that others can reach, on a file system that honours what is set on it."""
    directory = Path(tempfile.mkdtemp(prefix="linx-caps-", dir="/var/tmp"))
    try:
        directory.chmod(0o755)
        copy = directory / "sleep"
        shutil.copyfile(shutil.which("sleep") or "/bin/sleep", copy)
        copy.chmod(0o755)
        yield copy
    finally:
        shutil.rmtree(directory)


def give(program: Path, permitted: int, *, effective: bool) -> None:
    """What ``setcap(8)`` does: ``struct vfs_cap_data`` of revision 2."""
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    data = struct.pack("<5I", 0x02000000 | effective, low, 0, high, 0)
    os.setxattr(program, "security.capability", data)


async def running(argv: list[Any], **options: Any) -> tuple[CapSets, str]:
    """Its sets, and its effective uid."""
    async with linx.spawn(argv, **options) as s:
        await s.proceed()
        return capabilities.read(s), status_of(s.host_pid)["Uid"].split()[1]


# ---- other ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caps", [(), {"net_bind_service"}, {"net_raw", "kill"}], ids=repr)
@pytest.mark.parametrize("ids", [{}, IDS, {"uid": 0}], ids=["caller", "somebody", "root"])
async def test_keep(caps: Any, ids: Any) -> None:
    uid = str(ids.get("uid", 0))
    assert await running(["sleep", "600"], capabilities=keep(caps), **ids) == (all_five(caps), uid)


async def test_drop() -> None:
    """Of what we have: also where that is less than everything."""
    sets, _ = await running(["sleep", "600"], capabilities=drop({"net_raw"}))
    bounding = OURS.bounding - RAW
    gained = (OURS.inheritable - RAW) | bounding
    assert sets == CapSets(gained, gained, OURS.inheritable - RAW, bounding, OURS.ambient - RAW)
    sets, _ = await running(["sleep", "600"], capabilities=drop({"net_raw"}), **IDS)
    assert sets == CapSets(NONE, NONE, OURS.inheritable - RAW, bounding, NONE)


async def test_without_an_option_somebody_has_none() -> None:
    sets, _ = await running(["sleep", "600"], **IDS)
    assert (sets.effective, sets.permitted, sets.ambient) == (frozenset(),) * 3
    assert sets.bounding == OURS.bounding


async def test_a_low_port_for_somebody() -> None:
    code = "import socket; socket.create_server(('127.0.0.1', 81)); print('bound')"
    options: Any = {"namespaces": {"net"}, "capture_stdout": True, "capture_stderr": True, "check": False} | IDS
    argv = ["/usr/bin/python3", "-c", code]
    assert (await linx.run(argv, capabilities=keep({"net_bind_service"}), **options)).stdout == b"bound\n"
    done = await linx.run(argv, capabilities=keep(()), **options)
    assert done.returncode == 1
    assert done.stderr is not None
    assert b"Permission denied" in done.stderr


async def test_the_verbs_for_somebody() -> None:
    """A change from uid 0 to another, which comes later, clears what they have raised; bounding stays."""
    async with linx.spawn(["sleep", "600"], **IDS) as s:
        await capabilities.drop_bounding(s, {"net_raw"})
        await capabilities.set_thread_sets(s, inheritable={"net_bind_service"})
        await capabilities.set_ambient(s, {"net_bind_service"})
        await s.proceed()
        assert capabilities.read(s) == CapSets(NONE, NONE, BIND, OURS.bounding - RAW, NONE)


# ---- programs that have more ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, keep(()), keep({"net_raw"}), drop({"net_raw"})], ids=repr)
@pytest.mark.parametrize("no_new_privs", [False, True])
async def test_a_set_user_id_program(program: Path, policy: Any, no_new_privs: bool) -> None:
    """It is root by its uid, and worth what the bounding and the inheritable set leave."""
    os.chmod(program, 0o4755)
    options: Any = {"capabilities": policy, "no_new_privs": no_new_privs} | IDS
    sets, uid = await running([program, "600"], **options)
    if no_new_privs:
        assert uid == str(SOMEBODY)
        kept = policy.caps if policy is not None and policy.action == "keep" else frozenset()
        assert sets.effective == sets.permitted == sets.ambient == kept
    else:
        assert uid == "0"
        assert sets.effective == sets.permitted
        if policy is None:
            assert sets.permitted == OURS.bounding
        elif policy.action == "keep":
            assert sets.permitted == policy.caps
            assert sets.ambient == frozenset()
        else:
            assert sets.permitted == OURS.bounding - RAW


async def test_a_program_with_capabilities_of_its_own(program: Path) -> None:
    give(program, mask_of(RAW | BIND), effective=True)
    sets, _ = await running([program, "600"], **IDS)
    assert sets.effective == sets.permitted == RAW | BIND
    sets, _ = await running([program, "600"], capabilities=keep(RAW | BIND), **IDS)
    assert sets == CapSets(RAW | BIND, RAW | BIND, RAW | BIND, RAW | BIND, NONE)
    sets, _ = await running([program, "600"], no_new_privs=True, **IDS)
    assert sets.permitted == frozenset()


@pytest.mark.parametrize("policy", [keep(()), keep(BIND), drop(RAW)], ids=repr)
async def test_a_program_that_would_get_less_than_its_file_says(program: Path, policy: Any) -> None:
    """``capabilities(7)``, capability-dumb binaries: ``execve(2)`` refuses. One that raises them itself starts."""
    give(program, mask_of(RAW | BIND), effective=True)
    async with linx.spawn([program, "600"], capabilities=policy, **IDS) as s:
        with pytest.raises(PermissionError) as caught:
            await s.proceed()
        assert isinstance(caught.value, linx.SetupError)
        assert (caught.value.stage, caught.value.errno) == ("execve", errno.EPERM)
        assert not s.ran
    give(program, mask_of(RAW | BIND), effective=False)
    sets, _ = await running([program, "600"], capabilities=policy, **IDS)
    assert sets.effective == frozenset()
    assert sets.permitted == (policy.caps if policy.action == "keep" else BIND)


async def test_neither_helps_in_a_user_namespace_that_does_not_map_it(program: Path) -> None:
    """Root of the host means nothing there."""
    os.chmod(program, 0o4755)
    maps = linx.user.Maps(uid=(0, 100000, 1), gid=(0, 100000, 1))
    sets, uid = await running([program, "600"], user=maps, capabilities=keep(()))
    assert (sets, uid) == (all_five(()), "100000")


# ---- refused -----------------------------------------------------------------------------------------------------


async def test_what_the_caller_does_not_have_cannot_be_kept() -> None:
    """A caller that has given some away: here a workload of ours that runs this very library."""
    lacking = EVERY - OURS.permitted
    if not lacking:
        async with linx.spawn(["sleep", "600"], capabilities=keep(RAW)) as s:
            await capabilities.set_thread_sets(s, effective=EVERY - RAW, permitted=EVERY - RAW)
            with pytest.raises(PermissionError) as caught:
                await s.proceed()
    else:
        with pytest.raises(PermissionError) as caught:
            await linx.run(["true"], capabilities=keep(lacking))
    assert isinstance(caught.value, linx.SetupError)
    assert caught.value.stage == "cap_set_thread"
    assert "does not have" in str(caught.value.hint)
