"""Times, rates and probabilities as tc writes them, or as numbers. Pure."""

from __future__ import annotations

import re
from typing import Any

TIMES = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6, "usec": 1e-6, "ns": 1e-9}
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}
RATES = {f"{factor}bit": value for factor, value in _FACTORS.items()} | {
    f"{factor}bps": 8 * value for factor, value in _FACTORS.items()
}
SIZES = {"": 1.0, "b": 1.0, "k": 2.0**10, "kb": 2.0**10, "m": 2.0**20, "mb": 2.0**20, "g": 2.0**30, "gb": 2.0**30}

_NUMBER = re.compile(r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})\s?([A-Za-z%]*)")


def seconds(value: Any, argument: str) -> float:
    """``0.01``, ``"10ms"``."""
    return _amount(value, argument, TIMES, "seconds, or a str like '10ms'")


def bits_per_second(value: Any, argument: str) -> float:
    """``1e6``, ``"1mbit"``; ``"1mbps"`` is 8 times that."""
    return _amount(value, argument, RATES, "bits per second, or a str like '10mbit'")


def size_bytes(value: Any, argument: str) -> float:
    """``1600``, ``"32k"``."""
    return _amount(value, argument, SIZES, "bytes, or a str like '32kb'")


def percent(value: Any, argument: str) -> float:
    """``0.5`` and ``"0.5%"`` are one in two hundred."""
    found = _amount(value, argument, {"%": 1.0}, "percent, or a str like '0.5%'")
    if found > 100:
        raise ValueError(f"{argument}={value!r} is more than 100 percent")
    return found


def _amount(value: Any, argument: str, units: dict[str, float], what: str) -> float:
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value.strip())
        unit = match and units.get(match[2].lower())
        if match is None or unit is None:
            raise ValueError(f"{argument}={value!r}: it is {what}; units are {', '.join(filter(None, units))}")
        return float(match[1]) * unit
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number of {what}, not {value!r}")
    if not 0 <= value < 1e18:
        raise ValueError(f"{argument}={value!r}: it is {what}, and not negative or without end")
    return float(value)
