"""Kinds of links that a kernel may lack: they work, or the error says what is missing."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from tests.agent.networks import network

KINDS: dict[str, dict[str, Any]] = {
    "dummy": {},
    "vlan": {"parent": "base", "id": 7},
    "ipvlan": {"parent": "base", "mode": "l2"},
    "ifb": {},
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_kind_that_may_be_missing(kind: str) -> None:
    async with network() as (_s, net):
        await net.create_veth("base", "far")
        for end in ("base", "far"):
            await net.set_up(end)
        link, lacking = None, OSError()
        try:
            link = await net.create("made", kind, **KINDS[kind])
        except OSError as exc:
            lacking = exc
        if link is None:
            assert not os.environ.get("LINX_VM"), "the guest's kernel has it"
            assert lacking.errno == errno.EOPNOTSUPP
            assert any(kind in note for note in lacking.__notes__), "it says what is missing"
            return
        assert (link.name, link.kind) == ("made", kind)
        assert "made" in {each.name for each in await net.links()}
        await net.set_up("made")
        await net.delete("made")
        assert "made" not in {each.name for each in await net.links()}
