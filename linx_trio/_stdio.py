"""fds 0, 1 and 2 of a workload, and what it is passed besides: made on this side, sent with the request.

Data and control never share a pipe. Whatever a stream is, the agent gets an fd and a number.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import trio

from linx_trio._checks import fileno_of
from linx_trio._fd import FdBag
from linx_trio._options import HasFileno, Stdio, StdioSpec
from linx_trio._workload import Workload
from linx_trio.errors import setup_error

STREAMS = ("stdin", "stdout", "stderr")


@dataclass(slots=True)
class Plan:
    """What travels (`fds`, each with its number in the workload), and this side's ends of the pipes by stream name.

    The pipes' ends are in the bag that `plan` was given, until `streams` takes them out.
    """

    fds: list[tuple[int, int]] = field(default_factory=list)
    ours: dict[str, int] = field(default_factory=dict)


def plan(workload: Workload, bag: FdBag) -> Plan:
    """Opens what has to be opened, into `bag`. Raises `SetupError` (stage ``stdio``) and `ValueError`."""
    made = Plan()
    for number, name in enumerate(STREAMS):  # before anything is opened that could get such a number
        if getattr(workload, name) is Stdio.INHERIT:
            _open_fd(number, name, "this process has it closed: pass linx.DEVNULL instead")
    stdout = -1
    for number, name in enumerate(STREAMS):
        spec = cast("StdioSpec", getattr(workload, name))
        if spec is Stdio.STDOUT:
            fd = stdout
        elif spec is Stdio.PIPE:
            read_end, write_end = bag.pipe()
            fd, made.ours[name] = (read_end, write_end) if number == 0 else (write_end, read_end)
        elif spec is Stdio.DEVNULL:
            fd = bag.open(os.devnull, os.O_RDWR)
        elif spec is Stdio.INHERIT:
            fd = number
        else:
            fd = _open_fd(fileno_of(spec, name), name, "that fd is not open")
        made.fds.append((fd, number))
        if number == 1:
            stdout = fd
    for item in cast("Sequence[int | HasFileno]", workload.pass_fds):
        fd = _open_fd(fileno_of(item, "pass_fds"), "pass_fds", "that fd is not open")
        made.fds.append((fd, fd))
    return made


def _open_fd(fd: int, name: str, hint: str) -> int:
    """`fd`, if it is open. The kernel would say EBADF for all the fds together, without saying which."""
    try:
        os.get_inheritable(fd)
    except OSError as exc:
        raise setup_error(exc.errno or errno.EBADF, "stdio", f"{name} (fd {fd})", hint) from None
    return fd


def streams(made: Plan, bag: FdBag) -> dict[str, trio.lowlevel.FdStream]:
    """This side's pipe ends as trio streams, which own them from now on."""
    return {name: trio.lowlevel.FdStream(bag.take(fd)) for name, fd in made.ours.items()}
