"""What is tried with control groups (``cgroups(7)``), version 2. See `_probe_bench`.

Controllers are the one thing that is looked up rather than tried: enabling one changes the caller's own group, and
those of everybody in it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import AsyncIterator
from functools import partial

import trio

from linx_trio._cause_kernel import controller_missing, no_cgroup_v2, not_delegated
from linx_trio._probe_bench import Bench, Refused, Trial
from linx_trio.errors import Hint

GROUP = "cgroup v2"
CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
_numbers = itertools.count(1)
_ATTEMPTS = 200


def _own(bench: Bench) -> str:
    hint = no_cgroup_v2(bench.machine)
    if hint is not None:
        raise Refused(hint)
    return bench.machine.own_cgroup() or "/"


async def _there(bench: Bench) -> str:
    return _own(bench)


@contextlib.asynccontextmanager
async def _made(path: str) -> AsyncIterator[str]:
    """A cgroup that is removed again; its processes have been, by then."""
    try:
        os.mkdir(path)
    except OSError as exc:
        raise Refused(not_delegated(os.path.dirname(path), exc.errno or 0)) from None
    try:
        yield path
    finally:
        with trio.CancelScope(shield=True):
            await _remove(path)


async def _remove(path: str) -> None:
    """The kernel may take a moment to notice that the last process has gone."""
    for _ in range(_ATTEMPTS):
        try:
            os.rmdir(path)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            await trio.sleep(0.01)
        else:
            return
    raise Refused(Hint("cgroup-busy", f"{path} is not empty, and cannot be removed"))


async def _delegated(bench: Bench) -> str:
    own = _own(bench)
    name = f"linx-probe.{os.getpid()}.{next(_numbers)}"
    async with _made(os.path.join(own, name)) as path, bench.parked() as session:
        try:
            _move(session.host_pid, path)
        except OSError as exc:
            raise Refused(not_delegated(own, exc.errno or 0)) from None
    return own


def _move(pid: int, path: str) -> None:
    fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % pid)
    finally:
        os.close(fd)


async def _controller(name: str, bench: Bench) -> str:
    own = _own(bench)
    if name not in _words(own, "cgroup.controllers"):
        raise Refused(controller_missing(bench.machine, name))
    await bench.require("cgroup2:delegated")
    if name in _words(own, "cgroup.subtree_control"):
        return "enabled"
    return "there, and not enabled yet for the groups below this process' own"


def _words(directory: str, name: str) -> list[str]:
    with open(f"{directory}/{name}") as file:
        return file.read().split()


TRIALS = (
    Trial("cgroup2", GROUP, "it is mounted, and shows this process' own group", _there, needs=()),
    Trial(
        "cgroup2:delegated", GROUP, "groups can be made, and processes moved there", _delegated, ("spawn", "cgroup2")
    ),
    *(
        Trial(f"cgroup2:{name}", GROUP, f"the controller {name}", partial(_controller, name), ("cgroup2",))
        for name in CONTROLLERS
    ),
)
