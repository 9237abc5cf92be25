"""Whose links are whose: what is made in a scope goes with it, in whatever way, and nothing else does."""

from __future__ import annotations

import errno
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio import _net_owner
from linx_trio import _netlink_messages as nl
from linx_trio._netlink_frames import Frame
from linx_trio._rtnl import Rtnl
from linx_trio.net import Net
from tests.agent.networks import guest, ip, names, namespace, run_in
from tests.support import cancelled_after


async def test_a_scope_takes_its_links_along() -> None:
    async with namespace() as s, guest(s) as g:
        async with linx.net.open(s) as net:
            await net.create_bridge("br0")
            await net.create_veth("v0", "v1", peer_netns=g)
            await net.create_bridge("kept", keep=True)
            await net.create_macvlan("mv", "v0", netns=g)
            await net.create_macvlan("mv2", "v0")
            await net.move_to_netns("mv2", g, name="other")
            assert await names(s) == {"lo", "br0", "v0", "kept"}
            assert await names(g) == {"lo", "v1", "mv", "other"}
        assert await names(s) == {"lo", "kept"}
        assert await names(g) == {"lo"}


async def test_made_elsewhere_it_is_told_from_the_link_here_that_has_its_index() -> None:
    async with namespace() as s, guest(s) as g:
        await run_in(s, "ip", "link", "add", "base", "type", "veth", "peer", "name", "far")
        for target in ("session", "net"):
            async with linx.net.open(s) as net, linx.net.open(g) as there:
                made = await net.create_macvlan("mv", "base", netns=g if target == "session" else there)
                assert made == await there.link("mv")
                assert (await net.link(made.index)).altnames == ()
                assert made.index in {link.index for link in await net.links()}
            assert await names(s) == {"lo", "base", "far"}
            assert await names(g) == {"lo"}


async def test_owned_links_say_so() -> None:
    async with namespace() as s, linx.net.open(s) as net:
        await net.create_bridge("br0")
        await net.create_bridge("kept", keep=True)
        altnames = {link["ifname"]: link.get("altnames", []) for link in await ip(s, "link")}
        assert [name.startswith("linx-") for name in altnames["br0"]] == [True]
        assert altnames["kept"] == []


@pytest.mark.parametrize("how", ["exception", "cancelled", "base exception"])
async def test_whatever_ends_the_scope(how: str) -> None:
    class Odd(BaseException):
        pass

    async with namespace() as s:

        async def body() -> None:
            async with linx.net.open(s) as net:
                await net.create_bridge("br0")
                if how == "cancelled":
                    scope.cancel()
                    await trio.sleep_forever()
                raise LookupError("mine") if how == "exception" else Odd

        with trio.CancelScope() as scope:
            if how == "cancelled":
                await body()
            else:
                with pytest.raises(LookupError if how == "exception" else Odd) as caught:
                    await body()
                assert not isinstance(caught.value, BaseExceptionGroup)
                assert not hasattr(caught.value, "__notes__")
        assert await names(s) == {"lo"}


async def test_a_renamed_link_goes_and_its_namesake_stays() -> None:
    async with namespace() as s:
        async with linx.net.open(s) as net:
            await net.create_bridge("br0")
            await net.set_name("br0", "other")
            await run_in(s, "ip", "link", "add", "br0", "type", "bridge")
        assert await names(s) == {"lo", "br0"}


async def test_somebody_elses_link_with_the_same_index_stays() -> None:
    async with namespace() as s:
        async with linx.net.open(s) as net:
            ours = await net.create_bridge("br0")
            await run_in(s, "ip", "link", "delete", "br0")
            await run_in(s, "ip", "link", "add", "br0", "index", str(ours.index), "type", "bridge")
        (left,) = [link for link in await ip(s, "link") if link["ifname"] == "br0"]
        assert left["ifindex"] == ours.index


async def test_a_link_that_was_deleted_is_forgotten() -> None:
    async with namespace() as s, linx.net.open(s) as net:
        await net.create_bridge("br0")
        await net.delete("br0")
        assert not net._owned


async def test_long_scopes_forget_what_has_vanished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_net_owner, "_FEW", 4)
    async with namespace() as s, linx.net.open(s) as net:
        net._many = 4
        await net.create_bridge("stays")
        for number in range(12):
            async with guest(s) as g:
                await net.create_veth(f"v{number}", "eth0", peer_netns=g)
            await gone(net, f"v{number}")
        assert len(net._owned) <= 6
        assert "stays" in {owned.name for owned in net._owned.values()}


async def test_moved_back_by_somebody_else() -> None:
    async with namespace() as s, guest(s) as g:
        async with linx.net.open(s) as net, linx.net.open(g) as there:
            link = await net.move_to_netns(await net.create_veth("v0", "v1"), there)
            await there.move_to_netns(link, net, name="back")
            assert await names(s) == {"lo", "v1", "back"}
        assert await names(s) == {"lo"}


