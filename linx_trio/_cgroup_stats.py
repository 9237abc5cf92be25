"""What the files of a cgroup (v2) say, parsed: pure functions of their text, see ``cgroups(7)`` and the kernel's
``Documentation/admin-guide/cgroup-v2.rst``.

All are total: a line that is none is left out, and what is not there is `None` rather than a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

MICROSECONDS = 1e6


def number(text: bytes | None) -> int | None:
    """A file with a single number; ``max`` is `None`, as is a file that is not there."""
    try:
        return None if text is None else int(text.strip())
    except ValueError:
        return None


def flat(text: bytes | None) -> dict[str, int]:
    """A "flat keyed" file: ``KEY VALUE`` lines."""
    found = {}
    for line in (text or b"").split(b"\n"):
        key, _, value = line.partition(b" ")
        count = number(value)
        if key and count is not None:
            found[key.decode(errors="replace")] = count
    return found


def nested(text: bytes | None) -> dict[str, dict[str, int]]:
    """A "nested keyed" file: ``KEY SUBKEY=VALUE …`` lines."""
    found = {}
    for line in (text or b"").split(b"\n"):
        key, *pairs = line.split() or [b""]
        values = {}
        for pair in pairs:
            name, _, value = pair.partition(b"=")
            count = number(value)
            if count is not None:
                values[name.decode(errors="replace")] = count
        if values:
            found[key.decode(errors="replace")] = values
    return found


def names(text: bytes | None) -> frozenset[str]:
    """A file of words: ``cgroup.controllers``, ``cgroup.subtree_control``."""
    return frozenset((text or b"").decode(errors="replace").split())


@dataclass(frozen=True, slots=True)
class Events:
    """What a cgroup can be waited for.

    Attributes:
        populated: whether anybody lives in it, or below it.
        frozen: whether all of them are frozen.
        oom_kills: how many processes have been killed for want of memory; `None` without the memory controller.
    """

    populated: bool
    frozen: bool
    oom_kills: int | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """What a cgroup, with all below it, uses and has used. `None`: its controller is not there, or this kernel does not
    say.

    Attributes:
        populated, frozen: as in `Events`.
        cpu_time, user_time, system_time: CPU time, in seconds.
        periods, throttled_periods: the periods of ``cpu.max`` in which it ran, and those in which it was held up.
        throttled_time: for how long, in seconds.
        memory, memory_peak: bytes now, and at most.
        swap, swap_peak: the same of swap.
        memory_events: ``memory.events``: how often ``low``, ``high``, ``max`` and ``oom`` came about, and ``oom_kill``
            and ``oom_group_kill``.
        pids, pids_peak: processes and threads now, and at most.
        pids_denied: how many were refused by ``pids.max``.
        io: bytes and operations by device (``"8:0"``): ``rbytes``, ``wbytes``, ``rios``, ``wios`` and so on.
    """

    populated: bool
    frozen: bool
    cpu_time: float
    user_time: float
    system_time: float
    periods: int | None
    throttled_periods: int | None
    throttled_time: float | None
    memory: int | None
    memory_peak: int | None
    swap: int | None
    swap_peak: int | None
    memory_events: Mapping[str, int] | None
    pids: int | None
    pids_peak: int | None
    pids_denied: int | None
    io: Mapping[str, Mapping[str, int]] | None

    @property
    def oom_kills(self) -> int | None:
        """How many processes have been killed for want of memory."""
        return None if self.memory_events is None else self.memory_events.get("oom_kill", 0)


def stats(read: Callable[[str], bytes | None]) -> Stats:
    """`read` returns the content of a file of the cgroup, `None` for one that is not there."""
    state, cpu = flat(read("cgroup.events")), flat(read("cpu.stat"))
    memory_events, io = read("memory.events"), read("io.stat")
    throttled = cpu.get("throttled_usec")
    return Stats(
        populated=bool(state.get("populated", 0)),
        frozen=bool(state.get("frozen", 0)),
        cpu_time=cpu.get("usage_usec", 0) / MICROSECONDS,
        user_time=cpu.get("user_usec", 0) / MICROSECONDS,
        system_time=cpu.get("system_usec", 0) / MICROSECONDS,
        periods=cpu.get("nr_periods"),
        throttled_periods=cpu.get("nr_throttled"),
        throttled_time=None if throttled is None else throttled / MICROSECONDS,
        memory=number(read("memory.current")),
        memory_peak=number(read("memory.peak")),
        swap=number(read("memory.swap.current")),
        swap_peak=number(read("memory.swap.peak")),
        memory_events=None if memory_events is None else flat(memory_events),
        pids=number(read("pids.current")),
        pids_peak=number(read("pids.peak")),
        pids_denied=flat(read("pids.events")).get("max"),
        io=None if io is None else nested(io),
    )


def events(read: Callable[[str], bytes | None]) -> Events:
    """Of the same `read`. A cgroup that has been removed is empty."""
    state, memory = flat(read("cgroup.events")), read("memory.events")
    oom_kills = None if memory is None else flat(memory).get("oom_kill", 0)
    return Events(bool(state.get("populated", 0)), bool(state.get("frozen", 0)), oom_kills)
