"""The vocabulary: every request, command and event of the session protocol, and its term.

They are named tuples rather than dataclasses, because a dozen of those would be half the time of importing the package.

`linx-agent --describe` prints the same lists; a test compares them. Nothing here reads or writes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from linx_trio._proto import etf
from linx_trio._proto.framing import encode_frame

NAMESPACES = ("user", "mount", "uts", "ipc", "cgroup", "net", "time", "pid")
STAGES = (
    "request", "fork", "cgroup", "clone",
    *(f"open_ns_{name}" for name in NAMESPACES), *(f"setns_{name}" for name in NAMESPACES),
    "unshare", "time_offsets", "stdio", "new_session", "uid_map", "gid_map", "mount", "pivot_root", "sysctl", "umask",
    "nice", "rlimit", "oom_score_adj", "cpu_affinity",
    "hostname", "domainname", "setgroups", "setgid", "setuid", "chdir",
    "cap_drop_bounding", "cap_set_thread", "cap_set_ambient", "no_new_privs", "seccomp_install", "netlink", "execve",
)  # fmt: skip
STEPS = (
    "own_uid_map", "own_gid_map", "unshare", "setns", "net_of_init", "time_offsets", "private_mounts", "keep_terminal",
    "controlling_terminal", "umask", "nice", "rlimit", "oom_score_adj",
    "cpu_affinity", "hostname", "domainname", "sysctl", "mount_root", "mount_bind", "mount_new", "mount_remount",
    "mount_move", "mount_umount", "mount_protect", "mount_mask",
    "mount_propagation", "make_dir", "make_file", "make_symlink", "pivot_root",
    "name_terminal", "terminal_owner", "dumpable", "netlink", "cap_drop_bounding", "securebits", "setgroups", "setgid",
    "setuid",
    "cap_set_thread", "cap_set_ambient", "chdir", "chdir_again", "no_new_privs", "seccomp",
)  # fmt: skip
COMMANDS = ("proceed", "abort", "signal", "kill", "shutdown", "steps", "release")

KEEPER = ("netlink", "cgroup", "will", "revoke")
"""What a keeper is told about, and how."""

CHECKPOINT = "checkpoint"
"""The element of `Spawn.steps` where the child parks."""

CWD = "cwd"
"""The "number" in `Spawn.fds` of the fd that is the caller's working directory."""

TARGET = "target"
"""The "number" of the fd that is ``/proc/<pid>`` of the process whose namespaces are entered."""

CGROUP = "cgroup"
"""The "number" of the fd that is the directory of the cgroup to start in."""

CGROUP_PARENT = "cgroup_parent"
"""The "number" of the fd that is the directory which a session's own cgroup is in, see `Spawn.own_cgroup`."""

NULL = "null"
"""With a number in `Spawn.fds`: that is ``/dev/null``, and no fd travels for it."""

Target = int | str | tuple[str, int]
"""What an element of `Spawn.fds` is."""

UNLIMITED = -1
"""``RLIM_INFINITY`` in an ``rlimit`` step."""

Step = tuple[Any, ...] | str


def optional(step: Step) -> Step:
    """The same step; a refusal is reported as `Degraded` and lived with."""
    return ("optional", step)


def _step_term(step: Step) -> Any:
    """Steps are tuples all through, so that they can be compared and remembered; an argument of several is a list
    there.
    """
    if isinstance(step, str):
        return step
    name, *arguments = step
    if name == "optional":
        return (name, _step_term(arguments[0]))
    return (name, *(list(value) if isinstance(value, tuple) else value for value in arguments))


# ---- requests and commands: to the agent -----------------------------------------------------------------------


