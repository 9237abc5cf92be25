"""The end of a cgroup: all that lives in it killed, and its directory removed, with those below it."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

from linx_trio import _cgroup_files as files
from linx_trio._cgroup_stats import flat


def remove(place: files.Place, parent: int, seconds: float) -> None:
    """Kills and removes it; blocks for so long. Raises `SetupError`."""
    name = os.path.basename(place.path)
    until = time.monotonic() + seconds
    while True:
        with suppress(OSError):  # it has been removed, or may be removed and not killed
            kill(place)
        try:
            return files.remove(parent, name)
        except OSError as exc:
            left = until - time.monotonic()
            if exc.errno != errno.EBUSY or left <= 0:
                raise files.refused(exc.errno, place.path, None) from None
            _sleep_until_empty(place.fd, left)


def _sleep_until_empty(directory: int, seconds: float) -> None:
    """Or a moment, where the group is empty and busy nevertheless; or a second, before the next try."""
    with suppress(OSError):  # it has been removed
        fd = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            populated = flat(os.read(fd, 4096)).get("populated", 0)
            watch = select.poll()
            watch.register(fd, select.POLLPRI)
            watch.poll(min(seconds, 1.0) * 1000 if populated else 1)
        finally:
            os.close(fd)


def kill(place: files.Place) -> None:
    """SIGKILL to all that lives in it and below it. Raises `SetupError`."""
    try:
        files.write(place, "cgroup.kill", b"1")
    except FileNotFoundError:
        if files.read(place.fd, "cgroup.procs") is None:
            return  # it has been removed
        _kill_one_by_one(place)


def _kill_one_by_one(place: files.Place) -> None:
    """Frozen, nobody forks or ends, and the numbers stay theirs. Until it is complete somebody may: hence rounds."""
    files.write(place, "cgroup.freeze", b"1")
    try:
        for _ in range(100):
            alive = [pid for pid in _members_below(place.fd) if pid > 0 and _kill_process(pid)]
            if not alive:
                break
            time.sleep(0.001)
    finally:
        files.write(place, "cgroup.freeze", b"0")


def _kill_process(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def _members_below(directory: int) -> Iterator[int]:
    yield from files.members(directory)
    for name in files.children(directory):
        with suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                yield from _members_below(fd)
            finally:
                os.close(fd)
