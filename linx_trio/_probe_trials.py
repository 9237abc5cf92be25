"""What is tried with processes, namespaces, ids, mounts and privileges. See `_probe_bench`."""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial

from linx_trio import capabilities, seccomp
from linx_trio._capabilities import describe, keep
from linx_trio._cause_kernel import unsealed
from linx_trio._cause_programs import REINSTALL
from linx_trio._cause_rights import more_rights
from linx_trio._idmaps import IdMap, Maps
from linx_trio._mount_entries import Cgroup2, Devpts, Proc, Sysfs, Tmpfs
from linx_trio._mount_steps import Entry
from linx_trio._mount_tree import Overlay
from linx_trio._options import DEVNULL, PTY, RLIMITS
from linx_trio._probe_bench import Bench, Refused, Trial
from linx_trio._run import enter, sandbox
from linx_trio._subids import subids
from linx_trio.errors import AgentError, Hint

if sys.platform != "win32":
    import resource

AGENT, NAMESPACES, IDS, MOUNTS = "the agent", "namespaces", "ids", "mounts in fresh namespaces"
PRIVILEGES, ALL = "limits and privileges", "all together"
KINDS = ("mount", "uts", "ipc", "cgroup", "net", "pid", "time")

# ---- the agent -------------------------------------------------------------------------------------------------------


async def _agent_runs(bench: Bench) -> str:
    """It is there, fresh and executable, and executes something: itself, which is there for sure."""
    async with bench.parked(auto_proceed=True) as session:
        await session.wait()
    if session.returncode != 0:
        raise AgentError(f"the agent {bench.agent} ended with {session.outcome}; {REINSTALL}", bench.agent)
    return bench.agent


async def _parks(bench: Bench) -> None:
    await bench.executed()


async def _terminal(bench: Bench) -> str:
    async with bench.parked(stdio=PTY) as session:
        return f"{session.pty.winsize.cols}x{session.pty.winsize.rows} at first"


_MFD_EXEC, _MFD_ALLOW_SEALING = 0x10, 2


async def _from_memory(bench: Bench) -> None:
    """A program in memory is executed, as the agent executes itself."""
    try:
        fd = os.memfd_create("linx-probe", _MFD_EXEC | _MFD_ALLOW_SEALING)
    except PermissionError:
        raise Refused(unsealed(bench.machine)) from None
    except OSError:  # Linux before 6.3 knows no other ones
        fd = os.memfd_create("linx-probe", _MFD_ALLOW_SEALING)
    try:
        _copy(bench.agent, fd)
        copy = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)  # what is open for writing is not executed
    finally:
        os.close(fd)
    try:
        await bench.executed(f"/proc/self/fd/{copy}", pass_fds=[copy])
    finally:
        os.close(copy)


def _copy(path: str, fd: int) -> None:
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.sendfile(fd, source, 0, os.fstat(source).st_size)
    finally:
        os.close(source)


async def _enters(bench: Bench) -> None:
    async with bench.parked() as target, enter(target, [bench.agent, "--describe"], stdio=DEVNULL, cwd="/") as session:
        await session.proceed()
        await session.wait()
    if session.returncode != 0:
        raise Refused(Hint("ended", f"a program that was run inside ended with {session.outcome}"))


AGENT_TRIALS = (
    Trial("agent", AGENT, "the agent is there, fresh, and can be executed", _agent_runs, needs=()),
    Trial("spawn", AGENT, "a child is parked, and executes a program then", _parks, needs=("agent",)),
    Trial("pty", AGENT, "a workload on a terminal", _terminal),
    Trial("enter", AGENT, "a second process in another's namespaces", _enters, kinds=("mount", "uts", "pid")),
)

# ---- namespaces ------------------------------------------------------------------------------------------------------


async def _granted(bench: Bench) -> None:
    """Its namespaces are all that is asked for."""
    async with bench.parked():
        pass


async def _as_root(kind: str, bench: Bench) -> None:
    async with bench.parked(namespaces={kind}):
        pass


async def _user(bench: Bench) -> None:
    from linx_trio._idmaps import root_map

    async with bench.parked(user=root_map()):
        pass


async def _time_offsets(bench: Bench) -> None:
    async with bench.parked(time_offsets={"monotonic": 3600.0, "boottime": 3600.0}):
        pass


NAMESPACE_TRIALS = (
    Trial("user", NAMESPACES, "a user namespace: the rights for all others, without root", _user),
    *(
        Trial(kind, NAMESPACES, f"a fresh {kind} namespace, together with a user namespace", _granted, kinds=(kind,))
        for kind in KINDS
    ),
    *(
        Trial(
            f"root:{kind}", NAMESPACES, f"a fresh {kind} namespace by the caller's own rights", partial(_as_root, kind)
        )
        for kind in KINDS
    ),
    Trial("time-offsets", NAMESPACES, "clocks of its own", _time_offsets, kinds=("time",)),
)

# ---- ids -------------------------------------------------------------------------------------------------------------

_WANTED = 65536
"""Ids that a whole distribution takes."""


async def _id_range(bench: Bench) -> str:
    if bench.machine.has("CAP_SETUID") and bench.machine.has("CAP_SETGID"):
        maps, how = Maps(uid=(0, 0, _WANTED), gid=(0, 0, _WANTED), setgroups="allow"), "by CAP_SETUID and CAP_SETGID"
    else:
        granted = subids()
        maps = Maps(uid=_filled(os.geteuid(), granted.uid), gid=_filled(os.getegid(), granted.gid), setgroups="allow")
        how = "by newuidmap(1) and newgidmap(1)"
    async with bench.parked(user=maps):
        return f"{_WANTED} ids, {how}"


