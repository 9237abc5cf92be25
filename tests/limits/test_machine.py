"""The machine that tests of limits need: a hierarchy of cgroup v2 that has the controllers. `make test-vm` is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CONTROLLERS = Path("/sys/fs/cgroup/cgroup.controllers")


def test_the_controllers_are_on_cgroup_v2() -> None:
    there = CONTROLLERS.read_text().split() if CONTROLLERS.exists() else []
    if not os.environ.get("LINX_VM") and not {"memory", "pids"} <= set(there):
        pytest.skip("needs a pure cgroup v2 hierarchy with memory and pids controllers")
    assert {"cpu", "memory", "pids"} <= set(there)