async def test_its_new_namespace_has_ended_already() -> None:
    async with namespace() as s, linx.net.open(s) as net:
        async with guest(s) as g:
            await net.move_to_netns(await net.create_veth("v0", "v1"), g)
        await gone(net, "v1")
        assert await names(s) == {"lo"}


async def gone(net: Net, name: str) -> None:
    """The kernel takes a namespace down when it has time to."""
    with trio.fail_after(60):
        while name in {link.name for link in await net.links()}:
            await trio.lowlevel.checkpoint()


async def test_a_name_that_is_taken_over_there() -> None:
    async with namespace() as s, guest(s) as g, linx.net.open(s) as net, linx.net.open(g) as there:
        await there.create_veth("v0", "w0")
        await net.create_veth("v0", "v1")
        with pytest.raises(FileExistsError):
            await net.move_to_netns("v0", there)
        with pytest.raises(FileExistsError):
            await net.move_to_netns("v1", there, name="w0")
        assert (await net.move_to_netns("v0", there, name="free")).name == "free"


# ---- lent links ------------------------------------------------------------------------------------------------------


async def test_a_lent_link_comes_back_with_its_name() -> None:
    async with namespace() as s, guest(s) as g:
        await run_in(s, "ip", "link", "add", "nic", "mtu", "1400", "type", "veth", "peer", "name", "far")
        await run_in(s, "ip", "link", "set", "nic", "up")
        async with linx.net.open(s) as net:
            moved = await net.move_to_netns("nic", g, name="eth0", bring_back=True)
            assert await names(s) == {"lo", "far"}
            await run_in(g, "ip", "link", "set", "eth0", "name", "hidden")
            await run_in(s, "ip", "link", "add", "hidden", "type", "bridge")  # a namesake at home
            assert moved.name == "eth0"
        assert await names(g) == {"lo"}
        assert await names(s) == {"lo", "far", "nic", "hidden"}
        (shown,) = await ip(s, "link", "show", "nic")
        assert (shown["mtu"], "UP" in shown["flags"]) == (1400, True)
        assert "altnames" not in shown


async def test_a_lent_link_comes_back_from_a_namespace_whose_processes_have_ended() -> None:
    async with namespace() as s:
        await run_in(s, "ip", "link", "add", "nic", "type", "veth", "peer", "name", "far")
        async with linx.net.open(s) as net:
            async with guest(s) as g:
                await net.move_to_netns("nic", g, bring_back=True)
            assert await names(s) == {"lo", "far"}
        assert await names(s) == {"lo", "far", "nic"}


async def test_its_old_name_is_taken_when_it_comes_back() -> None:
    async with namespace() as s, guest(s) as g:
        await run_in(s, "ip", "link", "add", "nic", "type", "veth", "peer", "name", "far")

        async def lend(name: str, exc: Exception | None = None) -> None:
            async with linx.net.open(s) as net:
                await net.move_to_netns(name, g, bring_back=True)
                await run_in(s, "ip", "link", "add", name, "type", "bridge")
                if exc is not None:
                    raise exc

        with pytest.raises(FileExistsError, match="'nic'"):
            await lend("nic")
        (left,) = await names(s) - {"lo", "far", "nic"}
        assert left.startswith("linx")
        with pytest.raises(LookupError) as caught:
            await lend("far", LookupError())
        assert "when leaving linx.net.open()" in caught.value.__notes__[0]


async def test_what_cannot_be_lent_is_as_before() -> None:
    async with namespace() as s, guest(s) as g, linx.net.open(s) as net:
        with pytest.raises(OSError, match="'lo'") as caught:
            await net.move_to_netns("lo", g)  # without a kind, as physical links are
        assert caught.value.errno == errno.EINVAL
        assert not net._borrowed
        assert (await net.link("lo")).altnames == ()


async def test_others_links_stay_where_they_were_moved() -> None:
    async with namespace() as s, guest(s) as g:
        await run_in(s, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        async with linx.net.open(s) as net:
            await net.move_to_netns("v0", g)
        assert await names(g) == {"lo", "v0"}


# ---- cancellation ----------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[Net, linx.Session], Awaitable[object]]] = {
    "bridge": lambda net, _: net.create_bridge("br0"),
    "veth": lambda net, g: net.create_veth("v0", "v1", peer_netns=g),
    "macvlan": lambda net, g: net.create_macvlan("mv", "base", netns=g),
    "move": lambda net, g: net.move_to_netns("mine", g),
    "lend": lambda net, g: net.move_to_netns("nic", g, bring_back=True),
    "address": lambda net, _: net.add_address("mine", "10.0.0.1/24"),
    "list": lambda net, _: net.links(),
    "delete": lambda net, _: net.delete("mine"),
}


