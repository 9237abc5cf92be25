"""From a workload and its caller to the one request of a session, and from a refusal back to the option that caused
it.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from linx_trio._caller import Caller, environment, read_file
from linx_trio._cause_kernel import unsealed
from linx_trio._hints import hint_for
from linx_trio._machine import Machine
from linx_trio._options import LINGER, RLIMITS, Stdio
from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import FramingError
from linx_trio._stdio import STREAMS
from linx_trio._target import Pinned
from linx_trio._workload import Workload
from linx_trio.errors import NotSupported, SetupError, setup_error

if TYPE_CHECKING:
    from linx_trio._capabilities import Policy


@dataclass(frozen=True)
class Request:
    """The message, and for each of its steps the option it came from and the thing it is about."""

    message: m.Spawn
    origins: Sequence[tuple[str, str]]
    workload: Workload
    entered: Pinned | None = None
    cgroup: str | None = None
    """The path of the one that it is born into, as ``cgroup`` and ``limits`` say."""
    after_mapping: tuple[list[m.Step], list[tuple[str, str]]] | None = None
    """With id maps that only this side can write: what the child does once they are written, before it is ready."""

    @functools.cached_property
    def frame(self) -> bytes:
        """The message's frame. Raises `SetupError` for one that is longer than frames can be: execve(2) takes less."""
        try:
            return self.message.frame()
        except (etf.CodecError, FramingError):
            if self.workload.mounts:
                raise setup_error(errno.E2BIG, "request", "mounts", _TOO_LARGE) from None
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
            return NotSupported("entering another process' namespaces", unsealed(Machine()))
        thing: str | None = None
        if refusal.stage == "cgroup" and self.cgroup is not None:
            from linx_trio._cgroup_files import no_place  # only who has a cgroup needs it

            return no_place(refusal.errno, self.cgroup)
        if refusal.stage == "execve":
            thing = self.workload.arguments[0]
        elif refusal.stage == "clone":
            thing = ", ".join(sorted(self.workload.namespace_names)) or None
        elif refusal.stage.startswith(("open_ns_", "setns_", "cgroup")) and self.entered is not None:
            thing = self.entered.target.name
        elif refusal.stage == "stdio" and refusal.step in range(len(STREAMS)):
            thing = STREAMS[refusal.step]
        elif refusal.stage == "seccomp_install" and self.workload.seccomp is not None:
            thing = self.workload.seccomp.label
        elif 0 <= refusal.step < len(self.origins):
            thing = self.origins[refusal.step][1]
        step = self.message.steps[refusal.step] if 0 <= refusal.step < len(self.message.steps) else ()
        entering = self.entered is not None
        hint = hint_for(refusal.stage, refusal.errno, self.workload, step=step, entering=entering)
        return setup_error(refusal.errno, refusal.stage, thing, hint)


_TOO_LARGE = "argv, env and all mounts, with the contents of files, have room for 16 MiB"


def build(
    workload: Workload,
    caller: Caller,
    baseline: Caller,
    fds: Sequence[m.Target],
    *,
    terminal: str | None = None,
    entered: Pinned | None = None,
    cgroup: str | None = None,
    own_cgroup: bytes | None = None,
    quiet: bool = False,
) -> Request:
    """The request for `workload`, to an agent that started out as `baseline`. `terminal` is the name of the one that
    the standard streams are, if they are one; `entered` is whose namespaces are joined; `cgroup` the path of
    the one to be born into, `own_cgroup` its name if it is for this session alone.
    """
    special = (terminal, entered, cgroup, own_cgroup)
    env = workload.assignments
    if env is None:
        env = _assignments(tuple(environment().items()))
    given = _Given(workload, caller, baseline, tuple(fds), quiet, env)
    if special != (None, None, None, None):
        return _build(given, *special)
    then, request = workload.last_request
    if then is None or not given.is_same(then):
        request = _build(given, *special)
        if _may_be_kept(workload, request):
            workload.last_request[:] = given, request
    return cast("Request", request)


class _Given(NamedTuple):
    """What a request is made of, as a rule."""

    workload: Workload
    caller: Caller
    baseline: Caller
    fds: tuple[m.Target, ...]
    quiet: bool
    env: tuple[bytes, ...]

    def is_same(self, other: _Given) -> bool:
        return self.workload is other.workload and self.baseline is other.baseline and self[1:] == other[1:]


def _may_be_kept(workload: Workload, request: Request) -> bool:
    """Not what is large, nor what has objects of the caller's, whose end must not wait for the garbage collector."""
    streams = (workload.stdin, workload.stdout, workload.stderr)
    own = all(isinstance(stream, Stdio) for stream in streams) and workload.owner is None and not workload.pass_fds
    return own and len(request.frame) <= _KEPT


