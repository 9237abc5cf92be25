"""The zygote: found, started, greeted, replaced.

One per Python process, shared by all threads and all `trio.run` calls. It is started at the first spawn, in the
calling thread, because it inherits that thread's ids and namespaces; and again when they have changed
(`Caller.identity`) or when it has died. Sessions that it started live on without it.

Whoever has spawned will spawn again: a monitor whose session has ended in the ordinary way is kept, as a *spare*, for
the next request, so that nobody waits for one to end, and for the zygote to wake up and fork another. It is this
process' as a session's monitor is: it ends when its socket is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import functools
import itertools
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import trio

from linx_trio._build_id import source_hash
from linx_trio._caller import Caller, environment
from linx_trio._cause_programs import REINSTALL, agent_refused
from linx_trio._channel import Channel, are_silent
from linx_trio._fd import after_fork, socket_pair
from linx_trio._hints import hint_for
from linx_trio._machine import Machine
from linx_trio._options import RLIMITS
from linx_trio._patience import congested
from linx_trio._proto import messages as m
from linx_trio._version import __version__
from linx_trio.errors import AgentError, NotSupported, setup_error

OVERRIDE = "LINX_TRIO_AGENT"
"""The environment variable that names another agent."""

_GREETING_SECONDS = 20.0
_ATTEMPTS = 4
_MINIMUM_KERNEL = (5, 11)


def agent_path() -> Path:
    """The agent's program: the package's own, unless ``LINX_TRIO_AGENT`` names another. Never from ``PATH``."""
    override = os.environ.get(OVERRIDE)
    return Path(override) if override else Path(__file__).parent / "_bin" / "linx-agent"


SPARE = "linx-spare"
"""The name of a monitor that has no session yet."""

_ORDER = struct.Struct("=QQ")  # agent_c/zygote.c, struct order
_ORDER_START, _ORDER_KILL = 1, 2


class _KilledEarly(AgentError):
    """No fault of the installation: the next one gets its chance."""


class Zygote:
    """A running zygote. `baseline` is the caller as it was when it started."""

    def __init__(self, path: Path, baseline: Caller) -> None:
        self.path = path
        self.baseline = _with_all_files(baseline)
        self.greeted = False
        self._fault: AgentError | NotSupported | None = None
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False
        self._spares: list[Channel] = []
        self.control, theirs = socket_pair(socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.pid = _spawn(path, theirs.fileno())
            except BaseException:
                self.control.close()
                raise
        self.control.setblocking(False)
        after_fork(self)

    def wait_greeting(self) -> None:
        """Blocks until the zygote has said who it is. Raises `AgentError` or `NotSupported`, to all who wait."""
        with self._lock:
            if self._fault is not None:
                raise self._fault
            if not self.greeted:
                try:
                    self._check_greeting(self._hear_greeting())
                except (AgentError, NotSupported) as exc:
                    self._fault = exc
                    raise
                self.greeted = True

    def _hear_greeting(self) -> bytes:
        spoke = select.poll()  # not select(): the fd may be above 1023
        spoke.register(self.control, select.POLLIN)
        if not spoke.poll(_GREETING_SECONDS * 1000):
            self.kill()
            why = f"said nothing in {_GREETING_SECONDS:.0f} s"
            raise AgentError(f"the agent {self.path} {why}; {REINSTALL}", self.path)
        try:
            return self.control.recv(4096)
        except OSError:
            return b""

    def _check_greeting(self, payload: bytes) -> None:
        if not payload:
            status = self._end()
            if status is not None and status < 0:
                raise _KilledEarly(f"the agent {self.path} was killed as soon as it was started", self.path)
            if not os.access(os.devnull, os.R_OK | os.W_OK):
                raise NotSupported("spawning", f"the agent needs {os.devnull}, to read from and to write to")
            raise AgentError(
                f"the agent {self.path} ended (status {status}) without a word: it is no linx-agent, "
                f"or one of another version; {REINSTALL}",
                self.path,
            )
        try:
            hello = m.parse_hello(payload)
        except m.Nonsense as exc:
            self.kill()
            raise AgentError(f"{exc}; the agent is {self.path}; {REINSTALL}", exc.term) from None
        problem = _mismatch(hello)
        if problem is not None:
            self.kill()
            raise AgentError(f"the agent {self.path} {problem}; {REINSTALL}", self.path)
        if not hello.supported:
            self.kill()
            raise NotSupported(
                "guaranteed clean-up",
                "the agent finds its children in /proc/self/task/*/children: /proc must be mounted for this PID "
                "namespace, and the kernel built with CONFIG_PROC_CHILDREN",
            )

    def take_spare(self) -> Channel | None:
        """The channel of a monitor that waits for its request, the caller's from now on; `None` if there is none."""
        while True:
            with _lock:
                spare = self._spares.pop() if self._spares else None
            if spare is None or spare.is_silent(self.control):
                return spare
            spare.close()  # somebody has killed it, or us

    def keep(self, channel: Channel) -> None:
        """Takes over the channel of a monitor that waits for another request: it is a spare, if one more is wanted."""
        with _lock:
            wanted = not self._retired and len(self._spares) < _KEPT_SPARES
            if wanted and channel.is_sent and are_silent(self.control):
                self._spares.append(channel)
                return
        channel.close()

    def hand_over(self, session: socket.socket, number: int) -> None:
        """Has a monitor started for `session`, to be known by `number`. Raises `BlockingIOError` when too many wait,
        `BrokenPipeError` when it is dead.
        """
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, session.fileno().to_bytes(4, sys.byteorder))
        self.control.sendmsg([_ORDER.pack(number, _ORDER_START)], [rights])

    def kill_monitor(self, number: int) -> None:
        """Has that session's monitor killed; what it was guarding is then killed by the zygote. Does nothing if it
        is gone.
        """
        with contextlib.suppress(OSError):
            self.control.send(_ORDER.pack(number, _ORDER_KILL))

    def _end(self) -> int | None:
        """Its exit status, now that its socket is closed; SIGKILL if it does not end all the same."""
        with contextlib.suppress(ChildProcessError):
            for _ in range(200):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.control.close()
                    self.pid = 0
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.005)
        return self.kill()

    def kill(self) -> int | None:
        """SIGKILL, reap, close. Returns the exit status as `subprocess` has it, where it can be known."""
        self.close()
        pid, self.pid = self.pid, 0  # its number is somebody else's, once it is reaped
        if pid == 0:
            return None
        try:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            return None

    # The three that follow are called with `_lock` held.

    def use(self) -> Zygote:
        """Keeps it from being closed until `unuse`: other threads may retire it meanwhile."""
        self._users += 1
        return self

    def unuse(self) -> None:
        self._users -= 1
        self._close_if_idle()

    def retire(self) -> None:
        """Lets it end by itself, after its last session, and after those who are about to hand it one."""
        if not self._retired:
            self._retired = True
            if self.pid:
                _retired.append(self.pid)
            self._close_spares()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._retired and self._users == 0:
            self.close()

    def close(self) -> None:
        """Lets it end, after its last session."""
        self.control.close()
        self._close_spares()

    def _close_spares(self) -> None:
        while self._spares:
            self._spares.pop().close()

    def filenos(self) -> set[int]:
        """The fds that are open for its sake, and for its spares'."""
        return {self.control.fileno(), *(spare.fileno() for spare in self._spares)}

    def close_after_fork(self) -> None:
        self.control.close()


