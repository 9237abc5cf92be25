"""Whose links are whose: what was made in a scope is deleted with it, and what was borrowed is given back.

Names change and are reused, and so is an index, where somebody asks for it or a link comes in from another namespace.
So each link that is owned gets an alternative name (``ip link property``) that nobody else has, made of 64 random
bits; it stays with the link when that is renamed or moved. A link is deleted by that name and by nothing else: the
kernel finds and deletes it in one go, and if it is gone, nothing is found.

What was moved away is deleted where it is, through the number that our namespace has for the other one
(``RTM_GETNSID``). Such a number does not keep the other namespace alive; when that is gone, so are its links. A link
that is to come back is another matter: for its sake a socket in the other namespace is kept until the scope ends.

If this process is killed, a keeper of the agent's deletes what the scope has made (`_keeper`): it has been told the
messages to do so. Not so for a link in a namespace of a session's own: that ends with this process anyway.
"""

from __future__ import annotations

import dataclasses
import errno
import secrets
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from linx_trio import _keeper
from linx_trio import _net_read as read
from linx_trio import _netlink_frames as f
from linx_trio import _netlink_messages as nl
from linx_trio._fd import FdBag
from linx_trio._keeper import Keeper
from linx_trio._net_base import WITHOUT_STATISTICS, Asking, by_altname
from linx_trio._net_objects import Link
from linx_trio._net_targets import dies_with_us, namespace_of

_FEW = 64

CLOSE_SECONDS = 20.0
"""After how long leaving the block gives up, between one link and the next."""

_GONE = frozenset({errno.ENODEV, errno.EINVAL, errno.ENXIO, errno.ENOENT})


@dataclass(slots=True)
class _Owned:
    """A link that was made here. `nsid`: where it has been moved since."""

    name: str
    nsid: int | None = None
    wills: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Borrowed:
    """A link that comes back: from where, and what it was."""

    away: Asking
    name: str
    was_up: bool


