"""What the tests of real limits need, and what they share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from linx_trio import _cgroup_files as files

REASON = "needs a pure cgroup v2 hierarchy with memory and pids controllers, and root"


def _top() -> str | None:
    for mount in files.mounted():
        if {"memory", "pids", "cpu"} <= set(Path(mount, "cgroup.controllers").read_text().split()):
            return mount
    return None


TOP = _top()
needs_controllers = pytest.mark.skipif(TOP is None or os.geteuid() != 0, reason=REASON)
SECONDS = 60.0
"""For anything here: in an emulated machine all is ten times slower."""


def own_groups() -> list[str]:
    """The groups that sessions of this machine have now."""
    return [
        os.path.join(path, name)
        for mount in files.mounted()
        for path, names, _ in os.walk(mount)
        for name in names
        if name.startswith("linx")
    ]
