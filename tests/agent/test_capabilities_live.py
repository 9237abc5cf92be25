"""What a workload has after ``execve(2)``: declared, and by the verbs on a parked session; as anybody may have it."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import capabilities
from linx_trio._capabilities import Caps, CapSets, caps_of, existing
from linx_trio.capabilities import Capability, drop, keep
from tests.agent.rights import Options, output_of, rootless

SLEEP = ["sleep", "600"]
EVERY = existing(capabilities.last_cap())
NOTHING = CapSets()
NONE: Caps = frozenset()
NET_ADMIN, CHOWN = caps_of(1 << Capability.CAP_NET_ADMIN), caps_of(1 << Capability.CAP_CHOWN)


def somebody_inside(*kinds: str) -> Options:
    """A user namespace in which the workload is no root."""
    maps = linx.user.Maps(uid=(1000, os.geteuid(), 1), gid=(1000, os.getegid(), 1))
    return {"namespaces": {"user", *kinds}, "user": maps}


def all_five(caps: Any) -> CapSets:
    return CapSets(caps, caps, caps, caps, caps)


async def sets_of(**options: Any) -> CapSets:
    """What a running workload has; the same without a checkpoint."""
    async with linx.spawn(SLEEP, **options) as s:
        await s.proceed()
        found = capabilities.read(s)
    async with linx.spawn(SLEEP, auto_proceed=True, **options) as s:
        assert capabilities.read(s) == found
    return found


inside = pytest.mark.parametrize("who", [rootless, somebody_inside], ids=["root", "somebody"])

# ---- declared ----------------------------------------------------------------------------------------------------


@inside
@pytest.mark.parametrize("caps", [(), {"net_admin"}, {"CAP_CHOWN", Capability.CAP_KILL, 21}], ids=repr)
async def test_keep(who: Any, caps: Any) -> None:
    """Exactly these, in all five sets, with any uid."""
    assert await sets_of(capabilities=keep(caps), **who()) == all_five(caps)


@inside
async def test_keep_all(who: Any) -> None:
    assert await sets_of(capabilities=keep(EVERY), **who()) == all_five(EVERY)


async def test_drop_from_root() -> None:
    rest = EVERY - NET_ADMIN
    assert await sets_of(capabilities=drop({"net_admin"}), **rootless()) == CapSets(rest, rest, NONE, rest, NONE)
    assert await sets_of(capabilities=drop(EVERY), **rootless()) == NOTHING
    assert await sets_of(capabilities=drop(()), **rootless()) == CapSets(EVERY, EVERY, NONE, EVERY, NONE)


async def test_drop_from_somebody() -> None:
    """Who gets nothing by it: only the bounding set remains."""
    rest = EVERY - NET_ADMIN
    assert await sets_of(capabilities=drop({"net_admin"}), **somebody_inside()) == CapSets(NONE, NONE, NONE, rest, NONE)


@inside
async def test_what_is_kept_is_good_for_something(who: Any) -> None:
    up = ["sh", "-c", "ip link set lo up && ip link show lo"]
    assert b"UP" in await output_of(up, capabilities=keep({"net_admin"}), **who("net"))
    done = await linx.run(up, capabilities=keep({"net_raw"}), check=False, capture_stderr=True, **who("net"))
    assert done.returncode != 0
    assert done.stderr is not None
    assert b"not permitted" in done.stderr


@inside
async def test_children_have_no_more(who: Any) -> None:
    script = "sh -c 'grep -E ^Cap /proc/self/status'"
    shown = await output_of(["sh", "-c", script], capabilities=keep({"chown"}), **who())
    assert [line.split()[1] for line in shown.splitlines()] == [b"%016x" % 1] * 5


async def test_what_is_kept_is_there_for_cwd_and_not_for_what_was_before(tmp_path: Any) -> None:
    """The directory is entered with the workload's own capabilities; mounting needs what it does not keep."""
    options = rootless("mount") | {"mounts": [linx.mount.Tmpfs("/mnt"), linx.mount.Dir("/mnt/a")], "cwd": "/mnt/a"}
    assert await output_of(["pwd"], capabilities=keep(()), **options) == b"/mnt/a\n"


async def test_with_an_init() -> None:
    """It is pid 1's own affair what that has."""
    async with linx.spawn(SLEEP, capabilities=keep({"chown"}), init=True, **rootless("pid")) as s:
        await s.proceed()
        assert capabilities.read(s) == all_five(CHOWN)


# ---- refused -----------------------------------------------------------------------------------------------------


