"""What all of a `Net`'s verbs are made of: asking, and finding links."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from linx_trio import _net_read as read
from linx_trio import _netlink_frames as f
from linx_trio import _netlink_messages as nl
from linx_trio._net_checks import link_reference
from linx_trio._net_objects import Link
from linx_trio._rtnl import Rtnl

NEW = f.CREATE | f.EXCL
_TAG = "linx-"
WITHOUT_STATISTICS = ("IFLA_EXT_MASK", 8)  # RTEXT_FILTER_SKIP_STATS


class Asking:
    """Questions on one socket, with pyroute2's classes, and links by name, index or `Link`."""

    def __init__(self, rtnl: Rtnl, target: Any) -> None:
        self._rtnl = rtnl
        self._target = target
        self._cookie = rtnl.netns_cookie()

    async def _ask(
        self,
        type: int,
        fields: Mapping[str, Any],
        attributes: nl.Attributes = (),
        *,
        flags: int = 0,
        slow: bool = False,
        thing: str | None = None,
    ) -> list[Any]:
        payload = nl.payload(type, fields, attributes)
        answer = await self._rtnl.request(type, flags, payload, slow=slow, thing=thing)
        return [nl.decode(frame) for frame in answer]

    async def _dump(self, type: int, fields: Mapping[str, Any], attributes: nl.Attributes = ()) -> list[Any]:
        return await self._ask(type, fields, attributes, flags=f.DUMP)

    def _reference(self, link: Any, argument: str = "link") -> str | int:
        """A name or an index. Raises `TypeError`, `ValueError`."""
        if isinstance(link, Link):
            if None not in (link.netns, self._cookie) and link.netns != self._cookie:
                raise ValueError(f"{argument}={link!r} is a link of another network namespace")
            return link.index
        return link_reference(link, argument)

    async def _find(self, link: Any, argument: str = "link") -> Link:
        """Raises `OSError` (ENODEV) if there is none."""
        return await self._get(self._reference(link, argument), shown(link))

    async def _get(self, reference: str | int, thing: str, nsid: int | None = None) -> Link:
        """With `nsid`, in the network namespace that has this number here."""
        fields, attributes = named(reference)
        if nsid is not None:
            attributes.append(("IFLA_IF_NETNSID", nsid))
        return await self._get_as(fields, attributes, thing)

    async def _get_tagged(self, altname: str, thing: str, nsid: int | None = None) -> Link:
        return await self._get_as({}, by_altname(altname, nsid), thing)

    async def _get_as(self, fields: dict[str, Any], attributes: nl.Attributes, thing: str) -> Link:
        (message,) = await self._ask(nl.GETLINK, fields, [*attributes, WITHOUT_STATISTICS], thing=thing)
        is_here = all(name != "IFLA_IF_NETNSID" for name, _ in attributes)
        return read.link(message, self._cookie if is_here else None)

    async def _tag(self, index: int, name: str) -> str:
        """Gives a link that is here an alternative name that nobody else has, and returns it."""
        altname = _TAG + secrets.token_hex(8)
        properties = {"attrs": [("IFLA_ALT_IFNAME", altname)]}
        await self._ask(nl.NEWLINKPROP, {"index": index}, [("IFLA_PROP_LIST", properties)], thing=name)
        return altname

    async def _index(self, link: Any, argument: str = "link") -> int:
        reference = self._reference(link, argument)
        if isinstance(reference, int):
            return reference
        question = nl.payload(nl.GETLINK, {}, [*named(reference)[1], WITHOUT_STATISTICS])
        (frame,) = await self._rtnl.request(nl.GETLINK, 0, question, thing=reference)
        return nl.link_index(frame)


def named(reference: str | int) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """How a message says which link: by the index in its header, or by an attribute."""
    if isinstance(reference, int):
        return {"index": reference}, []
    return {}, [("IFLA_IFNAME", reference)]


def by_altname(altname: str, nsid: int | None = None) -> list[tuple[str, Any]]:
    """Which link, for a message that has no index."""
    found: list[tuple[str, Any]] = [("IFLA_ALT_IFNAME", altname)]
    return found if nsid is None else [*found, ("IFLA_IF_NETNSID", nsid)]


def shown(link: Any) -> str:
    """For an error's text."""
    if isinstance(link, Link):
        return link.name
    return f"link {link}" if isinstance(link, int) else str(link)