class Owner(Asking):
    """Keeps the accounts of one scope."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._owned: dict[str, _Owned] = {}
        self._borrowed: dict[str, _Borrowed] = {}
        self._many = _FEW
        self._keeper: Keeper | None = None

    async def _own(self, link: Link, there: Asking, nsid: int | None = None) -> Link:
        """From now on it is this scope's; returns it with its mark. Without a cancellation from its making to here,
        or it would be nobody's.

        Args:
            there: who asks in the namespace that the link is in; `nsid` is its number here, if it is another.
        """
        try:
            tag = await there._tag(link.index, link.name)
            await self._need_keeper(there._target)
            self._owned[tag] = _Owned(link.name, nsid)
            self._bequeath(tag)
        except BaseException:
            with suppress(OSError):
                await there._ask(nl.DELLINK, {"index": link.index}, slow=True, thing=link.name)
            raise
        if len(self._owned) > self._many:
            await self._forget_the_gone()
        return dataclasses.replace(link, altnames=(*link.altnames, tag))

    async def _need_keeper(self, target: Any) -> None:
        """A link of this scope is, or is about to be, in that namespace."""
        if self._keeper is None and not dies_with_us(target):
            self._keeper = await _keeper.start("netlink", self._rtnl.fileno())

    def _bequeath(self, tag: str) -> None:
        """Tells the keeper where it is now."""
        if self._keeper is not None:
            owned = self._owned[tag]
            message = nl.payload(nl.DELLINK, {}, by_altname(tag, owned.nsid))
            owned.wills.append(self._keeper.keep(f.pack(nl.DELLINK, f.REQUEST, 0, message)))

    def _disown(self, tag: str) -> None:
        """It is gone."""
        for number in self._owned.pop(tag).wills:
            if self._keeper is not None:
                self._keeper.revoke(number)

    async def _forget_the_gone(self) -> None:
        """Links vanish by themselves, with their namespace or their veth's other end, and scopes can be long."""
        there = set()
        for message in await self._dump(nl.GETLINK, {}, [WITHOUT_STATISTICS]):
            there |= set(read.link(message).altnames)
        for tag, owned in list(self._owned.items()):
            if owned.nsid is not None:
                with suppress(OSError):
                    await self._get_tagged(tag, owned.name, owned.nsid)
                    continue
            if tag not in there:
                self._disown(tag)
        self._many = max(_FEW, 2 * len(self._owned))

    def _tag_of(self, link: Link) -> str | None:
        return next((name for name in link.altnames if name in self._owned), None)

    async def _close_owner(self) -> list[OSError]:
        """Undoes the scope, the last first, and tells what could not be undone."""
        troubles: list[OSError] = []
        # Real time: a test's clock may jump while the kernel works.
        limit = time.monotonic() + CLOSE_SECONDS
        with trio.CancelScope(shield=True):
            for tag, borrowed in reversed(self._borrowed.items()):
                await self._undo(self._bring_back(tag, borrowed), borrowed.name, limit, troubles)
                borrowed.away._rtnl.close()
            await self._delete_together([tag for tag, owned in self._owned.items() if owned.nsid is None])
            for tag, owned in reversed(list(self._owned.items())):
                await self._undo(self._delete_owned(tag, owned), owned.name, limit, troubles)
                self._disown(tag)
        self._borrowed.clear()
        if self._keeper is not None:
            self._keeper.close()
        return troubles

    @staticmethod
    async def _undo(undoing: Coroutine[Any, Any, None], name: str, limit: float, troubles: list[OSError]) -> None:
        try:
            if time.monotonic() > limit:
                undoing.close()
                text = f"it is left as it is: giving back all of this block's links took longer than {CLOSE_SECONDS} s"
                raise OSError(errno.ETIMEDOUT, text, name)
            await undoing
        except OSError as exc:
            troubles.append(exc)

    async def _delete_together(self, tags: list[str]) -> None:
        """Each link that is deleted by itself takes some 30 ms, in which the kernel waits for other CPUs; a group of
        them takes as long together. What is not deleted here is deleted one by one.
        """
        if len(tags) < 2:
            return
        group = 1 + secrets.randbelow(2**31 - 1)  # nobody else's: groups are small numbers, where they are used at all
        with suppress(OSError):
            for tag in tags:
                with suppress(OSError):  # gone, or moved
                    await self._ask(nl.SETLINK, {}, [*by_altname(tag), ("IFLA_GROUP", group)])
            await self._ask(nl.DELLINK, {}, [("IFLA_GROUP", group)], slow=True)

    async def _delete_owned(self, tag: str, owned: _Owned) -> None:
        for nsid in {owned.nsid: 0, None: 0}:  # it may not have got there, or have been moved back
            try:
                await self._ask(nl.DELLINK, {}, by_altname(tag, nsid), slow=True, thing=owned.name)
                return
            except OSError as exc:
                if exc.errno not in _GONE:
                    raise

    async def _bring_back(self, tag: str, borrowed: _Borrowed) -> None:
        with FdBag() as bag:
            home = ("IFLA_NET_NS_FD", namespace_of(self._rtnl, bag))
            try:
                link = await borrowed.away._get_tagged(tag, borrowed.name)
            except OSError as exc:
                if exc.errno == errno.ENODEV:
                    return await self._untag(tag, borrowed.name)  # it is here, or moved on, or unplugged
                raise
            # Whatever it is called by now, there may be another one of that name here.
            fields, passing_name = {"index": link.index}, ("IFLA_IFNAME", "linx%d")
            await borrowed.away._ask(nl.SETLINK, fields, [home, passing_name], slow=True, thing=borrowed.name)
        index = (await self._get_tagged(tag, borrowed.name)).index
        await self._untag(tag, borrowed.name)
        old_name = [("IFLA_IFNAME", borrowed.name)]
        await self._ask(nl.SETLINK, {"index": index}, old_name, slow=True, thing=borrowed.name)
        if borrowed.was_up:
            fields = {"index": index, "flags": read.UP, "change": read.UP}
            await self._ask(nl.SETLINK, fields, slow=True, thing=borrowed.name)

    async def _untag(self, tag: str, name: str) -> None:
        """A link that is not here has none."""
        properties = {"attrs": [("IFLA_ALT_IFNAME", tag)]}
        with suppress(OSError):
            index = (await self._get_tagged(tag, name)).index
            await self._ask(nl.DELLINKPROP, {"index": index}, [("IFLA_PROP_LIST", properties)], thing=name)
