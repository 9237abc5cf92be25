"""What the command does while a workload runs: signals, its terminal, the time-out, and the telling of its end.

A signal that comes to the command goes to the workload. One that asks to end (SIGINT, SIGTERM, SIGHUP, SIGQUIT) ends it
in any case: what is left of it after ``--stop-timeout`` gets SIGKILL, and so it does at the second such signal. Leaving
the session's block leaves nothing behind; where the command itself is killed with SIGKILL, the agent does that. SIGTSTP
stops both, see `_cli_suspend`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import trio

import linx_trio as linx
from linx_trio import _cli_suspend
from linx_trio._cli_elsewhere import ELSEWHERE
from linx_trio._cli_errors import EXPECTED, TIMED_OUT, Complaint, describe, failure_status, report, status_of, warn
from linx_trio._cli_workload import Plan

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PASSED_ON = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)


STDERR = 2


class Interrupted(Exception):
    """A signal came before there was a workload."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def perform(plan: Plan) -> int:
    """Runs it to its end. Returns the exit status; what went wrong has been said."""
    performance = Performance(plan)
    try:
        status = trio.run(performance.main)
    except Interrupted as exc:
        return 128 + exc.signum
    except EXPECTED as exc:
        if os.environ.get("LINX_DEBUG"):
            raise
        if plan.json_fd is not None:
            _tell(plan.json_fd, {"exit_status": failure_status(exc), "error": describe(exc)})
            return failure_status(exc)
        return report(_with_advice(exc, plan))
    if performance.timed_out and plan.json_fd != STDERR:  # whose reader gets JSON, which says the same
        warn(f"linx: ended by --timeout, after {plan.timeout:g} s")
    if performance.degraded and plan.json_fd != STDERR:
        warn(f"linx: not to be had here, and done without: {', '.join(performance.degraded)}")
    if plan.json_fd is not None:
        _tell(plan.json_fd, performance.told(status))
    return status


def _tell(fd: int, told: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(told).encode() + b"\n")


def _with_advice(exc: BaseException, plan: Plan) -> BaseException:
    """A program that is not found, where an option has been taken for docker's."""
    name = str(plan.workload.argv[0])
    kinds = plan.workload.namespace_names
    if failure_status(exc) != 127:
        return exc
    if name.startswith("-") and plan.target is not None:
        return Complaint(str(exc).split("\n")[0], "options stand all together, in front of PID or behind it", 127)
    if "mount" in kinds and name[:1].isdigit() and name[-1:] in "0123456789kKmMgG":
        return Complaint(str(exc).split("\n")[0], "-m is the mount namespace; for memory: --memory " + name, 127)
    if "mount" in kinds and name.startswith("type="):
        return Complaint(
            str(exc).split("\n")[0], "--mount is the namespace; for a mount: --bind SRC DST, -v SRC:DST", 127
        )
    if "pid" in kinds and re.fullmatch(r"[\d.:]*:\d+(/\w+)?", name):
        return Complaint(str(exc).split("\n")[0], f"-p is the pid namespace; for ports: {ELSEWHERE['--publish']}", 127)
    if kinds & {"user", "uts"} and name.replace(":", "").isdigit():
        return Complaint(str(exc).split("\n")[0], "-U and -u are namespaces; for the user: --uid " + name, 127)
    return exc


