"""fds 0, 1 and 2 of a workload, and what it is passed besides: made on this side, sent with the request.

Data and control never share a pipe. Whatever a stream is, the agent gets an fd and a number.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field
from typing import Any, cast

import trio

from linx_trio import _pty
from linx_trio._checks import fileno_of
from linx_trio._fd import FdBag
from linx_trio._hints import hint_for
from linx_trio._options import ConnectUnix, Pty, Stdio, StdioSpec, WindowSize
from linx_trio._workload import Workload
from linx_trio.errors import setup_error

STREAMS = ("stdin", "stdout", "stderr")


@dataclass(slots=True)
class Plan:
    """What travels (`fds`, each with its number in the workload), which numbers are to be ``/dev/null`` (which the
    agent opens), this side's ends of the pipes by stream name, and this side's end of the terminal with its name.

    These ends are in the bag that `plan` was given, until `streams` and `terminal` take them out.
    """

    fds: list[tuple[int, int]] = field(default_factory=list)
    nulls: list[int] = field(default_factory=list)
    ours: dict[str, int] = field(default_factory=dict)
    master: int = -1
    terminal: str | None = None


async def plan(workload: Workload, bag: FdBag) -> Plan:
    """Opens what has to be opened, into `bag`. Raises `SetupError` (stages ``stdio``, ``connect_unix``) and
    `ValueError`. Waits only for listeners whose backlog is full; cancelled there, nothing remains.
    """
    made = Plan()
    if isinstance(workload.stdio, Pty):
        _plan_terminal(workload.stdio, made, bag)
    else:
        await _plan_streams(workload, made, bag)
    for item in workload.pass_fds:
        fd = _open_fd(fileno_of(item, "pass_fds"), "pass_fds", "that fd is not open")
        made.fds.append((fd, fd))
    return made


def _plan_terminal(pty: Pty, made: Plan, bag: FdBag) -> None:
    made.master, slave = _pty.open_pair(bag, WindowSize(pty.rows, pty.cols))
    made.terminal = _pty.name_of(made.master)
    made.fds += [(slave, number) for number in range(len(STREAMS))]


async def _plan_streams(workload: Workload, made: Plan, bag: FdBag) -> None:
    specs: tuple[Any, ...] = (workload.stdin, workload.stdout, workload.stderr)
    inherited = [number for number, spec in enumerate(specs) if spec is Stdio.INHERIT]
    for number in inherited:  # before anything is opened that could get such a number
        made.fds.append((_open_fd(number, STREAMS[number], _CLOSED_HINT), number))
    for number, spec in enumerate(specs):
        if spec is Stdio.INHERIT:
            continue
        if spec is Stdio.DEVNULL:
            made.nulls.append(number)
        elif spec is Stdio.STDOUT:
            made.fds += [(fd, number) for fd, other in made.fds if other == 1]
            made.nulls += [number for other in made.nulls if other == 1]
        else:
            made.fds.append((await _plan_stream(number, spec, made, bag), number))


_CLOSED_HINT = "this process has it closed: pass linx.DEVNULL instead"


async def _plan_stream(number: int, spec: StdioSpec, made: Plan, bag: FdBag) -> int:
    name = STREAMS[number]
    if spec is Stdio.PIPE:
        read_end, write_end = bag.pipe()
        theirs, made.ours[name] = (read_end, write_end) if number == 0 else (write_end, read_end)
        return theirs
    if isinstance(spec, ConnectUnix):
        return await _connect(cast("str", spec.path), bag)
    return _open_fd(fileno_of(spec, name), name, "that fd is not open")


_SUN_PATH = 108
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


async def _connect(path: str, bag: FdBag) -> int:
    """A blocking socket, connected to `path`. The kernel tells nobody when a full backlog has room again (connect(2)
    says EAGAIN, and poll(2) nothing), so that is asked for again and again.
    """
    address = os.fsencode(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        pause = _FIRST_PAUSE
        while True:
            try:
                if len(address) > _SUN_PATH - (not address.startswith(b"\0")):
                    raise OSError(errno.ENAMETOOLONG, "")
                connection.connect(address)
                break
            except BlockingIOError:
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except OSError as exc:
                number = exc.errno or errno.EIO
                raise setup_error(number, "connect_unix", path, hint_for("connect_unix", number)) from None
        connection.setblocking(True)  # for the workload: it is the same open file
        return bag.adopt(connection.detach())


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


def terminal(made: Plan, bag: FdBag) -> _pty.PtyStream | None:
    """This side of the terminal as a stream, which owns it from now on; `None` where there is none."""
    return _pty.PtyStream(bag.take(made.master)) if made.master >= 0 else None
