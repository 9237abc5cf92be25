"""From the words of a command line to the values of a `Workload`'s fields. Pure, except for names of accounts.

Everything wrong is a `ValueError` whose text says what would be right; whose option it is, the caller adds.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from linx_trio._options import OPTIONAL, RLIMITS

_UNLIMITED = ("unlimited", "infinity", "-1")


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for what is close to something known, else all that there is."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(names)}"


def number(text: str) -> int:
    """A whole number, decimal; or hexadecimal, octal or binary with 0x, 0o or 0b."""
    try:
        return int(text, 0) if text.lower().startswith(("0x", "0o", "0b")) else int(text, 10)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


def octal(text: str) -> int:
    """A mode as ``umask(1)`` has it: octal digits."""
    if not re.fullmatch(r"(?:0o)?[0-7]{1,4}", text):
        raise ValueError(f"{text!r} is no mode: it is up to four octal digits, like 022")
    return int(text.removeprefix("0o"), 8)


def tmpfs_size(text: str) -> str:
    """What a tmpfs may hold, as ``tmpfs(5)`` has it: bytes, or with k, m, g, or %."""
    if not re.fullmatch("0*[1-9][0-9]*[kKmMgG%]?", text, re.ASCII):
        raise ValueError(f"{text!r} is no size: it is bytes, or like 64M or 50%")
    return text


def volume(text: str) -> tuple[str, str, bool]:
    """``SRC:DST[:ro]``, as ``docker run -v`` has it: the source, where, and whether it is read-only."""
    src, _, rest = text.partition(":")
    dst, _, options = rest.partition(":")
    if not src or not dst:
        raise ValueError(f"{text!r} is not of the form SRC:DST or SRC:DST:ro")
    if not src.startswith(("/", ".", "~")):
        raise ValueError(f"{text!r}: there are no volumes by name here; for a directory write ./{text}")
    if not dst.startswith("/"):
        raise ValueError(f"{text!r}: DST is a path inside, from / on")
    if options not in ("", "ro", "rw"):
        raise ValueError(f"{text!r} ends in {options!r}; there are: ro, rw")
    return src, dst, options == "ro"


def seconds(text: str) -> float:
    """A duration as ``timeout(1)`` has it: ``1.5``, ``90s``, ``5m``, ``2h``, ``1d``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)([smhd]?)", text, re.ASCII)
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else math.inf
    if not value <= 4e6:
        raise ValueError(f"{text!r} is no duration: it is a number of seconds, or like 90s, 5m, 2h (at most 4e6 s)")
    return value


def pair(text: str, what: str = "NAME=VALUE") -> tuple[str, str]:
    """Name and value at the first equals sign."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ValueError(f"{text!r} is not of the form {what}")
    return name, value


def environment(
    caller: Mapping[str, str], *, clear: bool, given: Sequence[str], unset: Sequence[str]
) -> dict[str, str] | None:
    """What ``--clearenv``, ``--env`` and ``--unsetenv`` make of the caller's; `None`: nothing was said.

    ``--env NAME`` without a value is the caller's own, also after ``--clearenv``; where the caller has none, nothing.
    """
    if not clear and not given and not unset:
        return None
    found = {} if clear else dict(caller)
    for name in unset:
        if not name or "=" in name:
            raise ValueError(f"{name!r} is no name of a variable")
        found.pop(name, None)
    for item in given:
        name, sign, value = item.partition("=")
        if not name:
            raise ValueError(f"{item!r} is not of the form NAME=VALUE or NAME")
        if name in unset:
            raise ValueError(f"{name!r} is also in --unsetenv")
        if sign:
            found[name] = value
        elif name in caller:
            found[name] = caller[name]
    return found


def env_file(text: str) -> list[str]:
    """The variables of a ``docker run --env-file``: lines ``NAME=VALUE`` or ``NAME``, taken literally, without quotes
    or expansions; comments begin with #.
    """
    found = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        item = line.removesuffix("\r").lstrip(" \t")
        if not item or item.startswith("#"):
            continue
        name = item.partition("=")[0]
        if not name:
            raise ValueError(f"line {number}: {item!r} is not of the form NAME=VALUE or NAME")
        if any(c.isspace() for c in name):
            hint = " (as there is no shell, also no 'export')" if name.startswith("export ") else ""
            raise ValueError(f"line {number}: the name {name!r} has blanks in it{hint}")
        found.append(item)
    return found


def device_limit(text: str) -> tuple[str, str]:
    """``/dev/sda:10M``, as ``docker run --device-read-bps`` has it: the device, and how much."""
    device, _, limit = text.rpartition(":")
    if not device or not limit:
        raise ValueError(f"{text!r} is not of the form DEVICE:RATE, like /dev/sda:10M")
    return device, limit


def rlimit(text: str) -> tuple[str, tuple[int, int]]:
    """``nofile=1024:4096``, ``core=0``, ``stack=unlimited``, as ``docker run --ulimit`` and ``prlimit(1)`` have it."""
    name, value = pair(text, "NAME=SOFT[:HARD]")
    key = name.lower().removeprefix("rlimit_")
    if key not in RLIMITS:
        raise ValueError(f"there is no limit {name!r}{nearest(key, RLIMITS)}")
    soft, colon, hard = value.partition(":")
    limits = [-1 if part in _UNLIMITED else number(part) for part in (soft, hard if colon else soft)]
    return key, (limits[0], limits[1])


def id_map(text: str) -> tuple[int, int, int]:
    """``INSIDE:OUTSIDE:COUNT``, the order of ``/proc/<pid>/uid_map`` and of ``unshare(1)`` since util-linux 2.39."""
    if "," in text:
        raise ValueError(
            f"{text!r}: with commas, util-linux 2.38 means OUTSIDE,INSIDE,COUNT, and later ones the opposite. "
            "Write INSIDE:OUTSIDE:COUNT"
        )
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not of the form INSIDE:OUTSIDE:COUNT")
    inside, outside, count = map(number, parts)
    return inside, outside, count


def account(text: str, kind: str) -> int:
    """A number, or the name of one of this host's users (`kind` ``"uid"``) or groups (``"gid"``)."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        if kind == "uid":
            import pwd

            return pwd.getpwnam(text).pw_uid
        import grp

        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"{text!r} is neither a number nor a {'user' if kind == 'uid' else 'group'} here") from None