class Performance:
    """One workload, from the command's point of view."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._session: linx.Session | None = None
        self._scope = trio.CancelScope()
        self._asked = 0
        self._killer = trio.Event()
        self._failure: Exception | None = None
        self._status = 0
        self.timed_out = False
        self.degraded: tuple[str, ...] = ()

    async def main(self) -> int:
        """Its tasks raise nothing; what went wrong is raised here, where no nursery wraps it."""
        wanted = [number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        wanted += _cli_suspend.wanted(self._plan.tty)
        with trio.open_signal_receiver(*wanted) as arrived:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._relay, arrived)
                nursery.start_soon(self._kill_later)
                await self._work()
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        if self._scope.cancelled_caught and self._session is None:
            raise Interrupted(self._asked)
        return TIMED_OUT if self.timed_out else self._status

    async def _work(self) -> None:
        try:
            with self._scope:
                await self._live()
        except EXPECTED as exc:
            self._failure = exc

    async def _live(self) -> None:
        workload = self._plan.workload
        if self._plan.tty:
            workload = workload.replace(stdio=linx.PTY)
        async with self._plan.open(workload) as session:
            self._session = session
            async with self._time_limit():
                if self._plan.tty:
                    await self._attached(session)
                else:
                    await session.proceed()
                    await session.wait()
            self.degraded = session.info().degraded
        if session.outcome is not None:
            self._status = status_of(session.outcome)

    async def _attached(self, session: linx.Session) -> None:
        """`attach` raises what the session fails with, so whoever lets it proceed need not."""

        async def proceed() -> None:
            with contextlib.suppress(linx.LinxError):
                await session.proceed()

        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proceed)
            try:
                # No keys to detach with: nothing could attach to it again.
                found = await linx.tty.attach(session, terminal=sys.stdin, detach_keys=b"")
                if found is linx.tty.DETACHED:  # the terminal was hung up
                    self._asks_to_end(signal.SIGHUP)
                    await session.wait()
            except EXPECTED as exc:
                failure = exc
        if failure is not None:
            raise failure

    # ---- ending it ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _time_limit(self) -> AsyncIterator[None]:
        if self._plan.timeout is None:
            yield
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_in_time, self._plan.timeout)
            failure: Exception | None = None
            try:
                yield
            except EXPECTED as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _end_in_time(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.timed_out = True
        self._asks_to_end(signal.SIGTERM)

    async def _relay(self, arrived: AsyncIterator[int]) -> None:
        async for number in arrived:
            if number in ENDING:
                self._asks_to_end(number)
            elif number == signal.SIGTSTP:
                _cli_suspend.suspend(self._session)
            elif self._session is not None:
                self._signal(number)

    def _asks_to_end(self, number: int) -> None:
        again, self._asked = self._asked, number
        if self._session is None:
            self._scope.cancel()
        elif again:
            self._session.kill()
        else:
            self._signal(number)
            self._killer.set()

    async def _kill_later(self) -> None:
        await self._killer.wait()
        await trio.sleep(self._plan.grace)
        if self._session is not None:
            self._session.kill()

    def _signal(self, number: int) -> None:
        assert self._session is not None
        with contextlib.suppress(linx.StateError):  # it has ended meanwhile
            self._session.signal(number)

    # ---- telling it --------------------------------------------------------------------------------------------------

    def told(self, status: int) -> dict[str, Any]:
        """How it ended, as data."""
        session = self._session
        assert session is not None
        info = session.info()
        return {
            "exit_status": status,
            "outcome": outcome_to_dict(info.outcome),
            "timed_out": self.timed_out,
            "pid": info.host_pid,
            "argv": list(map(str, info.argv)),
            "namespaces": sorted(info.namespaces),
            "containment": info.containment,
            "degraded": list(info.degraded),
            "usage": None if info.usage is None else dataclasses.asdict(info.usage),
        }


def outcome_to_dict(outcome: linx.Outcome | None) -> dict[str, Any] | None:
    match outcome:
        case linx.Exited(code):
            return {"kind": "exited", "code": code}
        case linx.Signaled(signum, core_dumped):
            return {"kind": "signaled", "signal": signum, "name": _name(signum), "core_dumped": core_dumped}
        case linx.Aborted():
            return {"kind": "aborted"}
    return None


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def check_terminal(tty: bool) -> None:
    """Raises `Complaint` where ``--tty`` has no terminal to attach."""
    for name, stream in (("input", sys.stdin), ("output", sys.stdout)) if tty else ():
        if stream is None or not stream.isatty():
            raise Complaint(
                f"--tty attaches your terminal, and standard {name} is none",
                "leave --tty out: standard streams are passed on in any case",
            )
