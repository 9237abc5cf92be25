"""The public ways to start something: `spawn`, `run`, `run_sync`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast

import trio

from linx_trio._events import Outcome, Usage
from linx_trio._manager import SessionManager
from linx_trio._options import (
    DEVNULL,
    INHERIT,
    PIPE,
    Argument,
    EnteringOptions,
    EnterOptions,
    HasFileno,
    Namespace,
    Options,
    Pty,
    RunOptions,
    SandboxOptions,
    StdioSpec,
)
from linx_trio._session import Session
from linx_trio._target import Target, as_entering, check_joins_all, check_target, check_unshare
from linx_trio._workload import Workload, as_variant, as_workload
from linx_trio.errors import CalledProcessError, LinxError

if sys.platform != "win32":  # the package can be imported there all the same
    import fcntl
    import termios

if TYPE_CHECKING:
    from typing import Unpack

__all__ = ["Completed", "enter", "run", "run_sync", "sandbox", "sandboxed", "spawn"]

CANCEL_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL when `run` is cancelled, as in `trio.run_process`."""

CANCEL_POLL = 0.05
"""Seconds between two looks at what `run_sync` was given as ``cancel``."""


class Completed(subprocess.CompletedProcess[bytes]):
    """What `run` returns: a `subprocess.CompletedProcess` that knows more.

    Attributes:
        outcome: `Exited`, `Signaled` or `Aborted`.
        usage: what the workload used.
        truncated: whether captured output was cut at ``max_output``.
    """

    outcome: Outcome
    usage: Usage | None
    truncated: bool

    def check_returncode(self) -> None:
        """Raises `CalledProcessError` unless the workload exited with status 0."""
        if self.returncode != 0:
            raise CalledProcessError(
                self.returncode,
                self.args,
                self.stdout,
                self.stderr,
                outcome=self.outcome,
                usage=self.usage,
                truncated=self.truncated,
            )


def spawn(
    argv_or_workload: Sequence[Argument] | Workload, *, wait_ready: bool = True, **options: Unpack[Options]
) -> AbstractAsyncContextManager[Session]:
    """Starts a workload and parks it between ``clone(2)`` and ``execve(2)``::

        async with linx.spawn(["/bin/sleep", "60"], namespaces={"net", "uts"}) as s:
            ...  # host-side work on s.host_pid: the workload exists, none of it has run
            await s.proceed()
            outcome = await s.wait()

    When the block is left, in whatever way, no process of the session is alive or a zombie: a parked workload is
    aborted, a running one ended as ``shutdown`` says, and all its descendants are killed and reaped. That is
    shielded from cancellation and bounded in time; an exception of the body comes out as itself.

    Args:
        argv_or_workload: the program and its arguments, or a `Workload`.
        wait_ready: entering waits until the workload is parked (with ``auto_proceed``: until it runs). `False`: it
            returns at once, in state ``"starting"`` or later, and what goes wrong is raised by `Session.wait`.
        options: see `Workload`.

    Raises:
        TypeError, ValueError: by the call itself, for wrong arguments.
        SetupError, AgentError, NotSupported: on entering.
    """
    return SessionManager(as_workload(argv_or_workload, options), wait_ready=wait_ready)


