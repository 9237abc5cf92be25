"""One check for each field of `Workload`: the value as it is kept, or a `TypeError` or `ValueError` that names it.

Nothing here asks the kernel anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import trio

from linx_trio._options import (
    DEVNULL,
    OPTIONAL,
    PASS_FDS_LIMIT,
    PIPE,
    RLIMITS,
    STDOUT,
    ConnectUnix,
    HasFileno,
    Kill,
    Linger,
    Namespace,
    Pty,
    Stdio,
    StdioSpec,
)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be str, bytes or a path, not {value!r}")
    try:
        text = os.fsdecode(value)
    except TypeError:  # a __fspath__ that returns something else
        raise TypeError(f"{name} must be str, bytes or a path, not {value!r}") from None
    if "\0" in text:
        raise ValueError(f"{name} contains a NUL byte: {value!r}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{name} cannot be encoded for the kernel: {value!r}") from None
    return text


def _argv(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(
            f"{name} must be a sequence of arguments, not {value!r}; for one without arguments write [{value!r}], "
            "for a shell command ['/bin/sh', '-c', command]"
        )
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of arguments, not {value!r}")
    if not value:
        raise ValueError(f"{name} is empty: it needs at least the program's name")
    arguments = tuple(_text(item, f"{name}[{i}]") for i, item in enumerate(value))
    if not arguments[0]:
        raise ValueError(f"{name}[0] is the empty string: it needs to be the program's name")
    return arguments


def _words(value: Any, name: str) -> Iterable[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be an iterable, not {value!r}; for a single one write {{{value!r}}}")
    return value


def _namespaces(value: Any, name: str) -> frozenset[str]:
    names = set()
    for item in _words(value, name):
        try:
            names.add(Namespace(item).value)
        except ValueError:
            known = ", ".join(member.value for member in Namespace)
            raise ValueError(f"unknown namespace {item!r}; there are: {known}") from None
    return frozenset(names)


def _env(value: Any, name: str) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping or None, not {value!r}")
    checked: dict[str, str] = {}
    for key, item in value.items():
        variable = _text(key, f"a name in {name}")
        if variable in checked:
            raise ValueError(f"{name} has the variable {variable!r} twice, the second time as {key!r}")
        if not variable or "=" in variable:
            raise ValueError(f"{name} has a variable whose name is empty or contains '=': {key!r}")
        checked[variable] = _text(item, f"{name}[{key!r}]")
    return MappingProxyType(checked)


def _cwd(value: Any, name: str) -> str | None:
    if value is None:
        return None
    text = _text(value, name)
    if not text:
        raise ValueError(f"{name} is the empty string")
    return text


_STREAM_KINDS = "INHERIT, DEVNULL, PIPE, ConnectUnix(path), an fd or an object with fileno()"


def _stream(value: Any, name: str) -> StdioSpec:
    if value is Stdio.PTY or isinstance(value, Pty):
        raise ValueError(f"{name}={value!r}: a terminal is all three streams, write stdio={value!r}")
    if isinstance(value, Stdio):
        if value is STDOUT and name != "stderr":
            raise ValueError(f"{name}=STDOUT: only stderr can be the same as stdout")
        return value
    if isinstance(value, ConnectUnix):
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be {_STREAM_KINDS}, not {value!r}")
    if isinstance(value, int) and value in _SUBPROCESS:
        return _stream(_SUBPROCESS[value], name)
    fileno_of(value, name)
    return cast("int | HasFileno", value)


def fileno_of(value: Any, name: str, kinds: str = _STREAM_KINDS) -> int:
    """The fd that `value` is or has. Raises `TypeError` or `ValueError`; whether it is open, only the kernel knows."""
    fd = value
    if not isinstance(value, int):
        if isinstance(value, type) or not callable(getattr(value, "fileno", None)):
            raise TypeError(f"{name} must be {kinds}, not {value!r}")
        try:
            fd = value.fileno()
        except Exception as exc:  # whatever it raises, it has no fd: closed, in memory, …
            raise ValueError(f"{name}={value!r} has no fd: {exc}") from None
    if isinstance(fd, bool) or not isinstance(fd, int) or not 0 <= fd < 2**31:
        what = "" if fd is value else f": its fileno() is {fd!r}"
        raise ValueError(f"{name}={value!r} is no fd{what}")
    return fd


_SUBPROCESS = {-1: PIPE, -2: STDOUT, -3: DEVNULL}
"""`subprocess.PIPE` and its like, for those who bring them along."""


def _stdio(value: Any, name: str) -> Stdio | Pty | None:
    if value is None or isinstance(value, Pty):
        return value
    if value is Stdio.PTY:
        return Pty()
    if isinstance(value, int) and not isinstance(value, bool):
        value = _SUBPROCESS.get(value, value)
    if not isinstance(value, Stdio) or value is STDOUT:
        kinds = "INHERIT, DEVNULL, PIPE, PTY or Pty(rows, cols)"
        raise TypeError(f"{name} must be {kinds}, for all three streams, not {value!r}")
    return value


def _bool(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _owner(value: Any, name: str) -> Any:
    if value is not None and not isinstance(value, trio.MemorySendChannel):
        raise TypeError(f"{name} must be the sending end of trio.open_memory_channel(), not {value!r}")
    return value


def _orphan_policy(value: Any, name: str) -> Kill | Linger:
    if not isinstance(value, (Kill, Linger)):
        raise TypeError(f"{name} must be linx.Kill(grace=...) or linx.LINGER, not {value!r}")
    return value


def _shutdown(value: Any, name: str) -> Kill:
    if not isinstance(value, Kill):
        raise TypeError(f"{name} must be linx.Kill(grace=...), not {value!r}: leaving the block leaves nothing running")
    return value


def _integer(low: int, high: int) -> Callable[[Any, str], int]:
    def check(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, not {value!r}")
        return value

    return check


_id = _integer(0, 2**32 - 2)


def _or_none(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, name: None if value is None else check(value, name)


def _groups(value: Any, name: str) -> tuple[int, ...]:
    groups = tuple(_id(item, f"{name}[{i}]") for i, item in enumerate(_words(value, name)))
    if len(groups) > 65536:
        raise ValueError(f"{name} has {len(groups)} entries; setgroups(2) takes 65536")
    return groups


def _rlimits(value: Any, name: str) -> Mapping[str, tuple[int, int]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping like {{'nofile': (soft, hard)}}, not {value!r}")
    checked = {}
    for limit, pair in value.items():
        if limit not in RLIMITS:
            raise ValueError(f"unknown resource limit {limit!r}; there are: {', '.join(RLIMITS)}")
        if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)) or len(pair) != 2:
            raise TypeError(f"{name}[{limit!r}] must be a pair (soft, hard), not {pair!r}")
        soft, hard = (_integer(-1, 2**63 - 1)(item, f"{name}[{limit!r}]") for item in pair)
        if hard != -1 and (soft == -1 or soft > hard):
            raise ValueError(f"{name}[{limit!r}]: the soft limit {soft} is above the hard limit {hard}")
        checked[limit] = (soft, hard)
    return MappingProxyType(checked)


def _hostname(value: Any, name: str) -> str:
    text = _text(value, name)
    if not 1 <= len(os.fsencode(text)) <= 64:
        raise ValueError(f"{name} must have 1 to 64 bytes (sethostname(2)), not {value!r}")
    return text


_FDS = "fds, or objects with fileno()"


def _pass_fds(value: Any, name: str) -> tuple[int | HasFileno, ...]:
    items = tuple(_words(value, name))
    numbers = set()
    for item in items:
        if isinstance(item, bool):
            raise TypeError(f"{name} must be {_FDS}, not {item!r}")
        fd = fileno_of(item, name, _FDS)
        if fd < 3:
            raise ValueError(f"{name} has {fd}, a standard stream: use stdin=, stdout= or stderr=")
        if fd in numbers:
            raise ValueError(f"{name} names the fd {fd} twice: {items!r}")
        numbers.add(fd)
    if len(items) > PASS_FDS_LIMIT:
        raise ValueError(f"{name} has {len(items)} fds; {PASS_FDS_LIMIT} can be passed")
    return items


def _optional(value: Any, name: str) -> frozenset[str]:
    names = tuple(_words(value, name))
    for item in names:
        if not isinstance(item, str) or item not in OPTIONAL:
            raise ValueError(f"{name} has {item!r}; what can be given up is: {', '.join(sorted(OPTIONAL))}")
    return frozenset(names)


def _domainname(value: Any, name: str) -> str:
    text = _text(value, name)
    if len(os.fsencode(text)) > 64:
        raise ValueError(f"{name} must have at most 64 bytes (setdomainname(2)), not {value!r}")
    return text


def _cpu_affinity(value: Any, name: str) -> frozenset[int]:
    numbers = frozenset(_integer(0, 8191)(item, name) for item in _words(value, name))
    if not numbers:
        raise ValueError(f"{name} is empty: it needs at least one CPU")
    return numbers


def _sysctls(value: Any, name: str) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping like {{'net.ipv4.ip_forward': 1}}, not {value!r}")
    checked: dict[str, str] = {}
    spelled: dict[str, Any] = {}
    for key, setting in value.items():
        path = _sysctl_path(_text(key, f"a name in {name}"), name)
        if isinstance(setting, bool) or not isinstance(setting, (str, int)):
            raise TypeError(f"{name}[{key!r}] must be a str or an int, not {setting!r}")
        if setting == "":
            raise ValueError(f"{name}[{key!r}] is the empty string, which the kernel takes no notice of")
        if path in checked:
            raise ValueError(f"{name} has {spelled[path]!r} and {key!r}, which are the same")
        spelled[path] = key
        checked[path] = _text(str(setting), f"{name}[{key!r}]")
    return MappingProxyType(checked)


def _sysctl_path(key: str, name: str) -> str:
    """With slashes. Where dots separate, a slash is a dot of the name (``net.ipv4.conf.eth0/1``), see ``sysctl(8)``."""
    first = min((key.find(sign) for sign in "./" if sign in key), default=-1)
    path = key.translate({ord("."): "/", ord("/"): "."}) if first >= 0 and key[first] == "." else key
    if not path or any(part in ("", ".", "..") for part in path.split("/")) or len(path) > 400:
        raise ValueError(f"{name} has {key!r}, which is no name of a sysctl")
    if sysctl_namespace(path) is None:
        raise ValueError(f"{name} has {key!r}, which belongs to no namespace: it would change the host")
    return path


def _time_offsets(value: Any, name: str) -> Mapping[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping like {{'boottime': 3600}}, not {value!r}")
    for clock, seconds in value.items():
        if clock not in ("monotonic", "boottime"):
            raise ValueError(f"{name} has {clock!r}; the clocks that can have an offset are: boottime, monotonic")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"{name}[{clock!r}] must be a number of seconds, not {seconds!r}")
        if not abs(seconds) < 2**33:  # some 272 years; the kernel takes half of that (KTIME_MAX / 2)
            raise ValueError(f"{name}[{clock!r}] must be less than 2**33 seconds, not {seconds!r}")
    return MappingProxyType(dict(value))


_IPC_SYSCTLS = ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")


def sysctl_namespace(path: str) -> str | None:
    """The kind of namespace that a sysctl belongs to; `None` for those of the whole machine."""
    match path.split("/"):
        case ["net", *_]:
            return "net"
        case ["kernel", name] if name in _IPC_SYSCTLS:
            return "ipc"
        case ["fs", "mqueue", _]:
            return "ipc"
        case ["user", name] if name.startswith("max_"):
            return "user"
    return None


# These modules are large, and most workloads need none of them: they are imported when somebody does.


def _user(value: Any, name: str) -> Any:
    from linx_trio._idmaps import check_user

    return check_user(value, name)


def _root(value: Any, name: str) -> Any:
    from linx_trio._mount_tree import check_root

    return check_root(value, name)


def _mounts(value: Any, name: str) -> Any:
    from linx_trio._mount_tree import check_mounts

    return check_mounts(value, name)


def _cgroup(value: Any, name: str) -> Any:
    from linx_trio._limits import check_cgroup

    return check_cgroup(value, name)


def _limits(value: Any, name: str) -> Any:
    from linx_trio._limits import check_limits

    return check_limits(value, name)


def _capabilities(value: Any, name: str) -> Any:
    from linx_trio._capabilities import check_policy

    return check_policy(value, name)


def _seccomp(value: Any, name: str) -> Any:
    from linx_trio._seccomp_filter import check_filter

    return None if value is None else check_filter(value, name)


CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
    "argv": _argv,
    "namespaces": _namespaces,
    "env": _env,
    "cwd": _cwd,
    "stdin": _stream,
    "stdout": _stream,
    "stderr": _stream,
    "stdio": _stdio,
    "auto_proceed": _bool,
    "owner": _owner,
    "orphan_policy": _orphan_policy,
    "shutdown": _shutdown,
    "uid": _or_none(_id),
    "gid": _or_none(_id),
    "groups": _or_none(_groups),
    "umask": _or_none(_integer(0, 0o777)),
    "nice": _integer(-40, 40),
    "rlimits": _rlimits,
    "oom_score_adj": _or_none(_integer(-1000, 1000)),
    "cpu_affinity": _or_none(_cpu_affinity),
    "hostname": _or_none(_hostname),
    "domainname": _or_none(_domainname),
    "sysctls": _sysctls,
    "time_offsets": _time_offsets,
    "init": _bool,
    "new_session": _bool,
    "pass_fds": _pass_fds,
    "no_new_privs": _bool,
    "user": _user,
    "root": _root,
    "mounts": _mounts,
    "cgroup": _cgroup,
    "limits": _limits,
    "capabilities": _capabilities,
    "seccomp": _seccomp,
    "optional": _optional,
}