async def test_a_capability_that_this_kernel_lacks() -> None:
    with pytest.raises(linx.SetupError, match="62") as caught:
        await linx.run(SLEEP, capabilities=keep({62}), **rootless())
    assert (caught.value.errno, caught.value.stage) == (errno.EINVAL, "cap_set_thread")
    assert "cap_last_cap" in str(caught.value.hint)
    assert await sets_of(capabilities=drop({62, "net_admin"}), **somebody_inside()) == CapSets(
        NONE, NONE, NONE, EVERY - NET_ADMIN, NONE
    )


@pytest.mark.parametrize("policy", [keep(()), keep({"chown"}), drop({"chown"})], ids=repr)
async def test_what_the_caller_may_not_drop(policy: capabilities.Policy) -> None:
    """It is refused with a hint, not left out."""
    async with linx.spawn(SLEEP, capabilities=policy, **rootless()) as s:
        await capabilities.set_thread_sets(s, effective=())  # no CAP_SETPCAP any more
        with pytest.raises(PermissionError) as caught:
            await s.proceed()
        assert isinstance(caught.value, linx.SetupError)
        assert (caught.value.stage, caught.value.filename) == ("cap_drop_bounding", repr(policy))
        assert "CAP_SETPCAP" in str(caught.value.hint)
        assert not s.ran


if os.geteuid() != 0:  # root has what they lack

    @pytest.mark.parametrize("policy", [keep(()), drop({"chown"})], ids=repr)
    async def test_an_ordinary_user_without_a_user_namespace(policy: capabilities.Policy) -> None:
        with pytest.raises(PermissionError) as caught:
            await linx.run(SLEEP, capabilities=policy)
        assert isinstance(caught.value, linx.SetupError)
        assert caught.value.stage == "cap_drop_bounding"
        assert "add 'user' to namespaces" in str(caught.value.hint)


# ---- the verbs, through execve -------------------------------------------------------------------------------------


async def test_what_was_dropped_from_the_bounding_set_is_gone() -> None:
    """Root gets all of the bounding set back by ``execve(2)``, and nothing else."""
    async with linx.spawn(SLEEP, **rootless()) as s:
        await capabilities.set_thread_sets(s, inheritable={"net_admin"})
        await capabilities.drop_bounding(s, EVERY - CHOWN)
        await capabilities.set_thread_sets(s, effective=(), permitted=(), inheritable=())
        await s.proceed()
        assert capabilities.read(s) == CapSets(CHOWN, CHOWN, NONE, CHOWN, NONE)


async def test_what_is_inheritable_comes_back_for_root() -> None:
    """P(inheritable) & F(inheritable), with all of F set for root: bounding is no limit to it."""
    async with linx.spawn(SLEEP, **rootless()) as s:
        await capabilities.set_thread_sets(s, inheritable={"net_admin"})
        await capabilities.drop_bounding(s, EVERY)
        await s.proceed()
        assert capabilities.read(s) == CapSets(NET_ADMIN, NET_ADMIN, NET_ADMIN, NONE, NONE)


async def test_ambient_is_what_somebody_keeps() -> None:
    async with linx.spawn(SLEEP, **somebody_inside()) as s:
        await capabilities.set_thread_sets(s, inheritable={"chown", "net_admin"})
        await capabilities.set_ambient(s, {"chown"})
        await s.proceed()
        assert capabilities.read(s) == CapSets(CHOWN, CHOWN, CHOWN | NET_ADMIN, EVERY, CHOWN)


async def test_ambient_is_lowered_with_the_others() -> None:
    async with linx.spawn(SLEEP, **somebody_inside()) as s:
        await capabilities.set_thread_sets(s, inheritable={"chown", "net_admin"})
        await capabilities.set_ambient(s, {"chown", "net_admin"})
        await capabilities.set_thread_sets(s, inheritable={"chown"})
        await s.proceed()
        assert capabilities.read(s) == CapSets(CHOWN, CHOWN, CHOWN, EVERY, CHOWN)


async def test_a_verb_takes_what_the_option_was_to_keep() -> None:
    """The option cannot give it back: it is refused, not run with less or more than was declared."""
    async with linx.spawn(SLEEP, capabilities=keep({"chown"}), **rootless()) as s:
        await capabilities.set_thread_sets(s, effective={"setpcap"}, permitted={"setpcap"})
        with pytest.raises(PermissionError) as caught:
            await s.proceed()
        assert isinstance(caught.value, linx.SetupError)
        assert caught.value.stage == "cap_set_thread"
    assert not s.ran
