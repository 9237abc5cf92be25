"""Seccomp filters: which syscalls a workload may make, decided before its first instruction (``seccomp(2)``).

A `Filter` is made here, by plain functions, and is data from then on: pass it as ``seccomp=`` of a workload, or install
it in a parked session. All but `from_bpf` compile with libseccomp, through pyseccomp: ``pip install
linx-trio[seccomp]``, and Debian's libseccomp2.

A filter is for one architecture, the one that it was compiled on. Others, and x32, are closed in all that is made here:
the process is killed.

It is installed as the very last act before ``execve(2)``, whatever the order of the calls, so nothing that the set-up
needs has to be allowed. ``execve`` itself does, and so does what a dynamic loader calls: a filter that is sure to
refuse ``execve`` is a `ValueError` before anything is started.

An `Action` is ``"allow"``, ``"log"`` (allow, and say so in the audit log), ``("errno", name_or_number)``, ``"trap"``
(SIGSYS, which can be handled), ``"kill_thread"`` or ``"kill_process"`` (SIGSYS, which cannot).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from linx_trio import _seccomp_bpf as bpf
from linx_trio import _seccomp_compile as compiler
from linx_trio import _seccomp_oci as oci
from linx_trio import _seccomp_profiles as profiles
from linx_trio._parked import as_verb, check_session
from linx_trio._seccomp_compile import Rule
from linx_trio._seccomp_filter import (
    FLAG_LOG,
    Action,
    Filter,
    action_number,
    check_filter,
    must_be_filter,
    native,
    refusal_of_execve,
    step_of,
    verdict_of,
)

if TYPE_CHECKING:
    from linx_trio._session import Session

__all__ = [
    "Action",
    "Filter",
    "allow_list",
    "default",
    "deny_list",
    "from_bpf",
    "from_oci",
    "install",
    "no_tty_injection",
    "verdict",
    "will_refuse_execve",
]


def allow_list(names: Iterable[str], default: Action = "kill_process", *, log: bool = False) -> Filter:
    """Allows these syscalls, whatever their arguments; `default` is done with all others.

    Args:
        names: as in ``syscalls(2)``. A name that only other architectures have means nothing here.
        default: what is done with the rest.
        log: have the kernel log what the filter refuses (``SECCOMP_FILTER_FLAG_LOG``).

    Raises:
        ValueError: for an unknown syscall, with the nearest name; for an unknown action.
        NotSupported: without pyseccomp or libseccomp.
    """
    number = action_number(default, "default")
    if number == bpf.ALLOW:
        raise ValueError(f"default={default!r}: then the list means nothing; a list of what is refused is deny_list()")
    rules = [Rule(syscall, bpf.ALLOW) for syscall in _numbers(names)]
    return Filter(compiler.compile_rules(number, rules), _flags(log), f"allow_list of {len(rules)}")


def deny_list(names: Iterable[str], action: Action = ("errno", "EPERM"), *, log: bool = False) -> Filter:
    """Allows all syscalls but these, with which `action` is done. Arguments and errors are those of `allow_list`.

    A list of what is refused ages: syscalls that kernels get later are allowed.
    """
    number = action_number(action, "action")
    if number == bpf.ALLOW:
        raise ValueError(f"action={action!r}: then nothing is denied")
    rules = [Rule(syscall, number) for syscall in _numbers(names)]
    return Filter(compiler.compile_rules(bpf.ALLOW, rules), _flags(log), f"deny_list of {len(rules)}")


def from_oci(
    path_or_dict: str | bytes | os.PathLike[Any] | Mapping[str, Any], *, capabilities: Iterable[Any] = ()
) -> Filter:
    """The filter of a JSON profile: of the OCI runtime specification, of Docker, or of Podman.

    - ``includes`` and ``excludes`` ask about this architecture, this kernel, and `capabilities`.
    - An error without ``errnoRet`` is EPERM. Where that, or another error than ENOSYS, is the default action, a syscall
      of Linux 5.1 or later whose number is above all those in the profile is ENOSYS, as with runc: its authors did not
      know it, and a libc has to be able to fall back.
    - Where several rules match a syscall, the strictest wins, as among several filters; of two errors the smaller.
    - A name that nobody knows is left out, as profiles list the syscalls of all kernels; but where that would allow
      what the profile refuses, it is a `ValueError`.
    - Other architectures stay closed, also those that the profile has.

    Args:
        path_or_dict: a file, or what is in it.
        capabilities: those that the workload will have, as `linx_trio.capabilities` takes them; by default none.

    Raises:
        OSError: for a file that cannot be read.
        TypeError, ValueError: naming the place in the profile, also for what cannot be had here: ``SCMP_ACT_NOTIFY``,
            ``SCMP_ACT_TRACE``, a flag, two comparisons of one argument in one rule, bits that are compared outside of
            their mask (``SCMP_CMP_MASKED_EQ``).
        NotSupported: without pyseccomp or libseccomp.
    """
    names = oci.capabilities_of(capabilities)
    if isinstance(path_or_dict, Mapping):
        profile, label = path_or_dict, "from_oci"
    elif isinstance(path_or_dict, (str, bytes, os.PathLike)):
        profile, label = oci.read_profile(path_or_dict), f"from_oci({os.fsdecode(path_or_dict)!r})"
    else:
        raise TypeError(f"a profile is a path or a mapping, not {path_or_dict!r}")
    machine = compiler.machine()
    return oci.compile_profile(
        profile, oci.Circumstances(machine, names, oci.kernel_version(os.uname().release)), label
    )


def from_bpf(program: bytes, *, log: bool = False) -> Filter:
    """A program that is compiled already: an array of ``struct sock_filter``. It needs no library.

    What it does with other architectures is its own affair. Raises `TypeError`, or `ValueError` for what the kernel
    would refuse, naming the instruction.
    """
    return Filter(program, _flags(log), "from_bpf")


def default(*, allow: Iterable[str] = (), log: bool = False) -> Filter:
    """What a contained program needs, and nothing that reaches around its container. Close to Docker's profile.

    Refused with EPERM: namespaces (``unshare``, ``setns``, ``clone`` with a ``CLONE_NEW*`` flag), mounts, kernel keys,
    ``bpf``, ``perf_event_open``, ``userfaultfd``, io_uring, modules, kexec, the clock, …; typing into the terminal
    (``TIOCSTI``, ``TIOCLINUX``); a `personality(2)` without its protections. Sockets are of the families UNIX, INET,
    INET6, NETLINK and PACKET, others are EAFNOSUPPORT. All that is unknown is ENOSYS, and so is ``clone3``, whose flags
    no filter can see. ``ptrace`` is allowed: it reaches what the workload may trace anyway.

    Args:
        allow: syscalls that are allowed too, whatever their arguments.
        log: as with `allow_list`.

    Raises:
        ValueError: for an unknown syscall.
        NotSupported: without pyseccomp or libseccomp.
    """
    names = _words(allow, "allow")
    for name in names:
        compiler.strict_number_of(name, "allow")
    more = f"allow={sorted(set(names))}" if names else ""
    return Filter(profiles.default(frozenset(names)), _flags(log), f"default({more})")


def no_tty_injection(*, log: bool = False) -> Filter:
    """Allows everything but typing into the terminal: ``TIOCSTI`` and ``TIOCLINUX`` (``ioctl_tty(2)``) are EPERM.

    For a workload that shares the caller's terminal. Raises `NotSupported` without pyseccomp or libseccomp.
    """
    return Filter(profiles.no_tty_injection(), _flags(log), "no_tty_injection()")


def will_refuse_execve(filter: Filter) -> bool | None:
    """Whether a workload cannot even start under it: ``execve(2)`` is refused, whatever its arguments.

    The program is evaluated, nothing is tried. `None` where it depends on the arguments, or on where no workload can
    run anyway (another system). Raises `TypeError` for what is no filter.
    """
    must_be_filter(filter, "filter")
    machine = native()
    return None if machine is None else refusal_of_execve(filter, machine)


def verdict(filter: Filter, syscall: str | int, *arguments: int) -> Action | None:
    """What the filter does with a syscall, as far as its arguments are given; `None` where it depends on the others.

    For testing one's own filters: the program is evaluated, nothing is tried. ``"trace"`` is an answer too, for a
    program that has it. A number needs no library. Arguments are as the kernel sees them, 64 bits each; with a sign or
    without. Raises as `allow_list`.
    """
    machine = native()
    must_be_filter(filter, "filter")
    if len(arguments) > 6:
        raise ValueError(f"a syscall has six arguments, not {len(arguments)}")
    for i, argument in enumerate(arguments):
        _bits(argument, f"arguments[{i}]", 64)
    if isinstance(syscall, bool) or not isinstance(syscall, int):
        number = compiler.strict_number_of(syscall, "syscall")
    else:
        number = _bits(syscall, "syscall", 32)
    if number < 0 and not isinstance(syscall, int):
        raise ValueError(f"this architecture has no syscall {syscall!r}")
    return None if machine is None else verdict_of(filter, number, arguments, machine)


async def install(session: Session, filter: Filter) -> None:
    """Gives a parked session its filter. The kernel gets it as the very last act before ``execve(2)``.

    Cancelling it stops the waiting only.

    Raises:
        TypeError, ValueError: it is no session, or no filter; it is sure to refuse ``execve``.
        SetupError: the kernel refuses it, stage ``seccomp_install``.
        AlreadyRunning, NotReady, NoProcess: the session is not parked.
    """
    checked = check_filter(filter, "filter")
    check_session(session)
    with as_verb("install"):
        await session.take_steps([step_of(checked)])


def _numbers(names: Any) -> list[int]:
    found = [compiler.strict_number_of(name, "names") for name in _words(names, "names")]
    return [number for number in dict.fromkeys(found) if number >= 0]


def _words(value: Any, name: str) -> list[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be an iterable of syscall names, not {value!r}")
    return list(value)


def _bits(value: Any, name: str, count: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not -(2 ** (count - 1)) <= value < 2**count:
        raise ValueError(f"{name} must have {count} bits at most, not {value!r}")
    return value


def _flags(log: Any) -> int:
    if not isinstance(log, bool):
        raise TypeError(f"log must be True or False, not {log!r}")
    return FLAG_LOG if log else 0