class Spawn(NamedTuple):
    """The one request of a session. `fds` says what the fds that travel with it are, in their order.

    With `enter` the `namespaces` are not created but joined, those of the process whose directory in ``/proc`` is the
    fd `TARGET`; `None`: all that there are.
    """

    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    namespaces: tuple[str, ...] | None = ()
    fds: tuple[Target, ...] = ()
    steps: tuple[Step, ...] = (CHECKPOINT,)
    orphan_grace_ms: int | None = 5000
    """`None`: linger."""
    auto_proceed: bool = False
    new_session: bool = True
    quiet: bool = False
    """Nobody waits for `Started`: events may be held back a little, so that a short workload wakes us once."""
    enter: bool = False
    init: bool = False
    """The agent is pid 1 of the fresh PID namespace, the workload its child."""
    own_cgroup: bytes | None = None
    """The name of the fd `CGROUP` below `CGROUP_PARENT`: it is this session's alone, and the agent removes it."""

    @property
    def kind(self) -> str:
        return "enter" if self.enter else "spawn"

    def term(self) -> Any:
        return (
            self.kind,
            {
                "argv": list(self.argv),
                "env": list(self.env),
                "namespaces": "all" if self.namespaces is None else list(self.namespaces),
                "fds": list(self.fds),
                "steps": [_step_term(step) for step in self.steps],
                "orphan": "linger" if self.orphan_grace_ms is None else ("kill", self.orphan_grace_ms),
                "auto_proceed": self.auto_proceed,
                "new_session": self.new_session,
                "quiet": self.quiet,
                "init": self.init,
                **({} if self.own_cgroup is None else {"own_cgroup": self.own_cgroup}),
            },
        )

    def frame(self) -> bytes:
        """The frame of `term`, put together from parts: only argv differs from one spawn to the next, as a rule, and
        the encodings of the environment and of all the rest are remembered."""
        same = Spawn((), (), **{name: getattr(self, name) for name in _REST})
        own = b"" if self.own_cgroup is None else _pair("own_cgroup", self.own_cgroup)
        pairs = len(_REST) + (3 if own else 2)
        parts = (_HEADS[self.kind], pairs.to_bytes(4, "big"), _pair("argv", list(self.argv)), _encoded_env(self.env))
        return encode_frame(b"".join(parts) + own + _encoded_rest(same))


_REST = ("namespaces", "fds", "steps", "orphan_grace_ms", "auto_proceed", "new_session", "quiet", "init")
_HEADS = {kind: etf.encode((kind, {}))[:-4] for kind in ("spawn", "enter")}
"""All that stands before the number of the map's pairs."""


def _pair(key: str, value: Any) -> bytes:
    """A key and its value as they stand in a map: without the version byte."""
    return etf.encode(key)[1:] + etf.encode(value)[1:]


@functools.lru_cache(maxsize=16)
def _encoded_env(env: tuple[bytes, ...]) -> bytes:
    return _pair("env", list(env))


@functools.lru_cache(maxsize=64)
def _encoded_rest(spawn: Spawn) -> bytes:
    options = spawn.term()[1]
    return b"".join(_pair(key, value) for key, value in options.items() if key not in ("argv", "env"))


def _frame(term: Any) -> bytes:
    return encode_frame(etf.encode(term))


PROCEED = _frame("proceed")
ABORT = _frame("abort")
KILL = _frame("kill")
RELEASE = _frame("release")


def signal(number: int) -> bytes:
    """The frame of ``{signal, Number}``."""
    return _frame(("signal", number))


def shutdown(grace_ms: int) -> bytes:
    """The frame of ``{shutdown, Milliseconds}``: SIGTERM, so long, SIGKILL to all; 0 is SIGKILL at once."""
    return _frame(("shutdown", grace_ms))


SHUTDOWN = shutdown(0)


def steps(batch: Sequence[Step]) -> bytes:
    """The frame of ``{steps, List}``, for a parked child. It is answered by `Stepped` or `Remains`."""
    return _frame(("steps", [_step_term(step) for step in batch]))


def keep(kind: str) -> bytes:
    """The frame of ``{keep, Kind}``, the request to a keeper; with one fd: a netlink socket, a cgroup's directory."""
    return _frame(("keep", kind))


def will(number: int, data: bytes) -> bytes:
    """The frame of ``{will, Number, Bytes}``: what a keeper does when this side is gone."""
    return _frame(("will", number, data))


def revoke(number: int) -> bytes:
    """The frame of ``{revoke, Number}``."""
    return _frame(("revoke", number))


# ---- events: from the agent ------------------------------------------------------------------------------------


class Spawned(NamedTuple):
    """``clone3(2)`` has returned. Owns one fd: the workload's pidfd."""

    host_pid: int


