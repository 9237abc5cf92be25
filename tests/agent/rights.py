"""Where the rights for fresh namespaces come from: a user namespace of one's own, or being root."""

from __future__ import annotations

import os
from typing import Any

import pytest

import linx_trio as linx
from tests.agent.probes import needs_root

Options = dict[str, Any]


def rootless(*kinds: str) -> Options:
    """Options for fresh namespaces as anybody may have them: with a root inside, who is the caller outside."""
    return {"namespaces": {"user", *kinds}, "user": linx.user.root_map()}


def as_root(*kinds: str) -> Options:
    """The same as root has them."""
    return {"namespaces": set(kinds)}


in_both_ways = pytest.mark.parametrize(
    "rights", [pytest.param(rootless, id="rootless"), pytest.param(as_root, id="root", marks=needs_root)]
)
"""Tests with the argument `rights` are run as root too, where that is what runs them."""


def caps_line(pid: int | str, name: str = "CapEff") -> int:
    """One of the masks in ``/proc/<pid>/status``."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith(f"{name}:")).split()[1], 16)


async def output_of(argv: list[str], **options: Any) -> bytes:
    """What it writes, with a status that may be any."""
    done = await linx.run(argv, capture_stdout=True, check=False, **options)
    assert isinstance(done.outcome, linx.Exited), (done.outcome, done.stdout)
    assert done.stdout is not None
    return done.stdout


AFFINITY = min(os.sched_getaffinity(0))
"""A CPU that we may run on."""