_KEPT = 65536


def _build(
    given: _Given, terminal: str | None, entered: Pinned | None, cgroup: str | None, own_cgroup: bytes | None
) -> Request:
    workload, caller, baseline = given.workload, given.caller, given.baseline
    early, late, batch = _Steps(workload), _Steps(workload), _Steps(workload)
    maps = _own_maps(workload)
    if maps is not None:
        early.add("user", f"uid {maps[0].decode()}", ("own_uid_map", maps[0]))
        early.add("user", f"gid {maps[1].decode()}", ("own_gid_map", maps[1]))
    mapped_from_outside = workload.user is not None and maps is None
    first = batch if mapped_from_outside else early
    net_of_init = first is early and _net_of_init(workload, entered)
    _early_steps(first, workload, caller, baseline, terminal, entered=entered is not None, net_of_init=net_of_init)
    # Groups: where another user namespace is entered, the agent drops them, if that is allowed.
    keeps_groups = entered is not None and entered.has_other_user_namespace()
    _late_steps(late, workload, terminal, keeps_groups=keeps_groups)
    steps: list[m.Step] = [*early.steps, m.CHECKPOINT, *late.steps]
    origins = [*early.origins, ("", ""), *late.origins]
    policy = workload.orphan_policy
    message = m.Spawn(
        argv=tuple(map(os.fsencode, workload.arguments)),
        env=given.env,
        namespaces=_kinds(workload, entered, net_of_init=net_of_init),
        fds=given.fds,
        steps=tuple(steps),
        orphan_grace_ms=None if policy is LINGER else milliseconds(policy.grace),
        auto_proceed=workload.auto_proceed and not mapped_from_outside,
        new_session=workload.new_session,
        quiet=given.quiet,
        enter=entered is not None,
        init=workload.init,
        own_cgroup=own_cgroup,
    )
    after_mapping = (batch.steps, batch.origins) if mapped_from_outside else None
    return Request(message, origins, workload, entered, cgroup, after_mapping)


def _net_of_init(workload: Workload, entered: Pinned | None) -> bool:
    """Whether pid 1 makes the network namespace while the child makes its file system: the two take the kernel longest.

    Not where something belongs to that namespace, a sysfs or a sysctl; or forbids any further one.
    """
    if entered is not None or not workload.init or "net" not in workload.namespace_names or not workload.mounts:
        return False
    steps, _ = _mount_steps(cast("Any", workload.root), cast("Any", workload.mounts))
    own = any(step[0] == "mount_new" and step[1] == b"sysfs" for step in steps)
    return not own and not any(path.startswith(("net/", "user/max_net_")) for path in workload.sysctls)


def _kinds(workload: Workload, entered: Pinned | None, *, net_of_init: bool) -> tuple[str, ...] | None:
    kinds = workload.namespace_names if entered is None else entered.target.namespaces
    if kinds is not None and workload.time_offsets:
        kinds -= {"time"}  # the step makes it: one that clone3(2) makes takes no offsets any more
    if kinds is not None and net_of_init:
        kinds -= {"net"}
    return None if kinds is None else tuple(sorted(kinds))