class Parked(NamedTuple):
    child_pid: int


class Started(NamedTuple):
    """``execve(2)`` has succeeded."""


class Exit(NamedTuple):
    code: int


class Kill(NamedTuple):
    signum: int


class Abortion(NamedTuple):
    child_pid: int


class Idle(NamedTuple):
    """Nothing is left of the session that has ended, and the monitor waits for another request."""


class Refusal(NamedTuple):
    """``{error, Errno, Stage, Index}``: the end of a session that could not start. `step` is the number of the one
    refused, a standard fd's number at stage ``stdio``, or -1."""

    errno: int
    stage: str
    step: int


class Opened(NamedTuple):
    """A step of the oldest batch has opened something for this side; precedes `Stepped`. Owns that fd."""


class Stepped(NamedTuple):
    """A batch of steps has been done; the child is still parked."""


class Remains(NamedTuple):
    """A step of a batch was refused, those behind it were not tried; the child is still parked."""

    errno: int
    stage: str
    step: int


class Degraded(NamedTuple):
    """An optional step was refused; the session goes on."""

    errno: int
    stage: str
    step: int


class UsageReport(NamedTuple):
    """Precedes `Exit` and `Kill`. Times in microseconds, `max_rss` in bytes."""

    user_time: int
    system_time: int
    wall_time: int
    max_rss: int
    core_dumped: bool


class Began(NamedTuple):
    """`Spawned`, `Parked` and `Started` in one, where none of them was told by itself."""

    host_pid: int
    child_pid: int


class Over(NamedTuple):
    """`UsageReport` and `Exit` in one."""

    code: int
    user_time: int
    system_time: int
    wall_time: int
    max_rss: int


class Ran(NamedTuple):
    """All of a session that went its ordinary way, and of which nothing was told before: in the place of `Spawned`,
    `Parked`, `Started`, `UsageReport` and `Exit`. There is no pidfd: the process is gone."""

    host_pid: int
    child_pid: int
    code: int
    user_time: int
    system_time: int
    wall_time: int
    max_rss: int


class Lost(NamedTuple):
    """Said by the zygote: the monitor died by force, and what it left has been killed."""

    status: int


class Hello(NamedTuple):
    """The zygote's only word on its control socket."""

    version: bytes
    source_hash: bytes
    supported: bool


Message = (
    Spawned
    | Parked
    | Opened
    | Stepped
    | Started
    | Exit
    | Kill
    | Abortion
    | Idle
    | Refusal
    | Remains
    | Degraded
    | UsageReport
    | Began
    | Over
    | Ran
    | Lost
)

# How an event is written: the name under which --describe lists it, the class, and what its fields may be: a range of
# integers, or a type. A name that is not in _PLAIN stands behind `status`.
_Field = range | type
_PID = range(1, 2**31)
_ERRNO = range(1, 4096)  # MAX_ERRNO of the kernel
_INDEX = range(-1, 2**31)
_AMOUNT = range(2**63)
_STATUS: Mapping[str, tuple[Callable[..., Message], tuple[_Field, ...]]] = {
    "spawned": (Spawned, (_PID,)),
    "ready": (Parked, (_PID,)),
    "opened": (Opened, ()),
    "stepped": (Stepped, ()),
    "running": (Started, ()),
    "exited": (Exit, (range(256),)),
    "signaled": (Kill, (range(1, 65),)),
    "aborted": (Abortion, (range(2**31),)),  # 0: before there was a child
    "idle": (Idle, ()),
}
_PLAIN: Mapping[str, tuple[Callable[..., Message], tuple[_Field, ...]]] = {
    "error": (Refusal, (_ERRNO, str, _INDEX)),
    "remains": (Remains, (_ERRNO, str, _INDEX)),
    "degraded": (Degraded, (_ERRNO, str, _INDEX)),
    "lost": (Lost, (range(-64, 256),)),
    "usage": (UsageReport, (_AMOUNT, _AMOUNT, _AMOUNT, _AMOUNT, bool)),
    "began": (Began, (_PID, _PID)),
    "over": (Over, (range(256), _AMOUNT, _AMOUNT, _AMOUNT, _AMOUNT)),
    "ran": (Ran, (_PID, _PID, range(256), _AMOUNT, _AMOUNT, _AMOUNT, _AMOUNT)),
}
EVENTS = (*_STATUS, *_PLAIN)