def enter(
    target: int | HasFileno | Session | str | bytes | os.PathLike[Any],
    argv_or_workload: Sequence[Argument] | Workload,
    *,
    namespaces: Iterable[str | Namespace] | None = None,
    unshare: Iterable[str | Namespace] = (),
    join_cgroup: bool = True,
    wait_ready: bool = True,
    **options: Unpack[EnterOptions],
) -> AbstractAsyncContextManager[Session]:
    """Starts a workload inside the namespaces of a running process, as ``nsenter(1)`` or ``docker exec`` do, and parks
    it at the same checkpoint as `spawn` does. It lives and dies with its own block, and leaves the target alone::

        async with linx.enter(container, ["/bin/sh", "-c", "ip addr"], namespaces={"net"}) as probe:
            await probe.proceed()
            await probe.wait()

    Namespaces that are the caller's own already are skipped; so is, silently, a kind that this kernel lacks, unless it
    is asked for. With another user namespace the workload is root there (where there is a root), or what ``uid`` and
    ``gid`` say, in that namespace's numbers. With another mount namespace it starts in its root directory, unless
    ``cwd`` says otherwise. Environment, umask, limits and nice are the caller's, as with `spawn`.

    Args:
        target: a pid as this process sees it, a pidfd object, a `Session`, or a path like ``/proc/<pid>``.
        argv_or_workload: the program and its arguments, looked up inside; or a `Workload`, whose ``namespaces``, if it
            has any, are those to join.
        namespaces: the kinds to join; `None`: all.
        unshare: kinds that the workload has fresh, once it has joined the others: ``mount uts ipc cgroup net``
            (``unshare(2)``).
        join_cgroup: the workload is also put into the target's cgroup (v2), from its first moment on; unless ``cgroup``
            or ``limits`` say where else.
        wait_ready: as with `spawn`.
        options: see `Workload`; names, ``sysctls``, ``root`` and ``mounts`` are for namespaces of `unshare`, the others
            being the target's.

    Raises:
        TypeError, ValueError: by the call itself, for wrong arguments.
        SetupError: on entering. No such target: ENOENT at stage ``open_ns_user``; a namespace that may not be opened or
            joined: stage ``open_ns_<kind>`` or ``setns_<kind>``; its cgroup may not be joined: stage ``cgroup``.
        NotReady, NoProcess: the target is a session without a process, yet or any more.
        AgentError, NotSupported: on entering.
    """
    fresh = check_unshare(unshare)
    base = argv_or_workload if isinstance(argv_or_workload, Workload) else None
    if namespaces is None and base is not None and base.namespaces:
        namespaces = base.namespaces
    workload = as_entering(argv_or_workload, cast("Mapping[str, Any]", options), fresh)
    checked = check_target(target, namespaces, join_cgroup)
    return SessionManager(workload, wait_ready=wait_ready, target=checked)


def sandbox(
    argv: Sequence[Argument],
    *,
    readonly: Iterable[Argument] | None = None,
    writable: Iterable[Argument] = (),
    network: bool = False,
    wait_ready: bool = True,
    **options: Unpack[SandboxOptions],
) -> AbstractAsyncContextManager[Session]:
    """`spawn` with all that keeps code in that nobody has read, for root and for anybody else::

        async with linx.sandbox(["python3", "-c", code], stdout=linx.PIPE, auto_proceed=True) as s:
            ...

    It has user, pid, mount, ipc, uts, net and cgroup namespaces of its own; of the host's files it sees `readonly` and
    `writable`, and besides a ``/tmp``, ``/dev`` and ``/proc`` of its own; it has no capabilities, no way to get any, no
    nested user namespace, and the system calls that `linx_trio.seccomp.default` allows. Whatever cannot be granted
    is refused: nothing is left out silently. `sandboxed` is the same as a `Workload`, for `run`.

    Args:
        argv: the program and its arguments, looked up inside.
        readonly: what of the host is seen; by default ``/usr`` and what of ``/etc`` programs need to start.
        writable: what of the host can be written to. Of what is below each other in both lists, the inner path counts.
        network: whether it is in the host's network namespace.
        wait_ready: as with `spawn`.
        options: of `Workload`, see `sandboxed`.

    Raises as `spawn`, and `NotSupported` without the extra ``seccomp``.
    """
    return SessionManager(_sandboxed(argv, readonly, writable, network, options), wait_ready=wait_ready)


def sandboxed(
    argv: Sequence[Argument],
    *,
    readonly: Iterable[Argument] | None = None,
    writable: Iterable[Argument] = (),
    network: bool = False,
    **options: Unpack[SandboxOptions],
) -> Workload:
    """The `Workload` that `sandbox` spawns, for `run` and `run_sync`, and to look at.

    ``mounts`` come in addition to its own, ``env`` (by default PATH, HOME and LANG, nothing of the caller's), ``cwd``
    (``/tmp``) and the other options instead of them.

    Raises `TypeError` or `ValueError`, naming the argument and the value; `NotSupported` without the extra ``seccomp``.
    """
    return _sandboxed(argv, readonly, writable, network, options)


def _sandboxed(argv: Any, readonly: Any, writable: Any, network: Any, options: Mapping[str, Any]) -> Workload:
    from linx_trio import _sandbox  # with all that it needs, it is as large as the rest

    shown = _sandbox.READONLY if readonly is None else readonly
    return _sandbox.sandboxed(argv, readonly=shown, writable=writable, network=network, **options)


