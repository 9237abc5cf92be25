"""From a workload and its caller to the one request of a session, and from a refusal back to the option that caused
it.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from linx_trio._caller import Caller
from linx_trio._hints import hint_for
from linx_trio._options import LINGER, RLIMITS
from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import FramingError
from linx_trio._stdio import STREAMS
from linx_trio._target import Pinned
from linx_trio._workload import Workload
from linx_trio.errors import NotSupported, SetupError, setup_error


@dataclass(frozen=True, slots=True)
class Request:
    """The message, and for each of its steps the option it came from and the thing it is about."""

    message: m.Spawn
    origins: Sequence[tuple[str, str]]
    workload: Workload
    entered: Pinned | None = None

    def frame(self) -> bytes:
        """The message's frame. Raises `SetupError` for one that is longer than frames can be: execve(2) takes less."""
        try:
            return self.message.frame()
        except (etf.CodecError, FramingError):
            hint = hint_for("execve", errno.E2BIG, self.workload)
            raise setup_error(errno.E2BIG, "execve", self.workload.arguments[0], hint) from None

    def option_of(self, index: int) -> str:
        """The name of the option that step `index` came from. `messages.Nonsense` if there is no such step."""
        if index not in range(len(self.origins)):
            raise m.Nonsense(f"there is no step {index} in the request", index)
        return self.origins[index][0]

    def error_of(self, refusal: m.Refusal) -> SetupError | NotSupported:
        """A refusal by the agent as the error that users see."""
        if (refusal.stage, refusal.errno) == ("request", errno.ENOSYS):
            return NotSupported("entering another process' namespaces", _UNSEALED)
        thing: str | None = None
        if refusal.stage == "execve":
            thing = self.workload.arguments[0]
        elif refusal.stage == "clone":
            thing = ", ".join(sorted(self.workload.namespace_names)) or None
        elif refusal.stage.startswith(("open_ns_", "setns_", "cgroup")) and self.entered is not None:
            thing = self.entered.target.name
        elif refusal.stage == "stdio" and refusal.step in range(len(STREAMS)):
            thing = STREAMS[refusal.step]
        elif 0 <= refusal.step < len(self.origins):
            thing = self.origins[refusal.step][1]
        hint = hint_for(refusal.stage, refusal.errno, self.workload)
        return setup_error(refusal.errno, refusal.stage, thing, hint)


_UNSEALED = "the agent must run from a sealed copy in memory, which this kernel refuses: see vm.memfd_noexec"


def build(
    workload: Workload,
    caller: Caller,
    baseline: Caller,
    fds: Sequence[int | str],
    *,
    terminal: str | None = None,
    entered: Pinned | None = None,
    quiet: bool = False,
) -> Request:
    """The request for `workload`, to an agent that started out as `baseline`. `terminal` is the name of the one that
    the standard streams are, if they are one; `entered` is whose namespaces are joined.
    """
    # Where another user namespace is entered, the agent drops the caller's groups, if that is allowed.
    keeps_groups = entered is not None and entered.has_other_user_namespace()
    steps, origins = _steps(workload, caller, baseline, terminal, keeps_groups=keeps_groups)
    policy = workload.orphan_policy
    message = m.Spawn(
        argv=tuple(map(os.fsencode, workload.arguments)),
        env=_environment(cast("Mapping[str, str] | None", workload.env)),
        namespaces=_kinds(workload, entered),
        fds=tuple(fds),
        steps=tuple(steps),
        orphan_grace_ms=None if policy is LINGER else milliseconds(policy.grace),
        auto_proceed=workload.auto_proceed,
        new_session=workload.new_session,
        quiet=quiet,
        enter=entered is not None,
    )
    return Request(message, origins, workload, entered)


def _kinds(workload: Workload, entered: Pinned | None) -> tuple[str, ...] | None:
    kinds = workload.namespace_names if entered is None else entered.target.namespaces
    return None if kinds is None else tuple(sorted(kinds))


