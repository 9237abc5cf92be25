"""Who is restarted, how soon, and how often: the policies of supervision, as tables and arithmetic.

The words are those of OTP's ``supervisor(3)``. Nothing here waits, reads a clock or starts anything.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, TypeVar

from linx_trio._events import Aborted, Exited, Outcome, Signaled


class Restart(StrEnum):
    """Which ends of a child are followed by a new start."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class Strategy(StrEnum):
    """Who is restarted with a child: nobody, all, or those that were started after it."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


class End(Enum):
    """What a child's end amounts to."""

    NORMAL = "normal"
    SHUTDOWN = "shutdown"
    ABNORMAL = "abnormal"


RESTARTED: Mapping[Restart, Mapping[End, bool]] = {
    Restart.PERMANENT: {End.NORMAL: True, End.SHUTDOWN: True, End.ABNORMAL: True},
    Restart.TRANSIENT: {End.NORMAL: False, End.SHUTDOWN: False, End.ABNORMAL: True},
    Restart.TEMPORARY: {End.NORMAL: False, End.SHUTDOWN: False, End.ABNORMAL: False},
}
"""Whether a child that ended by itself is started again."""


def end_of(outcome: Outcome | None, error: BaseException | None) -> End:
    """What an incarnation's outcome, or the error that it failed with, amounts to."""
    if error is not None:
        return End.ABNORMAL
    match outcome:
        case Exited(0):
            return End.NORMAL
        case Aborted():
            return End.SHUTDOWN
        case Exited() | Signaled() | None:
            return End.ABNORMAL


def _number(value: Any, name: str, least: float, most: float, unit: str = " seconds") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not least <= value <= most:  # a NaN is not
        raise ValueError(f"{name} must be between {least:g} and {most:g}{unit}, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a child waits before it is started again: longer and longer while it fails in a row.

    The n-th delay in a row is ``initial * factor ** (n - 1)``, at most `maximum`, and then up to `jitter` of it more
    or less, so that what failed together does not come back together.

    Args:
        initial: the first delay, in seconds.
        factor: how much longer each one is than the one before, 1 or more.
        maximum: the longest delay, in seconds.
        jitter: 0 (none) to 1.
        reset_after: once an incarnation has been up for so many seconds, the next delay is `initial` again.
        seed: of the generator of the jitter; `None`: another one each time.

    Raises:
        TypeError, ValueError: naming the argument and the value.
    """

    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 30.0
    jitter: float = 0.1
    reset_after: float = 10.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _number(self.initial, "initial", 0, 1e9)
        _number(self.factor, "factor", 1, 1e9, "")
        _number(self.maximum, "maximum", 0, 1e9)
        _number(self.jitter, "jitter", 0, 1, "")
        _number(self.reset_after, "reset_after", 0, math.inf)
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise TypeError(f"seed must be an int or None, not {self.seed!r}")

    def delays(self) -> Callable[[int], float]:
        """A function of how many times in a row: the delay, in seconds. Each has a generator of its own."""
        generator = random.Random(self.seed)

        def delay(failures: int) -> float:
            return self.plain(failures) * (1 + self.jitter * generator.uniform(-1, 1))

        return delay

    def plain(self, failures: int) -> float:
        """The delay without jitter."""
        try:
            return min(self.initial * self.factor ** (failures - 1), self.maximum)
        except OverflowError:
            return self.maximum if self.initial else 0.0


class Intensity:
    """OTP's: more than `max_restarts` restarts within `max_seconds` are too many."""

    def __init__(self, max_restarts: float, max_seconds: float) -> None:
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self._times: deque[float] = deque()

    def __iter__(self) -> Iterator[float]:
        return iter(self._times)

    def exceeded(self, now: float) -> bool:
        """Counts one more, and tells whether it is one too many."""
        if self.max_restarts == math.inf:
            return False
        self._times.append(now)
        while self._times[0] < now - self.max_seconds:
            self._times.popleft()
        return len(self._times) > self.max_restarts


# ---- what callers say --------------------------------------------------------------------------------------------


W = TypeVar("W", bound=StrEnum)


def check_word(value: Any, words: type[W], name: str) -> W:
    """One of an enumeration's words, given as such or as a plain string."""
    if not isinstance(value, str) or value not in {word.value for word in words}:
        raise ValueError(f"{name} must be one of {', '.join(repr(word.value) for word in words)}, not {value!r}")
    return words(value)


def check_intensity(max_restarts: Any, max_seconds: Any) -> Intensity:
    if max_restarts != math.inf and (isinstance(max_restarts, bool) or not isinstance(max_restarts, int)):
        raise TypeError(f"max_restarts must be an int or math.inf, not {max_restarts!r}")
    if max_restarts < 0:
        raise ValueError(f"max_restarts must not be negative: {max_restarts!r}")
    if _number(max_seconds, "max_seconds", 0, math.inf) == 0:
        raise ValueError("max_seconds must be more than 0")
    return Intensity(max_restarts, max_seconds)


def check_backoff(value: Any) -> Backoff:
    """A `Backoff`, or a plain number: always so many seconds."""
    if isinstance(value, Backoff):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"backoff must be a linx.Backoff or a number of seconds, not {value!r}")
    _number(value, "backoff", 0, 1e9)
    return Backoff(initial=value, factor=1.0, maximum=value, jitter=0.0)


def check_seconds(value: Any, name: str, most: float = math.inf) -> float:
    return _number(value, name, 0, most)