def _with_all_files(caller: Caller) -> Caller:
    """The zygote raises its soft limit of open files to the hard one: it keeps an fd for each live session."""
    limits = list(caller.limits)
    limits[RLIMITS["nofile"]] = (limits[RLIMITS["nofile"]][1],) * 2
    return dataclasses.replace(caller, limits=tuple(limits))


def _mismatch(hello: m.Hello) -> str | None:
    version, built = hello.version.decode(), hello.source_hash.decode()
    if version != __version__:
        return f"is of version {version}, the package of {__version__}"
    sources = Path(__file__).parent.parent / "agent_c"
    if OVERRIDE not in os.environ and sources.is_dir() and built != source_hash(sources):
        return "is stale: its sources have changed since it was built"
    return None


def _spawn(path: Path, control: int) -> int:
    """Starts the agent. `os.posix_spawn` does not fork this process' memory, and does not depend on other threads."""
    environment = {name: os.environ[name] for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS") if name in os.environ}
    try:
        return os.posix_spawn(
            path,
            ["linx-agent", "--zygote", "3"],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, control, 3)],
            setsigmask=signal.valid_signals(),  # a ^C before it has blocked them itself would end it
        )
    except OSError as exc:
        raise _cannot_start(path, exc) from None


def _cannot_start(path: Path, exc: OSError) -> Exception:
    source = f" (it was named by {OVERRIDE})" if OVERRIDE in os.environ else ""
    cause = agent_refused(str(path), exc.errno or 0, source, Machine())
    if cause is not None:
        return AgentError(cause, path)
    match exc.errno:
        case errno.ENOENT:
            why = "is missing"
        case errno.EACCES:
            why = "may not be executed"
        case errno.ENOEXEC:
            why = "is no program for this machine"
        case errno.EAGAIN | errno.ENOMEM | errno.EMFILE | errno.ENFILE as number:
            return setup_error(number, "fork", str(path), hint_for("fork", number))
        case _:
            why = f"cannot be started: {exc.strerror}"
    return AgentError(f"the agent {path} {why}{source}; {REINSTALL}", path)