def milliseconds(seconds: float) -> int:
    """Rounded up, so that a small grace does not become none."""
    return -int(-seconds * 1000 // 1)


def _environment(env: Mapping[str, str] | None) -> tuple[bytes, ...]:
    if env is not None:
        return tuple(os.fsencode(f"{key}={value}") for key, value in env.items())
    # os.environb converts each item when it is walked, which costs more than the rest of the request; what it wraps
    # is a plain dict of bytes.
    wrapped = getattr(os.environb, "_data", None)
    return _assignments(tuple((wrapped if isinstance(wrapped, dict) else os.environb).items()))


@functools.lru_cache(maxsize=16)
def _assignments(pairs: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, ...]:
    return tuple(key + b"=" + value for key, value in pairs)


def _steps(
    workload: Workload, caller: Caller, baseline: Caller, terminal: str | None, *, keeps_groups: bool
) -> tuple[list[m.Step], list[tuple[str, str]]]:
    """What the child does to itself, in the one right order.

    Before the checkpoint: what can be changed again from outside while it is parked (``prlimit(2)``,
    ``setpriority(2)``), and the hostname. Behind it: ids, directory and privileges, which belong to the file system
    as it is then.
    """
    steps: list[m.Step] = []
    origins: list[tuple[str, str]] = []

    def add(option: str, thing: object, step: m.Step, *, asked: bool = True) -> None:
        given_up = asked and option in cast("frozenset[str]", workload.optional)
        steps.append(m.optional(step) if given_up else step)
        origins.append((option, str(thing)))

    own_mounts = "mount" in workload.namespace_names
    if own_mounts:
        add("namespaces", "/", ("private_mounts",))
    if terminal is not None:
        if own_mounts:
            add("stdio", terminal, ("keep_terminal", terminal.encode()))
        add("stdio", terminal, ("controlling_terminal",))
    mask = caller.umask if workload.umask is None else workload.umask
    add("umask", oct(mask), ("umask", mask))
    nice = max(-20, min(19, caller.nice + workload.nice))
    if nice != baseline.nice:
        add("nice", nice, ("nice", nice))
    _limit_steps(workload, caller, baseline, add)
    if workload.hostname is not None:
        add("hostname", workload.hostname, ("hostname", os.fsencode(workload.hostname)))
    add("", "", m.CHECKPOINT)
    if terminal is not None:
        if own_mounts:
            add("stdio", "/dev/console", ("name_terminal", terminal.encode()))
        if workload.uid is not None:
            add("stdio", terminal, ("terminal_owner", workload.uid))
    groups = workload.groups
    if groups is None and workload.uid not in (None, os.geteuid()) and not keeps_groups:
        groups = ()  # somebody else: the caller's groups are none of theirs
    if groups is not None:
        add("groups", groups, ("setgroups", tuple(groups)))
    if workload.gid is not None:
        add("gid", workload.gid, ("setgid", workload.gid))
    if workload.uid is not None:
        add("uid", workload.uid, ("setuid", workload.uid))
    if workload.cwd is not None:
        cwd = cast("str", workload.cwd)
        add("cwd", cwd, ("chdir", os.fsencode(cwd)))
    if workload.no_new_privs:
        add("no_new_privs", "no_new_privs", ("no_new_privs",))
    return steps, origins


def _limit_steps(workload: Workload, caller: Caller, baseline: Caller, add: Callable[..., None]) -> None:
    """The caller's limits where the agent has others, then those asked for: so none is raised above the caller's."""
    for number, (now, then) in enumerate(zip(caller.limits, baseline.limits, strict=True)):
        if now != then:
            add("rlimits", _LIMIT_NAMES[number], ("rlimit", number, *now), asked=False)
    for name, (soft, hard) in workload.rlimits.items():
        add("rlimits", f"{name}=({soft}, {hard})", ("rlimit", RLIMITS[name], soft, hard))


_LIMIT_NAMES = {number: name for name, number in RLIMITS.items()}
