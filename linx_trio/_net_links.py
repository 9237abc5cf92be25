"""The verbs about links: made, changed, moved, deleted, listed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, TypeAlias

import trio

from linx_trio import _net_checks as check
from linx_trio import _net_kinds as kinds
from linx_trio import _net_read as read
from linx_trio import _net_targets as targets
from linx_trio import _net_tuntap as tuntap
from linx_trio import _netlink_frames as f
from linx_trio import _netlink_messages as nl
from linx_trio._fd import FdBag
from linx_trio._net_base import NEW, WITHOUT_STATISTICS, Asking, named, shown
from linx_trio._net_objects import Link, LinkStats
from linx_trio._net_owner import Owner, _Borrowed
from linx_trio._netns import open_netlink
from linx_trio._rtnl import Rtnl

LinkLike: TypeAlias = "str | int | Link"


class Links(Owner):
    """Mixed into `Net`."""

    # ---- listing --------------------------------------------------------------------------------------------------

    async def links(self) -> tuple[Link, ...]:
        """All links of the namespace, by index.

        Raises `OSError` as every function here does, with the kernel's errno and explanation.
        """
        found = [read.link(message, self._cookie) for message in await self._dump(nl.GETLINK, {}, [WITHOUT_STATISTICS])]
        return tuple(sorted(found, key=lambda link: link.index))

    async def link(self, link: LinkLike) -> Link:
        """One link as it is now. Raises `OSError` (ENODEV) if there is none."""
        return await self._find(link)

    async def stats(self, link: LinkLike) -> LinkStats:
        """What has gone through it."""
        fields, attributes = named(self._reference(link))
        (message,) = await self._ask(nl.GETLINK, fields, attributes, thing=shown(link))
        return read.stats(message)

    # ---- making ---------------------------------------------------------------------------------------------------

    async def create_veth(
        self,
        name: str,
        peer: str,
        *,
        peer_netns: Any = None,
        mac: str | None = None,
        peer_mac: str | None = None,
        mtu: int | None = None,
        keep: bool = False,
    ) -> Link:
        """Makes a pair of links, each of which receives what the other sends (``veth(4)``). Returns the one here.

        Args:
            name, peer: of the two ends.
            peer_netns: where the other end is made: as for `move_to_netns`. `None`: here.
            mac, peer_mac: their addresses; `None`: random ones.
            mtu: of both, in bytes.
            keep: it does not go with this scope.
        """
        attributes = [("IFLA_IFNAME", check.link_name(peer, "peer"))]
        if peer_mac is not None:
            attributes.append(("IFLA_ADDRESS", check.mac(peer_mac, "peer_mac")))
        with FdBag() as bag:
            common = await self._common(name, mac=mac, mtu=mtu, keep=keep)
            other: list[tuple[str, Any]] = [*attributes, *((key, value) for key, value in common if key == "IFLA_MTU")]
            if peer_netns is not None:
                other.append(("IFLA_NET_NS_FD", await self._namespace(peer_netns, bag, "peer_netns")))
            info = {
                "attrs": [
                    ("IFLA_INFO_KIND", "veth"),
                    ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", {"attrs": other})]}),
                ]
            }
            return await self._make(name, "veth", [*common, ("IFLA_LINKINFO", info)], keep, self)

    async def create_macvlan(
        self,
        name: str,
        parent: LinkLike,
        mode: str = "bridge",
        *,
        mac: str | None = None,
        netns: Any = None,
        keep: bool = False,
    ) -> Link:
        """Makes a link with a MAC address of its own on top of another one.

        Args:
            mode: ``"private" "vepa" "bridge" "passthru"`` or ``"source"``.
            Else as `create`.
        """
        return await self.create(name, "macvlan", parent=parent, mode=mode, mac=mac, netns=netns, keep=keep)

    async def create_bridge(
        self, name: str, *, mac: str | None = None, mtu: int | None = None, keep: bool = False, **attributes: Any
    ) -> Link:
        """Makes a bridge; links become its ports by `set_master`. Attributes as ``stp_state=1``,
        ``vlan_filtering=True``, ``ageing_time=30000`` (in 1/100 s).
        """
        return await self.create(name, "bridge", mac=mac, mtu=mtu, keep=keep, **attributes)

    async def create(
        self,
        name: str,
        kind: str,
        *,
        parent: LinkLike | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        master: LinkLike | None = None,
        netns: Any = None,
        keep: bool = False,
        **attributes: Any,
    ) -> Link:
        """Makes a link of any kind that the kernel has.

        Args:
            kind: ``"dummy" "ipvlan" "vlan" "vxlan" "ifb" "vrf" "tun" "tap"``, …
            parent: the link that it is made on.
            mac: its address; `None`: the kernel chooses.
            mtu: in bytes.
            master: the bridge (bond, VRF) that it becomes a port of.
            netns: the namespace that it is made in: as for `move_to_netns`. `None`: here, where its parent is.
            keep: it does not go with this scope.
            attributes: what else its kind has, named as the kernel does: ``vlan_id=10`` or just ``id=10``.

        Returns the link, where it has been made.

        Raises `ValueError` for unknown kinds and attributes, before any system call; `OSError`: EEXIST, the name is
        taken; EOPNOTSUPP, this kernel lacks that kind; EPERM, for want of CAP_NET_ADMIN in here.
        """
        kinds.kind_name(kind)
        kinds.check_parent(kind, parent)
        check.link_name(name)
        if kind in kinds.TUNTAP:
            return await self._make_tuntap(name, kind, parent, mac, mtu, master, netns, keep, attributes)
        info = kinds.info(kind, attributes)
        async with self._other(netns, "netns") as there:
            common = await self._common(name, mac=mac, mtu=mtu, keep=keep, parent=parent, master=master)
            if parent is not None and (own := kinds.parent_attribute(kind)) is not None:
                index = common.pop(next(at for at, item in enumerate(common) if item[0] == "IFLA_LINK"))[1]
                info = kinds.info(kind, attributes | {own.removeprefix("IFLA_").lower(): index})
            return await self._make(name, kind, [*common, ("IFLA_LINKINFO", info)], keep, there)

    async def _common(
        self,
        name: str,
        *,
        mac: str | None,
        mtu: int | None,
        keep: bool,
        parent: Any = None,
        master: Any = None,
    ) -> list[tuple[str, Any]]:
        attributes: list[tuple[str, Any]] = [("IFLA_IFNAME", check.link_name(name))]
        check.truth(keep, "keep")
        if mac is not None:
            attributes.append(("IFLA_ADDRESS", check.mac(mac)))
        if mtu is not None:
            attributes.append(("IFLA_MTU", check.integer(mtu, "mtu", 0, 2**31 - 1)))
        if master is not None:
            self._reference(master, "master")
        if parent is not None:
            attributes.append(("IFLA_LINK", await self._index(parent, "parent")))
        if master is not None:
            attributes.append(("IFLA_MASTER", await self._index(master, "master")))
        return attributes

    @trio.lowlevel.enable_ki_protection
    async def _make(self, name: str, kind: str, attributes: nl.Attributes, keep: bool, there: Asking) -> Link:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True), FdBag() as bag:  # once it is made, somebody must own it
            nsid, flags = None, NEW | f.ECHO
            if there is not self:
                namespace = targets.namespace_of(there._rtnl, bag)
                nsid, flags = await self._nsid(namespace), NEW
                attributes = [*attributes, ("IFLA_NET_NS_FD", namespace)]
            try:
                answer = await self._ask(nl.NEWLINK, {}, attributes, flags=flags, slow=True, thing=name)
            except OSError as exc:
                raise _explained(exc, kind) from None
            try:
                # Linux 6.0 and later tell of a link that is here.
                link = read.link(answer[0], self._cookie) if answer else await there._get(name, name)
            except BaseException:
                with suppress(OSError):  # ^C: all that we know of it is its name, but that as of just now
                    await there._ask(nl.DELLINK, {}, named(name)[1], slow=True, thing=name)
                raise
            if not keep:
                link = await self._own(link, there, nsid)
        return link

    @trio.lowlevel.enable_ki_protection
    async def _make_tuntap(
        self,
        name: str,
        kind: str,
        parent: Any,
        mac: str | None,
        mtu: int | None,
        master: Any,
        netns: Any,
        keep: bool,
        attributes: dict[str, Any],
    ) -> Link:
        if parent is not None or netns is not None:
            raise ValueError(f"kind {kind!r} has no parent= or netns=: make it here, and move it")
        options = tuntap.Options(**tuntap.checked(kind, attributes))
        changes = (await self._common(name, mac=mac, mtu=mtu, keep=keep, master=master))[1:]
        if self._target is not None:
            raise OSError(
                errno.EOPNOTSUPP,
                f"/dev/net/tun makes links in the caller's own namespace only: make {name!r} by open(), and move it",
                name,
            )
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            tuntap.make(name, options)
            link = await self._get(name, name)
            if not keep:
                await self._own(link, self)
            if changes:
                await self._ask(nl.SETLINK, {"index": link.index}, changes, slow=True, thing=name)
        return await self._get(link.index, name)

    # ---- changing -------------------------------------------------------------------------------------------------

    async def _set(self, link: LinkLike, *attributes: tuple[str, Any], **fields: int) -> None:
        """`slow`, since about anything that is changed of a link may wait for RCU."""
        which, more = named(self._reference(link))
        await self._ask(nl.SETLINK, which | fields, [*more, *attributes], slow=True, thing=shown(link))

    async def set_up(self, link: LinkLike) -> None:
        """Switches it on."""
        which, more = named(self._reference(link))
        await self._ask(nl.SETLINK, which | {"flags": read.UP, "change": read.UP}, more, thing=shown(link))

    async def set_down(self, link: LinkLike) -> None:
        """Switches it off: its routes go."""
        await self._set(link, flags=0, change=read.UP)

    async def set_name(self, link: LinkLike, name: str) -> None:
        """Renames it. Older kernels (before 6.2) refuse that for a link that is up: EBUSY."""
        check.link_name(name)
        await self._set(await self._index(link), ("IFLA_IFNAME", name))

    async def set_mtu(self, link: LinkLike, mtu: int) -> None:
        """In bytes."""
        await self._set(link, ("IFLA_MTU", check.integer(mtu, "mtu", 0, 2**31 - 1)))

    async def set_mac(self, link: LinkLike, mac: str) -> None:
        """Its address: ``"02:00:00:00:00:01"``."""
        await self._set(link, ("IFLA_ADDRESS", check.mac(mac)))

    async def set_master(self, link: LinkLike, master: LinkLike | None) -> None:
        """Makes it a port of a bridge, bond or VRF; `None`: of none any more."""
        self._reference(link)
        index = 0 if master is None else await self._index(master, "master")
        await self._set(link, ("IFLA_MASTER", index))

    async def delete(self, link: LinkLike) -> None:
        """Deletes it. A veth's other end goes with it."""
        found = await self._find(link)
        await self._ask(nl.DELLINK, {"index": found.index}, slow=True, thing=shown(link))
        tag = self._tag_of(found)
        if tag is not None:
            self._disown(tag)

    # ---- moving ---------------------------------------------------------------------------------------------------

    async def move_to_netns(
        self, link: LinkLike, target: Any, *, name: str | None = None, bring_back: bool | None = None
    ) -> Link:
        """Moves a link into another network namespace. There it is down, and has no addresses any more.

        Args:
            target: whose namespace: a pid, a pidfd object, a `Session`, a path like ``/proc/<pid>`` or
                ``/run/netns/<name>``, or a `Net`.
            name: what it is called there; `None`: as here.
            bring_back: whether it comes back, under its old name, when this scope ends. `None`: physical links do. One
                that was made in this scope is deleted then, wherever it is.

        Returns the link as it is there; its index may be another.

        Raises `OSError`: EEXIST, there is a link of that name already; EINVAL, links of that kind cannot move;
        EPERM, for want of CAP_NET_ADMIN in one of the two.
        """
        if name is not None:
            check.link_name(name)
        if bring_back is not None:
            check.truth(bring_back, "bring_back")
        self._reference(link)
        with FdBag() as bag:
            namespace = await self._namespace(target, bag, "target")
            found = await self._find(link)
            owned = self._tag_of(found)
            borrow = owned is None and (bring_back if bring_back is not None else found.kind is None)
            away = await self._away(target, namespace) if borrow else None
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
                with trio.CancelScope(shield=True):
                    where = target._target if isinstance(target, Owner) else target
                    moved = await self._move(found, where, namespace, name, owned, away)
            except BaseException:
                if away is not None:
                    await self._keep_here(found, away)
                raise
        return _as_seen_by(target, moved)

    @trio.lowlevel.enable_ki_protection
    async def _move(
        self, found: Link, target: Any, namespace: int, name: str | None, owned: str | None, away: Asking | None
    ) -> Link:
        nsid = await self._nsid(namespace)
        if away is not None:
            tag = await self._tag(found.index, found.name)
            self._borrowed[tag] = _Borrowed(away, found.name, found.up)
        elif owned is not None:
            await self._need_keeper(target)
            self._owned[owned].nsid = nsid
            self._bequeath(owned)  # already: if the kernel moves it, and then refuses to rename it
        attributes: list[tuple[str, Any]] = [("IFLA_NET_NS_FD", namespace)]
        if name is not None:
            attributes.append(("IFLA_IFNAME", name))
        try:
            await self._ask(nl.SETLINK, {"index": found.index}, attributes, slow=True, thing=found.name)
        except PermissionError as exc:
            exc.add_note(_HINT)
            raise
        return await self._get(name or found.name, found.name, nsid)

    async def _keep_here(self, found: Link, away: Asking) -> None:
        """It was to be lent, and that has failed, wholly or half."""
        with trio.CancelScope(shield=True):
            for tag, borrowed in list(self._borrowed.items()):
                if borrowed.away is away:
                    with suppress(OSError):
                        await self._bring_back(tag, borrowed)
                    del self._borrowed[tag]
            away._rtnl.close()

    async def _away(self, target: Any, namespace: int) -> Asking:
        """A socket over there, which keeps that namespace until the link has come back."""
        where = target._target if isinstance(target, Owner) else target
        away = Asking(Rtnl(await open_netlink(where)), where)
        try:
            with FdBag() as bag:
                if not targets.is_same(namespace, targets.namespace_of(away._rtnl, bag)):
                    raise OSError(errno.ESTALE, "it has changed its network namespace meanwhile", repr(where))
        except BaseException:
            away._rtnl.close()
            raise
        return away

    @contextlib.asynccontextmanager
    async def _other(self, target: Any, argument: str) -> AsyncIterator[Asking]:
        """Who asks in another namespace; `None` is this one."""
        if target is None or isinstance(target, Owner):
            known = self if target is None else target
            known._rtnl._check_open()
            yield known
            return
        targets.check(target, argument)
        there = Asking(Rtnl(await open_netlink(target)), target)
        try:
            yield there
        finally:
            there._rtnl.close()

    async def _namespace(self, target: Any, bag: FdBag, argument: str) -> int:
        if isinstance(target, Owner):
            target._rtnl._check_open()
            return targets.namespace_of(target._rtnl, bag)
        targets.check(target, argument)
        return await targets.open_namespace(target, bag)

    async def _nsid(self, namespace: int) -> int:
        """Our namespace's number for another one; it is given one if it has none."""
        fd = ("NETNSA_FD", namespace)
        for _ in range(2):
            (message,) = await self._ask(nl.GETNSID, {}, [fd])
            nsid = message.get_attr("NETNSA_NSID")
            if nsid not in (None, 2**32 - 1, -1):
                return int(nsid)
            await self._ask(nl.NEWNSID, {}, [fd, ("NETNSA_NSID", 2**32 - 1)], flags=NEW)
        raise OSError(errno.EAGAIN, "a network namespace gets no number")


def _as_seen_by(target: Any, link: Link) -> Link:
    if not isinstance(target, Owner):
        return link
    return dataclasses.replace(link, netns=target._cookie)


_HINT = (
    "hint: it needs CAP_NET_ADMIN in the user namespace that the network namespace belongs to, and where there are two "
    "of them, the opener of this Net must have it in both: sessions with a user namespace each have not"
)


def _explained(exc: OSError, kind: str) -> OSError:
    if exc.errno == errno.EOPNOTSUPP and "Unknown device type" in str(exc):
        exc.add_note(f"hint: this kernel has no links of kind {kind!r}, or not their module")
    elif exc.errno == errno.EOPNOTSUPP:
        exc.add_note(f"hint: this kernel has no links of kind {kind!r}, or not with these attributes")
    elif exc.errno == errno.EPERM:
        exc.add_note(_HINT)
    return exc
