"""``limits=`` and ``cgroup=`` for whoever runs the tests, on whatever machine: granted, refused with the reason, or
given up where that was allowed.
"""

from __future__ import annotations

import os

import pytest

import linx_trio as linx
from linx_trio.cgroup import Cgroup

EVERYTHING = linx.Limits(memory="256M", pids=64, cpu=0.5)


def is_explained(refusal: linx.SetupError) -> bool:
    return refusal.stage == "cgroup" and bool(refusal.filename and refusal.hint)


async def test_granted_or_refused_with_the_reason() -> None:
    refusal = None
    try:
        done = await linx.run(["true"], limits=EVERYTHING)
        assert done.usage is not None
        assert done.usage.oom_killed is False
    except linx.SetupError as exc:
        refusal = exc
    assert refusal is None or is_explained(refusal)


async def test_given_up_if_that_is_allowed() -> None:
    async with linx.spawn(["true"], limits=EVERYTHING, optional={"limits"}) as s:
        given_up = s.info().degraded == ("limits",)
        assert given_up == (s.cgroup is None)
        assert s.containment == ("subreaper" if given_up else "cgroup")
        await s.proceed()
        assert await s.wait() == linx.Exited(0)
        assert s.usage is not None
        assert s.usage.oom_killed == (None if given_up else False)


async def test_a_group_for_ones_own_or_the_reason_why_not() -> None:
    refusal = None
    try:
        async with Cgroup.create(f"linx-test-{os.getpid()}") as group:
            await linx.run(["true"], cgroup=group)
    except linx.SetupError as exc:
        refusal = exc
    assert refusal is None or is_explained(refusal)


@pytest.mark.parametrize("name", ["limits", "cgroup"])
def test_both_can_be_given_up(name: str) -> None:
    assert linx.Workload(["x"], optional={name}).optional == {name}