def milliseconds(seconds: float) -> int:
    """Rounded up, so that a small grace does not become none."""
    return -int(-seconds * 1000 // 1)


@functools.lru_cache(maxsize=16)
def _assignments(pairs: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, ...]:
    """The caller's environment."""
    return tuple(key + b"=" + value for key, value in pairs)


class _Steps:
    """What the child does to itself, in the one right order; each step with the option it came from and its thing."""

    def __init__(self, workload: Workload) -> None:
        self._optional = cast("frozenset[str]", workload.optional)
        self.steps: list[m.Step] = []
        self.origins: list[tuple[str, str]] = []

    def add(self, option: str, thing: object, step: m.Step, *, asked: bool = True) -> None:
        given_up = asked and option in self._optional
        self.steps.append(m.optional(step) if given_up else step)
        self.origins.append((option, str(thing)))

    def add_mounts(self, mounts: tuple[Sequence[m.Step], Sequence[tuple[str, str]]]) -> None:
        """Steps that are all there, with their origins."""
        steps, origins = mounts
        if self._optional & {"root", "mounts"}:
            for step, (option, thing) in zip(steps, origins, strict=True):
                self.add(option, thing, step)
        else:
            self.steps += steps
            self.origins += origins

    def add_all(self, option: str, steps: Iterable[m.Step], thing: object) -> None:
        for step in steps:
            self.add(option, thing, step)


def _own_maps(workload: Workload) -> tuple[bytes, bytes] | None:
    """The maps that the child may write itself: those of the caller's own id alone (``user_namespaces(7)``)."""
    user = workload.user
    if user is None or user.setgroups != "deny":
        return None
    lines = []
    for given, own in ((user.uid, os.geteuid()), (user.gid, os.getegid())):
        (first, *rest) = cast("Sequence[tuple[int, int, int]]", given)
        if rest or tuple(first)[1:] != (own, 1):
            return None
        lines.append(b"%d %d 1" % (first[0], own))
    return lines[0], lines[1]


def _own_inside(lines: Sequence[tuple[int, int, int]], own: int) -> int | None:
    """What the caller's own id is in the new user namespace; `None`: nobody's."""
    return next((inside + own - outside for inside, outside, count in lines if outside <= own < outside + count), None)


def _becomes_root(lines: Sequence[tuple[int, int, int]], own: int) -> bool:
    """Whether the caller is nobody in the new user namespace, where there is a root: as with `enter` it is that."""
    return _own_inside(lines, own) is None and any(inside == 0 for inside, _, _ in lines)


def _becomes_another(workload: Workload) -> bool:
    """Whether the workload's user is not the caller, whose groups are none of theirs then; if they can be dropped."""
    own: int | None = os.geteuid()
    if workload.user is not None:
        if workload.user.setgroups != "allow":
            return False
        own = _own_inside(cast("Any", workload.user.uid), os.geteuid())
    return own is None or workload.uid not in (None, own)


def _early_steps(
    found: _Steps,
    workload: Workload,
    caller: Caller,
    baseline: Caller,
    terminal: str | None,
    *,
    entered: bool,
    net_of_init: bool,
) -> None:
    """Before the checkpoint: the file system, and what can be changed again from outside while the child is parked."""
    own_mounts = "mount" in workload.namespace_names
    if entered:
        for kind in sorted(workload.namespace_names):
            found.add("unshare", kind, ("unshare", kind.encode()))
    if workload.time_offsets:
        text = _offsets(workload.time_offsets)
        found.add("time_offsets", text.decode().strip().replace("\n", ", "), ("time_offsets", text))
    if workload.user is not None and _becomes_root(cast("Any", workload.user.gid), os.getegid()):
        found.add("user", "gid 0", ("setgid", 0))
    if workload.user is not None and _becomes_root(cast("Any", workload.user.uid), os.geteuid()):
        found.add("user", "uid 0", ("setuid", 0))
    if own_mounts and not _says_propagation(workload):
        found.add("namespaces", "/", ("private_mounts",))
    if terminal is not None:
        if own_mounts:
            found.add("stdio", terminal, ("keep_terminal", terminal.encode()))
        found.add("stdio", terminal, ("controlling_terminal",))
    mask = caller.umask if workload.umask is None else workload.umask
    found.add("umask", oct(mask), ("umask", mask))
    nice = max(-20, min(19, caller.nice + workload.nice))
    if nice != baseline.nice:
        found.add("nice", nice, ("nice", nice))
    _attribute_steps(found, workload)
    if workload.root is not None or workload.mounts:
        found.add_mounts(_mount_steps(cast("Any", workload.root), cast("Any", workload.mounts)))
    if net_of_init:
        found.add("namespaces", "net", ("net_of_init",))
    # The last: they are the workload's, and not of what it takes to make it.
    _limit_steps(workload, caller, baseline, found.add)


def _offsets(offsets: Mapping[str, float]) -> bytes:
    """As ``/proc/<pid>/timens_offsets`` has them: seconds, which may be negative, and nanoseconds, which may not."""
    lines = []
    for clock, value in sorted(offsets.items()):
        seconds, nanoseconds = divmod(round(value * 10**9), 10**9)
        lines.append(f"{clock} {seconds} {nanoseconds}\n")
    return "".join(lines).encode()


@functools.lru_cache(maxsize=32)
def _mount_steps(root: Any, entries: Any) -> tuple[Sequence[m.Step], Sequence[tuple[str, str]]]:
    """And their origins. Remembered: a batch of sandboxes has the same ones, and they are many."""
    from linx_trio._mount_tree import steps_of

    made = steps_of(root, entries)
    origins = [("root" if step[0] in ("mount_root", "pivot_root") else "mounts", thing) for step, thing in made]
    return [step for step, _ in made], origins


def _says_propagation(workload: Workload) -> bool:
    if not workload.mounts:
        return False
    from linx_trio._mount_tree import says_propagation

    return says_propagation(cast("Any", workload.mounts))


def _attribute_steps(found: _Steps, workload: Workload) -> None:
    if workload.oom_score_adj is not None:
        found.add("oom_score_adj", workload.oom_score_adj, ("oom_score_adj", str(workload.oom_score_adj).encode()))
    if workload.cpu_affinity is not None:
        mask = sum(1 << number for number in workload.cpu_affinity)
        found.add("cpu_affinity", sorted(workload.cpu_affinity), ("cpu_affinity", mask.to_bytes(1024, sys.byteorder)))
    if workload.hostname is not None:
        found.add("hostname", workload.hostname, ("hostname", os.fsencode(workload.hostname)))
    if workload.domainname is not None:
        found.add("domainname", workload.domainname, ("domainname", os.fsencode(workload.domainname)))
    for path, value in workload.sysctls.items():
        found.add("sysctls", path, ("sysctl", os.fsencode(path), os.fsencode(cast("str", value))))


def _late_steps(found: _Steps, workload: Workload, terminal: str | None, *, keeps_groups: bool) -> None:
    """Behind the checkpoint: ids, privileges and directory, which belong to the file system as it is then."""
    if terminal is not None:
        if "mount" in workload.namespace_names:
            found.add("stdio", "/dev/console", ("name_terminal", terminal.encode()))
        if workload.uid is not None:
            found.add("stdio", terminal, ("terminal_owner", workload.uid))
    covers = "mount" in workload.namespace_names and (workload.mounts or not workload.auto_proceed)
    if covers and workload.root is None and not os.path.isabs(cast("str", workload.cwd or "")):
        # What has been mounted on the directory, or above it, holds for who was there before as well.
        found.add("cwd", "the caller's working directory", ("chdir_again",))
    before, after = _capability_steps(workload)
    found.add_all("capabilities", before, workload.capabilities)
    groups = workload.groups
    if groups is None and _becomes_another(workload) and not keeps_groups:
        groups = ()
    if groups is not None:
        found.add("groups", groups, ("setgroups", tuple(groups)))
    if workload.gid is not None:
        found.add("gid", workload.gid, ("setgid", workload.gid))
    if workload.uid is not None:
        found.add("uid", workload.uid, ("setuid", workload.uid))
    found.add_all("capabilities", after, workload.capabilities)
    if workload.cwd is not None:
        cwd = cast("str", workload.cwd)
        found.add("cwd", cwd, ("chdir", os.fsencode(cwd)))
    if workload.no_new_privs:
        found.add("no_new_privs", "no_new_privs", ("no_new_privs",))
    if workload.seccomp is not None:
        from linx_trio._seccomp_filter import step_of

        step, thing = step_of(workload.seccomp)
        found.add("seccomp", thing, step)


def _capability_steps(workload: Workload) -> tuple[list[m.Step], list[m.Step]]:
    """Before and after the change of ids."""
    policy = workload.capabilities
    if policy is None:
        return [], []
    last_cap = int(read_file("/proc/sys/kernel/cap_last_cap"))
    fresh = "user" in workload.namespace_names
    status = "" if fresh else read_file("/proc/thread-self/status").decode(errors="replace")
    before, after = _policy_steps(policy, status, last_cap, leaves_root=workload.uid not in (None, 0))
    return [*before], [*after]


@functools.lru_cache(maxsize=32)
def _policy_steps(
    policy: Policy, status: str, last_cap: int, *, leaves_root: bool
) -> tuple[Sequence[m.Step], Sequence[m.Step]]:
    """`status` is of the caller; without, the child has a user namespace of its own."""
    from linx_trio._capabilities import CapSets

    own = CapSets.from_status(status) if status else CapSets.in_new_user_namespace(last_cap)
    return policy.steps(own, leaves_root=leaves_root, last_cap=last_cap)


def _limit_steps(workload: Workload, caller: Caller, baseline: Caller, add: Callable[..., None]) -> None:
    """The caller's limits where the agent has others, then those asked for: so none is raised above the caller's."""
    for number, (now, then) in enumerate(zip(caller.limits, baseline.limits, strict=True)):
        if now != then:
            add("rlimits", _LIMIT_NAMES[number], ("rlimit", number, *now), asked=False)
    for name, (soft, hard) in workload.rlimits.items():
        add("rlimits", f"{name}=({soft}, {hard})", ("rlimit", RLIMITS[name], soft, hard))


_LIMIT_NAMES = {number: name for name, number in RLIMITS.items()}
