"""What is there is looked for and not made: a file system that takes no writes for now holds nobody up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.probes import ROOT, needs_root

FROZEN = """
import os, subprocess, sys
from pathlib import Path
import trio
import linx_trio as linx
from linx_trio.mount import Bind, Dir, Tmpfs

image, place = map(Path, sys.argv[1:])

def call(*argv):
    subprocess.run(argv, check=True)

async def main():
    directory, file = str(place / "directory"), str(place / "file")
    with trio.fail_after(60):
        for entry in (Tmpfs(directory), Bind("/usr", directory), Bind(os.devnull, file), Dir(directory)):
            await linx.run(["true"], namespaces={"mount"}, mounts=[entry])
            print(type(entry).__name__, flush=True)

call("mount", "-o", "loop", str(image), str(place))
try:
    (place / "directory").mkdir()
    (place / "file").touch()
    call("fsfreeze", "--freeze", str(place))
    try:
        trio.run(main)
    finally:
        call("fsfreeze", "--unfreeze", str(place))
finally:
    call("umount", str(place))
"""
"""In a mount namespace of its own: nobody else sees what it mounts."""


@needs_root
def test_a_frozen_file_system_is_no_hindrance(tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", FROZEN, str(image), str(place)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    if "loop device" in done.stderr:
        pytest.skip(f"needs a loop device: {done.stderr!r}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Tmpfs", "Bind", "Bind", "Dir"]