def words(values: Iterable[str]) -> list[str]:
    """What was given in several options, or with commas in one."""
    return [word for value in values for word in value.split(",") if word]


def optional(values: Iterable[str]) -> frozenset[str]:
    """Names of options that may be given up, as a `Workload` has them or as they are spelled on the command line."""
    found = set()
    for word in words(values):
        name = _SPELLED.get(word, word.removeprefix("--").replace("-", "_"))
        if name not in OPTIONAL:
            raise ValueError(f"{word!r} is nothing that can be given up{nearest(name, OPTIONAL)}")
        found.add(name)
    return frozenset(found)


_SPELLED = {
    "--cgroup-path": "cgroup", "--rlimit": "rlimits", "--ulimit": "rlimits", "--sysctl": "sysctls",
    "--time-offset": "time_offsets", "--no-new-privs": "no_new_privs", "--memory": "limits", "--cpus": "limits",
    "--pids-limit": "limits", "--cpu-affinity": "cpu_affinity",
}  # fmt: skip


def swap(memory: str | None, total: str) -> str | int:
    """``--memory-swap`` of ``docker run`` is memory and swap together; the kernel's limit is of swap alone."""
    from linx_trio._limits import MAX, size

    if total in ("-1", MAX):
        return MAX
    if memory is None:
        raise ValueError("it is the sum of memory and swap, so it needs --memory too (for swap alone: --swap)")
    both, alone = size(total, "--memory-swap"), size(memory, "--memory")
    if not isinstance(both, int) or not isinstance(alone, int) or both < alone:
        raise ValueError(f"{total!r} is the sum of memory and swap, and less than --memory {memory}")
    return both - alone


def capabilities(added: Sequence[str], dropped: Sequence[str], kept: Sequence[str]) -> tuple[str, list[str]] | None:
    """What ``--cap-add``, ``--cap-drop`` and ``--keep-caps`` come to: ``("keep", names)``, ``("drop", names)``, or
    nothing.
    """
    add, drop, keep = words(added), words(dropped), words(kept)
    if kept and (added or dropped):
        raise ValueError("--keep-caps says which there are; --cap-add and --cap-drop would contradict it")
    if kept:
        return "keep", [] if [word.lower() for word in keep] == ["none"] else keep
    if any(word.upper() == "ALL" for word in add):
        raise ValueError("--cap-add ALL: the workload has all of the caller's anyway, unless they are dropped")
    if any(word.upper() == "ALL" for word in drop):
        return "keep", add
    if add:
        raise ValueError(
            f"--cap-add {add[0]}: there is nothing to add it to, as the workload has the caller's capabilities. "
            f"For that one alone: --cap-drop ALL --cap-add {add[0]}"
        )
    return ("drop", drop) if drop else None
