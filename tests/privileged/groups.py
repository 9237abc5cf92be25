"""The cgroup hierarchy as the tests find it, and leave it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from linx_trio import _cgroup_files as files
from linx_trio.cgroup import Cgroup
from tests.support import eventually

MOUNTS = files.mounted()


def writable() -> bool:
    """Whether groups can be made at the top."""
    return bool(MOUNTS) and os.access(MOUNTS[0], os.W_OK)


needs_v2 = pytest.mark.skipif(not writable(), reason="needs root, and a cgroup v2 hierarchy that can be written to")


def is_there(path: str) -> bool:
    return os.path.isdir(path)


def groups() -> set[str]:
    """All that there are."""
    return {directory for mount in MOUNTS for directory, _, _ in os.walk(mount)}


def subtree_control(path: str) -> set[str]:
    return set(Path(path, "cgroup.subtree_control").read_text().split())


@pytest.fixture
def as_before(nothing_is_left: str) -> Iterator[None]:
    """Fails a test that leaves a group behind; switches off what controllers it has switched on at the top."""
    before, enabled = groups(), subtree_control(MOUNTS[0])
    yield
    try:
        eventually(lambda: groups() <= before, "no group is left", 20)
    finally:
        for path in sorted(groups() - before, reverse=True):  # the next test has a right to a fresh start
            with contextlib.suppress(OSError), Cgroup.open(path) as left:
                left.destroy()
        for name in subtree_control(MOUNTS[0]) - enabled:
            Path(MOUNTS[0], "cgroup.subtree_control").write_text(f"-{name}")