async def run(
    argv_or_workload: Sequence[Argument] | Workload,
    *,
    stdin: bytes | bytearray | memoryview | StdioSpec = b"",
    capture_stdout: bool = False,
    capture_stderr: bool = False,
    check: bool = True,
    max_output: int | None = None,
    deliver_cancel: Callable[[Session], Awaitable[object]] | None = None,
    task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
    **options: Unpack[RunOptions],
) -> Completed:
    """Runs a workload to its end: the shape of `trio.run_process`, also for ``await nursery.start(linx.run, argv)``,
    which hands back the running `Session`; what is ``PIPE`` or a terminal then is the caller's to close, and can be
    read to its end after the workload's.

    Captured output ends when the workload ends, even if something that it left behind still holds the pipe; what was
    written before is never lost. When it has ended, all that it left behind is killed and reaped.

    Args:
        argv_or_workload: the program and its arguments, or a `Workload`.
        stdin: bytes to feed (by default none: end of file), or what `Workload` takes.
        capture_stdout, capture_stderr: collect it in the result.
        check: raise `CalledProcessError` unless the exit status is 0.
        max_output: bytes to keep of each captured stream; the rest is read and dropped, and ``truncated`` is set.
        deliver_cancel: an async function that ends the workload when this call is cancelled; it runs shielded. By
            default: SIGTERM to the workload, 5 seconds, SIGKILL to the whole subtree. What is left after it is
            killed in any case.
        options: see `Workload`.

    Raises:
        CalledProcessError: with `check`.
        SetupError, AgentDied, AgentError, NotSupported: it could not run, or its agent was killed.
    """
    pipes_allowed = task_status is not trio.TASK_STATUS_IGNORED
    workload, feed = _prepare(argv_or_workload, stdin, capture_stdout, capture_stderr, options, pipes_allowed)
    captures = _captures(capture_stdout, capture_stderr, max_output)
    return await _complete(workload, None, feed, captures, check, deliver_cancel or _terminate, task_status)


async def run_inside(
    target: Any,
    argv_or_workload: Sequence[Argument] | Workload,
    *,
    unshare: Iterable[str | Namespace] = (),
    stdin: bytes | bytearray | memoryview | StdioSpec = b"",
    capture_stdout: bool = False,
    capture_stderr: bool = False,
    check: bool = True,
    max_output: int | None = None,
    deliver_cancel: Callable[[Session], Awaitable[object]] | None = None,
    task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
    among: weakref.WeakSet[Session] | None = None,
    **options: Unpack[EnteringOptions],
) -> Completed:
    """`run` for what enters all namespaces of `target`: arguments, result and errors of both `run` and `enter`.

    `among`: gets the session before it starts.
    """
    check_joins_all(
        argv_or_workload, cast("Mapping[str, Any]", options), "it joins all of the target's; see linx.enter"
    )
    pipes_allowed = task_status is not trio.TASK_STATUS_IGNORED
    entering = as_entering(argv_or_workload, cast("Mapping[str, Any]", options), check_unshare(unshare))
    workload, feed = _prepare(entering, stdin, capture_stdout, capture_stderr, {}, pipes_allowed)
    captures = _captures(capture_stdout, capture_stderr, max_output)
    checked = check_target(target, None, True)
    on_cancel = deliver_cancel or _terminate
    return await _complete(workload, checked, feed, captures, check, on_cancel, task_status, among)


def _captures(stdout: bool, stderr: bool, limit: int | None) -> tuple[_Collector | None, _Collector | None]:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ValueError(f"max_output must be a number of bytes or None, not {limit!r}")
    return _Collector(limit) if stdout else None, _Collector(limit) if stderr else None


async def _complete(
    workload: Workload,
    target: Target | None,
    feed: bytes | None,
    captures: tuple[_Collector | None, _Collector | None],
    check: bool,
    on_cancel: Callable[[Session], Awaitable[object]],
    task_status: trio.TaskStatus[Session],
    among: weakref.WeakSet[Session] | None = None,
) -> Completed:
    awaited = task_status is not trio.TASK_STATUS_IGNORED
    out, err = captures
    manager = SessionManager(
        workload,
        wait_ready=True,
        target=target,
        quiet=not awaited and on_cancel is _terminate and among is None,  # nobody else sees the session
        keep_streams=awaited,
        on_cancel=on_cancel,
        among=among,
    )
    async with manager as session:
        task_status.started(session)
        await _attend(session, feed, out, err, on_cancel)
    completed = Completed(
        list(workload.arguments),
        cast("int", session.returncode),
        _bytes(out),
        _bytes(err),
    )
    completed.outcome = cast("Outcome", session.outcome)
    completed.usage = session.usage
    completed.truncated = any(collector.truncated for collector in captures if collector is not None)
    if check:
        completed.check_returncode()
    return completed