@functools.cache
def check_platform() -> None:
    """Raises `NotSupported` where nothing can be spawned."""
    if sys.platform != "linux":
        raise NotSupported("spawning", f"it needs Linux, and this is {sys.platform}")
    release = os.uname().release
    numbers = tuple(int(part) if part.isdigit() else 0 for part in release.split("-")[0].split(".")[:2])
    if numbers < _MINIMUM_KERNEL:
        raise NotSupported("spawning", f"it needs Linux 5.11, and this is {release}")


_KEPT = 4
"""Zygotes that are kept for callers of different identities, such as threads in network namespaces of their own."""

_KEPT_SPARES = 8
"""Each is a process of some 100 kB. More are only wanted by who runs more than that at the same time, all the time."""

_lock = threading.Lock()
_zygotes: dict[tuple[object, ...], Zygote] = {}  # the least recently used first
_retired: list[int] = []


def _reap(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    return True


def _reap_retired() -> None:
    _retired[:] = [pid for pid in _retired if not _reap(pid)]


def reap() -> None:
    """Reaps zygotes that have ended; otherwise that waits for the next one to be started."""
    with _lock:
        _reap_retired()


def _start(caller: Caller) -> Zygote:
    """The zygote of the caller's identity, in use; a new one if there is none."""
    key = (environment().get(OVERRIDE.encode()), *caller.identity)
    with _lock:
        zygote = _zygotes.pop(key, None)
        if zygote is None:
            _reap_retired()
            zygote = Zygote(agent_path(), caller)
        _zygotes[key] = zygote
        while len(_zygotes) > _KEPT:
            _zygotes.pop(next(iter(_zygotes))).retire()
        return zygote.use()


def discard(zygote: Zygote) -> None:
    """Makes the next `acquire` start another one: this one is dead, or no good."""
    with _lock:
        for key in [key for key, kept in _zygotes.items() if kept is zygote]:
            del _zygotes[key]
        zygote.retire()


async def acquire(caller: Caller) -> Zygote:
    """A zygote that is what the caller is, until `release`.

    Raises `AgentError`, `NotSupported`, or `SetupError` (stage ``fork``). Cancellation leaves it running, for the next.
    """
    for attempt in itertools.count(1):
        zygote = _start(caller)
        if zygote.greeted:
            return zygote
        try:
            await trio.to_thread.run_sync(zygote.wait_greeting, abandon_on_cancel=True)
            return zygote
        except BaseException as exc:
            if isinstance(exc, (AgentError, NotSupported)):
                discard(zygote)
            release(zygote)
            if not isinstance(exc, _KilledEarly) or attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


class Gone(Exception):
    """The zygote has died; it will not be acquired again."""


async def hand_over(zygote: Zygote, channel: Channel) -> None:
    """Has a monitor started for `channel`, and closes its far side here. Raises `Gone`, `SetupError`, `OSError`."""
    try:
        await congested(lambda: zygote.hand_over(channel.peer, channel.number))
    except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
        discard(zygote)
        raise Gone from None
    channel.peer.close()


def release(zygote: Zygote) -> None:
    """Ends what `acquire` began."""
    with _lock:
        zygote.unuse()


def current() -> list[Zygote]:
    """The zygotes that wait for sessions, the one used last at the end."""
    with _lock:
        return list(_zygotes.values())


def kept_fds() -> set[int]:
    """This process' fds that stay open between sessions."""
    return {fd for zygote in current() for fd in zygote.filenos()}


@atexit.register
def _close_at_exit() -> None:
    """The end of the process would do; this spares the interpreter a warning about open sockets."""
    for zygote in _zygotes.values():
        zygote.close()


def _forget_after_fork() -> None:
    """A forked child shares its parent's zygotes with nobody: it starts its own."""
    global _lock
    _zygotes.clear()
    _lock = threading.Lock()
    _retired.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