FDS_OWNED: Mapping[type, int] = {Spawned: 1, Began: 1, Opened: 1}
"""How many fds travel with an event; none where it is not listed."""


class Nonsense(Exception):
    """A term, or bytes, that no agent of this version says."""

    def __init__(self, what: str, term: Any = None) -> None:
        super().__init__(what, term)
        self.what = what
        self.term = term

    def __str__(self) -> str:
        return f"the agent spoke nonsense: {self.what}"


def show(term: Any) -> str:
    """A term or message for an error's text: short, and printable whatever is in it."""
    try:
        return f"{term!r:.200}"
    except ValueError:  # an integer too long to be printed (sys.set_int_max_str_digits)
        return f"a {type(term).__name__} with an enormous number in it"


def _fits(value: Any, kind: _Field) -> bool:
    return type(value) is int and value in kind if isinstance(kind, range) else type(value) is kind


def _fields_match(values: Sequence[Any], kinds: tuple[_Field, ...]) -> bool:
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def parse_event(payload: bytes) -> Message:
    """The event in a frame's payload, or `Nonsense`."""
    usual = _USUAL.get(payload[:_NAMED])
    if usual is not None:
        cls, match = usual
        found = match(payload)
        if found is not None:
            return cls(*[int.from_bytes(digits[1:], "big") for digits in found.groups()])
    return _parse_short_event(payload) if len(payload) <= _SHORT else _parse_event(payload)


_SHORT = 64  # bytes; most events are shorter, and many are the same in each session
_PID_BYTES = rb"(a[^\0]|b(?!\0\0\0\0)[\0-\x7f]...)"  # SMALL_INTEGER_EXT, INTEGER_EXT
_AMOUNT_BYTES = rb"(a.|b[\0-\x7f]...)"
_NAMED = 8  # bytes, of which the last ones belong to the name


def _usual(head: bytes, fields: bytes, cls: Callable[..., Message]) -> tuple[bytes, tuple[Callable[..., Message], Any]]:
    return head[:_NAMED], (cls, re.compile(re.escape(head) + fields, re.DOTALL).fullmatch)


_USUAL: Mapping[bytes, tuple[Callable[..., Message], Any]] = dict(
    (
        _usual(b"\x83h\x03w\x05began", 2 * _PID_BYTES, Began),
        _usual(b"\x83h\x06w\x04over", b"(a.)" + 4 * _AMOUNT_BYTES, Over),
        _usual(b"\x83h\x08w\x03ran", 2 * _PID_BYTES + b"(a.)" + 4 * _AMOUNT_BYTES, Ran),
    )
)
"""Events of each session, and never the same: as a rule they are written so."""


def _parse_event(payload: bytes) -> Message:
    try:
        term = etf.decode(payload)
    except etf.CodecError as exc:
        raise Nonsense(f"undecodable payload: {exc}", payload[:64]) from None
    match term if isinstance(term, tuple) else None:  # a sequence pattern would take a list too
        case ("status", str(name), *values) if name in _STATUS:
            cls, kinds = _STATUS[name]
            if _fields_match(values, kinds):
                return cls(*values)
        case (str(name), *values) if name in _PLAIN:
            cls, kinds = _PLAIN[name]
            if _fields_match(values, kinds):
                return cls(*values)
    raise Nonsense(f"unknown event {show(term)}", term)


_parse_short_event = functools.lru_cache(maxsize=256)(_parse_event)


def parse_hello(payload: bytes) -> Hello:
    """The zygote's greeting, or `Nonsense`."""
    try:
        term = etf.decode(payload)
    except etf.CodecError as exc:
        raise Nonsense(f"undecodable greeting: {exc}", payload[:64]) from None
    match term if isinstance(term, tuple) else None:
        case ("hello", bytes(version), bytes(source_hash), bool(supported)):
            return Hello(version, source_hash, supported)
    raise Nonsense(f"unknown greeting {show(term)}", term)