def run_sync(
    argv_or_workload: Sequence[Argument] | Workload,
    *,
    stdin: bytes | bytearray | memoryview | StdioSpec = b"",
    capture_stdout: bool = False,
    capture_stderr: bool = False,
    check: bool = True,
    max_output: int | None = None,
    deliver_cancel: Callable[[Session], Awaitable[object]] | None = None,
    cancel: CancelEvent | None = None,
    **options: Unpack[RunOptions],
) -> Completed:
    """`run` for code without trio, in any thread: the same arguments, result and errors, and one argument more.

    Args:
        cancel: a `threading.Event`, or anything with ``is_set()``. When it is set, from wherever, that is what a
            cancellation is to `run`: `deliver_cancel`, or SIGTERM, 5 seconds, SIGKILL. It is looked at every
            50 milliseconds, in this thread, so ``is_set`` should not block; what that raises ends the workload too.

    Raises `concurrent.futures.CancelledError` when `cancel` was set before the workload had ended; nothing is left of
    it then, and nothing is started if it was set from the beginning. Raises `RuntimeError` in a thread that is inside
    of `trio.run`: there it is ``await linx.run(...)``.
    """
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("run_sync() would block this thread's trio.run: write `await linx.run(...)`")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise TypeError(f"cancel must be an event, with is_set(), or None, not {cancel!r}")

    async def main() -> Completed:
        if cancel is not None:
            return await _until(cancel, work)
        return await work()

    async def work() -> Completed:
        return await run(
            argv_or_workload,
            stdin=stdin,
            capture_stdout=capture_stdout,
            capture_stderr=capture_stderr,
            check=check,
            max_output=max_output,
            deliver_cancel=deliver_cancel,
            **options,
        )

    return trio.run(main)


class CancelEvent(Protocol):
    """What `run_sync` takes for ``cancel=``."""

    def is_set(self) -> bool: ...


async def _until(cancel: CancelEvent, work: Callable[[], Awaitable[Completed]]) -> Completed:
    """Does the work, and cancels it once `cancel` is set. No nursery: the work's exceptions come out as themselves."""
    troubles: list[BaseException] = []

    def look() -> bool:
        try:
            return cancel.is_set()
        except BaseException as exc:
            troubles.append(exc)
            return True

    async def watch() -> None:
        while True:
            await trio.sleep(CANCEL_POLL)
            if look():
                return scope.cancel()

    with trio.CancelScope() as scope:
        if look():
            scope.cancel()
        else:
            trio.lowlevel.spawn_system_task(watch)
        return await work()
    from concurrent.futures import CancelledError  # brings logging along

    raise troubles[0] if troubles else CancelledError("run_sync was cancelled: its cancel= has been set")


def _prepare(
    argv_or_workload: Any,
    stdin: Any,
    capture_stdout: bool,
    capture_stderr: bool,
    options: Mapping[str, Any],
    pipes_allowed: bool,
) -> tuple[Workload, bytes | None]:
    """The workload to spawn, and what to feed it."""
    changes: dict[str, Any] = {**options, "auto_proceed": True}
    feed = bytes(stdin) if isinstance(stdin, (bytes, bytearray, memoryview)) else None
    own = argv_or_workload if isinstance(argv_or_workload, Workload) else None
    own_stdin = own is not None and (own.stdin is not INHERIT or own.stdio is not None)
    if feed and own is not None and own_stdin:
        theirs = f"stdin={own.stdin!r}" if own.stdio is None else f"stdio={own.stdio!r}"
        raise ValueError(f"stdin=b'...' and the workload's own {theirs} contradict each other")
    if feed:
        changes["stdin"] = PIPE
    elif feed is None:
        changes["stdin"] = stdin
    elif not own_stdin and changes.get("stdio") is None:
        changes["stdin"] = DEVNULL
    for name, wanted in (("stdout", capture_stdout), ("stderr", capture_stderr)):
        if not wanted:
            continue
        if name in options:
            raise ValueError(f"capture_{name}=True and {name}={changes[name]!r} contradict each other")
        if own is not None and getattr(own, name) not in (INHERIT, PIPE):
            theirs = getattr(own, name)
            raise ValueError(f"capture_{name}=True and the workload's own {name}={theirs!r} contradict each other")
        changes[name] = PIPE
    # What the changes are is known beforehand, unless some are the caller's: options, or a stream of his own.
    ours = not options and feed is not None
    workload = as_variant(argv_or_workload, changes) if ours else as_workload(argv_or_workload, changes)
    if isinstance(workload.stdio, Pty) and not pipes_allowed:
        raise ValueError(
            f"stdio={workload.stdio!r}: nobody could reach the terminal. Write `session = await "
            "nursery.start(linx.run, ...)`, or use linx.spawn()"
        )
    if PIPE in (workload.stdin, workload.stdout, workload.stderr) and not pipes_allowed:
        _check_pipes(workload, {"stdin": bool(feed), "stdout": capture_stdout, "stderr": capture_stderr})
    return workload, feed or None