@pytest.mark.parametrize("step", sorted(STEPS))
async def test_cancelled_at_every_await(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each request that it is made of, and after it: nothing is left that nobody owns, and the socket is in
    step.
    """
    count = 0
    cancel_at = -1
    scope = trio.CancelScope()
    real = Rtnl.request

    def pass_by() -> None:
        nonlocal count
        if count == cancel_at:
            scope.cancel()
        count += 1

    async def request(self: Rtnl, *args: Any, **kwargs: Any) -> list[Frame]:
        pass_by()
        try:
            return await real(self, *args, **kwargs)
        finally:
            pass_by()

    async with namespace() as s, guest(s) as g:
        await run_in(s, "ip", "link", "add", "base", "type", "veth", "peer", "name", "far")
        await run_in(s, "ip", "link", "add", "nic", "type", "veth", "peer", "name", "nic-far")
        before, before_there = await names(s), await names(g)
        for cancel_at in range(40):
            async with linx.net.open(s) as net:
                await net.create_macvlan("mine", "base")
                count = 0
                with monkeypatch.context() as patch, trio.CancelScope() as scope:
                    patch.setattr(Rtnl, "request", request)
                    await STEPS[step](net, g)
                assert "lo" in {link.name for link in await net.links()}
            assert await names(s) == before
            assert await names(g) == before_there
            if not scope.cancelled_caught and count <= cancel_at:
                break
        else:
            raise AssertionError("it did not end")


async def test_cancelled_while_a_namespace_is_opened() -> None:
    async with namespace() as s:
        for turns in range(30):
            async with cancelled_after(turns), linx.net.open(s) as net:
                assert await net.links()
        assert s.state == "ready"
    gc.collect()


async def test_the_session_is_killed_meanwhile() -> None:
    async with namespace() as s:
        await s.proceed()
        async with linx.net.open(s) as net:
            await net.create_bridge("br0")
            s.kill()
            await s.wait()
            assert {link.name for link in await net.links()} == {"lo", "br0"}  # it is open, so it lives
            with pytest.raises((linx.NoProcess, OSError)):
                async with net.monitor():
                    pass


async def test_many_at_once() -> None:
    async with namespace() as s, linx.net.open(s) as net:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(net.create_bridge, f"br{number}")
                nursery.start_soon(net.links)
        assert len(await net.links()) == 11
        kinds = [link.kind for link in await net.links()]
        assert kinds.count("bridge") == 10


async def test_it_gives_up_when_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async with namespace() as s:
        monkeypatch.setattr(_net_owner, "CLOSE_SECONDS", -1.0)
        with pytest.raises(TimeoutError, match=r"left as it is.*'br0'"):
            async with linx.net.open(s) as net:
                await net.create_bridge("br0")
        assert "br0" in await names(s)


async def test_a_jumping_clock_hurries_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with namespace() as s:
        async with linx.net.open(s) as net:
            for number in range(3):
                await net.create_bridge(f"br{number}")
        async with linx.net.open(s) as net:
            assert {link.name for link in await net.links()} == {"lo"}


async def test_no_tag_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a link cannot be marked as ours, it is not left to nobody."""
    async with namespace() as s, linx.net.open(s) as net:
        monkeypatch.setattr(nl, "NEWLINKPROP", 0x7FF0)
        with pytest.raises((OSError, KeyError)):
            await net.create_bridge("br0")
        assert await names(s) == {"lo"}


async def test_interrupted_at_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """^C reaches the main task wherever it is, shielded or not."""
    real = Rtnl.request
    count = 0
    strike_at = -1

    async def request(self: Rtnl, *args: Any, **kwargs: Any) -> list[Frame]:
        nonlocal count
        count += 1
        if count - 1 == strike_at:
            raise KeyboardInterrupt
        answer = await real(self, *args, **kwargs)
        count += 1
        if count - 1 == strike_at and args[0] != nl.NEWLINK:  # its answer has come, and is being read
            raise KeyboardInterrupt
        return answer

    async def interrupted(s: linx.Session, g: linx.Session) -> bool:
        async with linx.net.open(s) as net:
            with monkeypatch.context() as patch:
                patch.setattr(Rtnl, "request", request)
                try:
                    await net.create_bridge("br0")
                    await net.create_macvlan("mv", "base", netns=g)
                except KeyboardInterrupt:
                    return True
        return False

    async with namespace() as s, guest(s) as g:
        await run_in(s, "ip", "link", "add", "base", "type", "veth", "peer", "name", "far")
        for strike_at in range(40):
            count = 0
            struck = await interrupted(s, g)
            assert await names(s) == {"lo", "base", "far"}
            assert await names(g) == {"lo"}
            if not struck and count <= strike_at:
                break
        else:
            raise AssertionError("it did not end")
