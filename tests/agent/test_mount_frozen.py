"""What is there is looked for and not made: a file system that takes no writes for now holds nobody up."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import linx_trio as linx
from linx_trio.mount import Bind, Dir, Entry, Tmpfs
from tests.agent.probes import needs_root
from tests.support import DEADLINE


def call(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A file system with a directory and a file in it, frozen (``fsfreeze(8)``)."""
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    call("mkfs.ext4", "-q", str(image))
    with contextlib.ExitStack() as undo:
        try:
            call("mount", "-o", "loop", str(image), str(place))
        except subprocess.CalledProcessError as exc:
            pytest.skip(f"needs a loop device: {exc.stderr!r}")
        undo.callback(call, "umount", str(place))
        (place / "directory").mkdir()
        (place / "file").touch()
        call("fsfreeze", "--freeze", str(place))
        undo.callback(call, "fsfreeze", "--unfreeze", str(place))
        yield place


@needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "bind", "bind file", "dir"])
async def test_a_frozen_file_system_is_no_hindrance(frozen: Path, kind: str) -> None:
    there = frozen / ("file" if kind == "bind file" else "directory")
    entries: dict[str, Entry] = {
        "tmpfs": Tmpfs(str(there)),
        "bind": Bind("/usr", str(there)),
        "bind file": Bind(os.devnull, str(there)),
        "dir": Dir(str(there)),
    }
    with trio.fail_after(DEADLINE):
        assert (await linx.run(["true"], namespaces={"mount"}, mounts=[entries[kind]])).returncode == 0
