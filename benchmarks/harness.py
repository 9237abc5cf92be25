"""Rivals timed against each other on a noisy machine.

The problem: on a shared virtual machine the same loop is up to five times slower from one second to the next.
Timing rival A for a minute and then rival B for a minute compares two minutes, not two rivals.

So everything here is *interleaved and paired*. A round gives every contender one small batch of sessions
(tens of milliseconds), in an order that is shuffled anew each round, so that nobody always follows the rival
which leaves the caches cold or kernel work behind. A contender's ratio is formed inside each round, against
the baseline's batch of that same round, and only then is the median taken over the rounds. A slow spell hits
both sides of the pairs it touches, and a spike that hits one side moves one ratio of many. The quartiles say
how much to trust the median.

Every batch starts with a few untimed sessions of its own, and a short pause comes before it, in which the
kernel finishes what the last rival left (namespaces are torn down after the last process has gone).

A `Contender` is a name and a batch; a `Table` is rivals for one job and the one that they are held against.
Nothing here knows about processes: `serial`, `in_flight` and `blocking` make batches out of a callable, and a
rival with its own clock (a C program) may be any callable that returns nanoseconds per session.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import trio

Once = Callable[[], Awaitable[object]]
Batch = Callable[[int, int], Awaitable[float]]
"""``await batch(sessions, warmup)`` runs the warm-up, then the sessions: nanoseconds per session."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the project wants a ratio to be. Printed beside the measured one, never asserted."""

    bound: Literal["at most", "at least"]
    ratio: float

    def __str__(self) -> str:
        return f"{self.bound} {self.ratio:g}"

    def met_by(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.bound == "at most" else ratio >= self.ratio


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do a table's job.

    `absent` says why it cannot take part here; `required` makes that a failure of the benchmark.
    """

    name: str
    batch: Batch
    target: Target | None = None
    absent: str | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rivals for one job.

    `measure` is what the reader sees: ``"time"`` is µs per session, and a ratio above 1 is slower than
    `baseline`; ``"rate"`` is sessions per second, and a ratio above 1 is faster; ``"throughput"`` is the same in
    MB/s, for sessions that move `volume` bytes each.
    """

    key: str
    title: str
    measure: Literal["time", "rate", "throughput"]
    baseline: str
    contenders: tuple[Contender, ...]
    sessions: int = 30
    warmup: int = 3
    volume: int = 0


@dataclass(frozen=True, slots=True)
class Quartiles:
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Quartiles:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(slots=True)
class Result:
    """What a table gave, by contender.

    `samples`: nanoseconds per session, one for each round. `failed` and `absent`: the reason.
    """

    table: Table
    rounds: int
    samples: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def value(self, name: str) -> Quartiles:
        per_session = self.samples[name]
        if self.table.measure == "time":
            return Quartiles.of([ns / 1e3 for ns in per_session])
        amount = self.table.volume / 1e6 if self.table.measure == "throughput" else 1
        return Quartiles.of([amount * 1e9 / ns for ns in per_session])

    def ratio(self, name: str) -> Quartiles | None:
        """The ratio to the baseline, paired round by round; `None` without a baseline to divide by."""
        base = self.samples.get(self.table.baseline)
        if base is None or name == self.table.baseline:
            return None
        pairs = zip(self.samples[name], base, strict=True)
        if self.table.measure == "time":
            return Quartiles.of([mine / theirs for mine, theirs in pairs])
        return Quartiles.of([theirs / mine for mine, theirs in pairs])

    @property
    def ok(self) -> bool:
        """False when something failed to run, or is missing although the benchmark is about it."""
        required = {contender.name for contender in self.table.contenders if contender.required}
        return not self.failed and required.isdisjoint(self.absent)


def serial(once: Once) -> Batch:
    """Sessions one at a time, from trio."""

    async def batch(sessions: int, warmup: int) -> float:
        for _ in range(warmup):
            await once()
        start = time.perf_counter_ns()
        for _ in range(sessions):
            await once()
        return (time.perf_counter_ns() - start) / sessions

    return batch


def in_flight(once: Once, width: int) -> Batch:
    """`width` workers in one nursery, each looping until the batch is used up."""

    async def many(sessions: int) -> None:
        left = sessions

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await once()

        async with trio.open_nursery() as nursery:
            for _ in range(width):
                nursery.start_soon(worker)

    async def batch(sessions: int, warmup: int) -> float:
        await many(warmup)
        start = time.perf_counter_ns()
        await many(sessions)
        return (time.perf_counter_ns() - start) / sessions

    return batch


def blocking(once: Callable[[], object]) -> Batch:
    """Sessions one at a time from plain blocking Python; nothing else wants the trio loop meanwhile."""

    async def run_it() -> None:
        once()

    return serial(run_it)


async def missing(sessions: int, warmup: int) -> float:
    """The batch of a contender that is `absent`."""
    raise AssertionError(f"an absent contender was asked for {sessions} sessions and {warmup} before them")


async def measure(table: Table, *, rounds: int, settle: float, seed: int) -> Result:
    """Run `table` and return the samples.

    A contender that raises is left out from there on, with the reason kept: the others are still worth their
    figures. `settle` is the pause before each batch, in seconds. `seed` fixes the order inside the rounds.
    """
    result = Result(table, rounds)
    taking_part: list[Contender] = []
    for contender in table.contenders:
        if contender.absent is not None:
            result.absent[contender.name] = contender.absent
            continue
        # The rehearsal starts what is started once (threads, a zygote) and fills the page cache.
        rehearsed = await _timed(contender, result, sessions=table.warmup, warmup=0, settle=settle)
        if rehearsed is not None:
            taking_part.append(contender)
    result.samples = {contender.name: [] for contender in taking_part}
    shuffled = random.Random(seed)
    for _ in range(rounds):
        for contender in shuffled.sample(taking_part, len(taking_part)):
            ns = await _timed(contender, result, sessions=table.sessions, warmup=table.warmup, settle=settle)
            if ns is None:
                taking_part.remove(contender)
                del result.samples[contender.name]
            else:
                result.samples[contender.name].append(ns)
    return result


async def _timed(contender: Contender, result: Result, *, sessions: int, warmup: int, settle: float) -> float | None:
    gc.collect()  # a collection of one rival's garbage must not be on another's bill
    await trio.sleep(settle)
    try:
        return await contender.batch(sessions, warmup)
    except Exception as error:
        result.failed[contender.name] = _first_line(error)
        return None


def _first_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def render(result: Result) -> str:
    """The table as text, for people."""
    table = result.table
    unit = {"time": "µs/session", "rate": "sessions/s", "throughput": "MB/s"}[table.measure]
    volume = f" of {table.volume / 1e6:.0f} MB" if table.volume else ""
    wide = max(len(contender.name) for contender in table.contenders)
    lines = [
        f"{table.title}  ({result.rounds} rounds x {table.sessions} sessions{volume})",
        f"  {'':{wide}}  {unit:>10}  {'quartiles':^15}  ratio to {table.baseline}",
    ]
    for contender in table.contenders:
        name = contender.name
        if name in result.samples:
            lines.append(f"  {name:{wide}}  {_figures(result, contender)}")
        else:
            reason = result.absent.get(name) or f"FAILED: {result.failed[name]}"
            lines.append(f"  {name:{wide}}  {reason}")
    return "\n".join(lines)


def _figures(result: Result, contender: Contender) -> str:
    value, ratio = result.value(contender.name), result.ratio(contender.name)
    text = f"{value.median:10.0f}  {f'{value.low:.0f} .. {value.high:.0f}':^15}"
    if ratio is None:
        return f"{text}  -"
    text += f"  {ratio.median:5.2f}  [{ratio.low:.2f} .. {ratio.high:.2f}]"
    if contender.target is not None:
        verdict = "met" if contender.target.met_by(ratio.median) else "not met"
        text += f"  target {contender.target}: {verdict}"
    return text


def as_json(result: Result) -> Mapping[str, object]:
    """The same for programs, with every sample kept: nanoseconds per session, one for each round."""
    table = result.table
    rows = []
    for contender in table.contenders:
        name = contender.name
        row: dict[str, object] = {"name": name}
        if name in result.absent:
            row["absent"] = result.absent[name]
        if name in result.failed:
            row["failed"] = result.failed[name]
        if name in result.samples:
            ratio = result.ratio(name)
            row["ns_per_session"] = result.samples[name]
            row["ratio"] = None if ratio is None else [ratio.low, ratio.median, ratio.high]
        if contender.target is not None:
            row["target"] = {"bound": contender.target.bound, "ratio": contender.target.ratio}
        rows.append(row)
    return {
        "key": table.key,
        "title": table.title,
        "measure": table.measure,
        "baseline": table.baseline,
        "rounds": result.rounds,
        "sessions": table.sessions,
        "volume": table.volume,
        "contenders": rows,
    }