def _check_pipes(workload: Workload, ours: Mapping[str, bool]) -> None:
    """Raises `ValueError` for one whose other end nobody would have."""
    for name, is_ours in ours.items():
        if getattr(workload, name) is PIPE and not is_ours:
            raise ValueError(
                f"{name}=PIPE: nobody could reach the pipe. Write `session = await nursery.start(linx.run, ...)`, "
                + ("stdin=b'...'" if name == "stdin" else f"capture_{name}=True")
                + ", or use linx.spawn()"
            )


async def _attend(
    session: Session,
    feed: bytes | None,
    out: _Collector | None,
    err: _Collector | None,
    on_cancel: Callable[[Session], Awaitable[object]],
) -> None:
    """Waits for the workload's end while its pipes are kept moving, also while it is being asked to end."""
    if feed is None and out is None and err is None:
        await _wait(session, on_cancel)
        return
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            pumps = trio.CancelScope(shield=True)
            nursery.start_soon(_pump, pumps, session, feed, out, err)
            try:
                await _wait(session, on_cancel)
            except (Exception, KeyboardInterrupt) as exc:
                failure = exc  # raised below, where no nursery wraps it
            finally:
                pumps.cancel()
    except BaseExceptionGroup as group:
        failure = failure or _the_interrupt(group)
    if failure is not None:
        raise failure
    for collector, stream in ((out, session.stdout), (err, session.stderr)):
        if collector is not None and stream is not None:
            collector.finish(stream)
            stream.close()


def _the_interrupt(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """A ^C that came while the nursery waited for its task to end, which raises nothing itself."""
    found: BaseException = group.subgroup(KeyboardInterrupt) or group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found


async def _wait(session: Session, on_cancel: Callable[[Session], Awaitable[object]]) -> None:
    if session.is_over:
        return  # a short one, over before we looked: another turn of the loop would be for nothing
    try:
        await session.wait()
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            await on_cancel(session)
        raise


async def _terminate(session: Session) -> None:
    with contextlib.suppress(LinxError):  # it has ended meanwhile, or failed: then there is nothing to ask
        session.terminate()
        with trio.move_on_after(CANCEL_GRACE):
            await session.wait()
    session.kill()


async def _pump(
    scope: trio.CancelScope,
    session: Session,
    feed: bytes | None,
    out: _Collector | None,
    err: _Collector | None,
) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            if feed is not None and session.stdin is not None:
                nursery.start_soon(_feed, session.stdin, feed)
            if out is not None and session.stdout is not None:
                nursery.start_soon(out.collect, session.stdout)
            if err is not None and session.stderr is not None:
                nursery.start_soon(err.collect, session.stderr)


async def _feed(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    async with stream:
        # Broken: it does not want to read any more; its exit status says whether that was all right.
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(data)


def _bytes(collector: _Collector | None) -> bytes | None:
    return None if collector is None else bytes(collector.data)


class _Collector:
    """One captured stream. Keeps `limit` bytes, and reads on, so that the workload is not stopped by a full pipe."""

    def __init__(self, limit: int | None) -> None:
        self.data = bytearray()
        self.truncated = False
        self._limit = limit

    def _keep(self, chunk: bytes) -> None:
        room = len(chunk) if self._limit is None else self._limit - len(self.data)
        self.truncated |= len(chunk) > room
        self.data += chunk[:room]

    async def collect(self, stream: trio.lowlevel.FdStream) -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # somebody who has the session has closed it
            while chunk := await stream.receive_some():
                self._keep(bytes(chunk))

    def finish(self, stream: trio.lowlevel.FdStream) -> None:
        """What is in the pipe when the workload has ended, and not what others may still be writing (``FIONREAD``)."""
        if stream.fileno() < 0:
            return
        left = int.from_bytes(fcntl.ioctl(stream.fileno(), termios.FIONREAD, bytes(4)), "little")
        while left > 0:
            chunk = os.read(stream.fileno(), min(left, 65536))
            if not chunk:
                return
            self._keep(chunk)
            left -= len(chunk)
