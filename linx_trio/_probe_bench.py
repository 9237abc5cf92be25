"""Where features are tried: each in a throw-away child, each after those that it needs, and each once.

A trial is an async function that does the thing for real, and returns when it is done, with a detail or without. Most
of them park a workload that never runs: all that is asked for has been granted by then.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from linx_trio._agent import agent_path, check_platform
from linx_trio._idmaps import root_map
from linx_trio._machine import Machine
from linx_trio._options import DEVNULL
from linx_trio._probe_report import Feature
from linx_trio._run import spawn
from linx_trio._session import Session
from linx_trio.errors import AgentError, Hint, LinxError, NotSupported, SetupError

SECONDS = 30.0
"""For one trial, which takes milliseconds. What hangs says so; the others go on."""


class Refused(Exception):
    """By a trial: it does not work, for this reason."""

    def __init__(self, hint: Hint) -> None:
        super().__init__(hint)
        self.hint = hint


class Blocked(Exception):
    """It cannot be tried, for want of this feature."""

    def __init__(self, feature: Feature) -> None:
        super().__init__(feature.name)
        self.feature = feature


@dataclass(frozen=True, slots=True)
class Rights:
    """How fresh namespaces are had here: the options for them."""

    options: Mapping[str, Any]
    rootless: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """One feature.

    Attributes:
        run: tries it.
        needs: features that have to work, or it is not even tried.
        kinds: namespaces that it is tried in, in a fresh user namespace or else with the caller's own rights; `None`:
            in none.
    """

    name: str
    group: str
    title: str
    run: Callable[[Bench], Awaitable[str | None]]
    needs: tuple[str, ...] = ("spawn",)
    kinds: tuple[str, ...] | None = None


class Bench:
    """Runs trials, and remembers what came of them."""

    def __init__(self, trials: Mapping[str, Trial], machine: Machine) -> None:
        self._trials = trials
        self._found: dict[str, Feature] = {}
        self._rights: Rights = Rights({}, rootless=False)
        self.machine = machine

    @property
    def agent(self) -> str:
        """Its path."""
        return str(agent_path())

    async def feature(self, name: str) -> Feature:
        """What came of that trial, which is run if it has not been."""
        if name not in self._found:
            trial = self._trials[name]
            self._found[name] = Feature(name, trial.group, trial.title, **await self._outcome(trial))
        return self._found[name]

    async def require(self, name: str) -> None:
        """Raises `Blocked` if it does not work."""
        feature = await self.feature(name)
        if not feature:
            raise Blocked(feature)

    async def _outcome(self, trial: Trial) -> dict[str, Any]:
        try:
            check_platform()
            for name in trial.needs:
                await self.require(name)
            rights = Rights({}, rootless=False) if trial.kinds is None else await self._find_rights(trial.kinds)
            with trio.fail_after(SECONDS):
                self._rights = rights
                detail = await trial.run(self)
            if detail is None and trial.kinds is not None and not rights.rootless:
                detail = "by the caller's own rights, not rootless"
            return {"works": True, "detail": detail}
        except Exception as exc:
            return {"works": False, **_explained(exc)}

    async def _find_rights(self, kinds: tuple[str, ...]) -> Rights:
        """Rootless, as most will have it; or as root where that is the only way."""
        user = await self.feature("user")
        if user:
            return Rights({"namespaces": {"user", *kinds}, "user": root_map()}, rootless=True)
        for kind in kinds:
            if not await self.feature(f"root:{kind}"):
                raise Blocked(user)
        if not kinds and os.geteuid() != 0:
            raise Blocked(user)
        return Rights({"namespaces": set(kinds)}, rootless=False)

    @contextlib.asynccontextmanager
    async def parked(self, program: str | None = None, **options: Any) -> AsyncIterator[Session]:
        """A workload that never runs, with the rights that the trial has. Its program is the agent, which is there for
        sure, and needs no other file.
        """
        given = {**self._rights.options, "stdio": DEVNULL, "env": {}, "cwd": "/", **options}
        async with spawn([program or self.agent, "--describe"], **given) as session:
            yield session

    async def executed(self, program: str | None = None, **options: Any) -> None:
        """The same, run to its end, which has to be a good one."""
        async with self.parked(program, **options) as session:
            await session.proceed()
            outcome = await session.wait()
        if session.returncode != 0:
            raise Refused(Hint("ended", f"a program that was run so ended with {outcome}"))


def _explained(exc: Exception) -> dict[str, Any]:
    """Why it does not work, in the words of `Feature`."""
    match exc:
        case Refused():
            return _of_hint(exc.hint)
        case Blocked():
            why = f"it needs {exc.feature.name}, which does not work"
            return {"why": why, "cause": exc.feature.cause, "needs": exc.feature.needs or exc.feature.name}
        case trio.TooSlowError():
            return {"why": f"it took more than {SECONDS:.0f} s", "cause": "too-slow"}
        case SetupError():
            thing = "" if exc.filename is None else f", {exc.filename}"
            cause = f"{exc.stage}-{_name(exc.errno)}"
            told = {"why": f"{exc.strerror} (stage {exc.stage}{thing})", "remedy": exc.hint, "cause": cause}
            return {**told, **_of_hint(exc.hint), "stage": exc.stage, "errno": exc.errno}
        case NotSupported():
            told = {"why": f"{exc.feature} is not supported here", "remedy": exc.hint, "cause": "not-supported"}
            return {**told, **_of_hint(exc.hint)}
        case AgentError():
            why, _, remedy = str(exc).rpartition("; ")
            return {"why": why or remedy, "remedy": remedy if why else None, "cause": "agent", **_of_hint(exc.args[0])}
        case LinxError():
            return {"why": str(exc), "cause": "agent"}
        case OSError():
            notes = [note.removeprefix("hint: ") for note in getattr(exc, "__notes__", [])]
            told = {"why": exc.strerror or str(exc), "remedy": "; ".join(notes) or None}
            return {**told, "cause": f"errno-{_name(exc.errno)}", "errno": exc.errno or errno.EIO}
        case ImportError():
            return {"why": str(exc), "remedy": "install it with pip", "cause": "import"}
    return {"why": f"unexpected: {exc!r}", "remedy": "please report it", "cause": "unexpected"}


def _name(number: int | None) -> str:
    return errno.errorcode.get(number or 0, str(number))


def _of_hint(hint: object) -> dict[str, Any]:
    if not isinstance(hint, Hint):
        return {}
    return {"why": hint.why, "remedy": hint.remedy or None, "cause": hint.cause}