def _filled(own: int, granted: tuple[range, ...]) -> list[IdMap]:
    """One's own id as root, and then what is granted, up to the number that is wanted. What is missing is asked for
    all the same, so that who refuses it says what there is.
    """
    lines, inside, after = [IdMap(0, own, 1)], 1, 100000
    for each in granted:
        count = min(len(each), _WANTED - inside)
        if count:
            lines.append(IdMap(inside, each.start, count))
            inside, after = inside + count, each.stop
    if inside < _WANTED:
        lines.append(IdMap(inside, after, _WANTED - inside))
    return lines


ID_TRIALS = (Trial("id-range", IDS, f"{_WANTED} ids in a user namespace", _id_range, needs=("user",)),)

# ---- mounts ----------------------------------------------------------------------------------------------------------


async def _mounted(entry: Entry, bench: Bench) -> None:
    async with bench.parked(root=Tmpfs("/"), mounts=[entry]):
        pass


async def _overlay(bench: Bench) -> None:
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None  # on an overlay there can be no upper one
    with tempfile.TemporaryDirectory(prefix="linx-probe-", dir=place) as directory:
        lower, upper, work = (os.path.join(directory, name) for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            os.mkdir(path)
        await _mounted(Overlay("/overlay", [lower], upper, work, userxattr=os.geteuid() != 0), bench)


def _mount(name: str, title: str, run: Callable[[Bench], Awaitable[None]], *kinds: str) -> Trial:
    needs = ("spawn",) if name == "tmpfs" else ("mount:tmpfs",)
    return Trial(f"mount:{name}", MOUNTS, title, run, needs, ("mount", *kinds))


MOUNT_TRIALS = (
    _mount("tmpfs", "an empty root directory", partial(_mounted, Tmpfs("/tmp"))),
    _mount("proc", "the /proc of a fresh PID namespace", partial(_mounted, Proc()), "pid"),
    _mount("sysfs", "the /sys of a fresh network namespace", partial(_mounted, Sysfs()), "net"),
    _mount("devpts", "terminals of its own", partial(_mounted, Devpts())),
    _mount("cgroup2", "the cgroups of a fresh cgroup namespace", partial(_mounted, Cgroup2()), "cgroup"),
    _mount("overlay", "directories on top of each other", _overlay),
)

# ---- limits and privileges -------------------------------------------------------------------------------------------

_ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


async def _limits(bench: Bench) -> None:
    async with bench.parked(rlimits={"core": (0, 0)}):
        pass


async def _higher_limits(bench: Bench) -> str | None:
    for name in ("memlock", "nproc", "msgqueue", "sigpending", "rtprio", "nice", "stack", "core"):
        soft, hard = resource.getrlimit(RLIMITS[name])
        if hard != resource.RLIM_INFINITY:
            async with bench.parked(rlimits={name: (soft, hard + 1)}):
                return None
    return "no limit is in force"


async def _libseccomp(bench: Bench) -> None:
    seccomp.deny_list(["ptrace"])


async def _filter(bench: Bench) -> None:
    await bench.executed(seccomp=seccomp.from_bpf(_ALLOW_ALL))


async def _capabilities(bench: Bench) -> None:
    async with bench.parked(capabilities=keep(()), no_new_privs=True) as session:
        await session.proceed()


async def _all_capabilities(bench: Bench) -> str | None:
    own = capabilities.read("/proc/self")
    lacking = frozenset(range(capabilities.last_cap() + 1)) - own.effective
    if not lacking:
        return "in a user namespace, not on the machine" if bench.machine.is_nested() else None
    why = f"this process lacks {describe(lacking)}" if own.effective else "this process has no capabilities"
    inside = "in a user namespace of its own a workload has all of them, for what belongs to that namespace"
    raise Refused(Hint("capability", why, f"{more_rights('capabilities')}; {inside}"))


PRIVILEGE_TRIALS = (
    Trial("rlimits", PRIVILEGES, "lower limits (getrlimit(2))", _limits),
    Trial("rlimits:raise", PRIVILEGES, "higher limits than the caller's", _higher_limits),
    Trial("seccomp", PRIVILEGES, "a seccomp filter", _filter),
    Trial("seccomp:names", PRIVILEGES, "filters made of names: libseccomp", _libseccomp, needs=()),
    Trial("capabilities", PRIVILEGES, "a workload without capabilities", _capabilities, kinds=()),
    Trial(
        "capabilities:all", PRIVILEGES, "all that this kernel has, for the caller itself", _all_capabilities, needs=()
    ),
    Trial("memfd", PRIVILEGES, "programs that are executed from memory", _from_memory),
)

# ---- all together ----------------------------------------------------------------------------------------------------


async def _sandbox(bench: Bench) -> None:
    async with sandbox(["true"], stdio=DEVNULL) as session:
        await session.proceed()
        await session.wait()
    if session.returncode != 0:
        raise Refused(Hint("ended", f"true(1) in a sandbox ended with {session.outcome}"))


SANDBOX_TRIALS = (Trial("sandbox", ALL, "linx.sandbox: a program that nobody has read", _sandbox),)
