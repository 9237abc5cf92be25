"""What a probe has found, as data and as text. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that was tried. True where it works. Frozen, picklable, JSON-able by `to_dict`.

    Attributes:
        name: ``"user"``, ``"net:veth"``, …, see docs/doctor.md.
        group: what it belongs to, as a heading.
        title: what it is, in words.
        works: whether it does.
        detail: what else there is to say of one that works, or `None`.
        why: why it does not, or `None`.
        remedy: what to do, or `None` where nothing is known.
        cause: the stable name of the cause, the same for all that it stands in the way of; or `None`.
        stage, errno: where the kernel said no, and how, as in `SetupError`; or `None`.
        needs: the feature that has to work first and does not, or `None`: then this one could not be tried.
    """

    name: str
    group: str
    title: str
    works: bool
    detail: str | None = None
    why: str | None = None
    remedy: str | None = None
    cause: str | None = None
    stage: str | None = None
    errno: int | None = None
    needs: str | None = None

    def __bool__(self) -> bool:
        return self.works

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}"

    @property
    def verdict(self) -> str:
        """``"works"``, or ``"does not: why: what to do"``."""
        if self.works:
            return "works" if self.detail is None else f"works: {self.detail}"
        return ": ".join(part for part in ("does not", self.why, self.remedy) if part)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of all attributes."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, eq=True)
class Probe(Mapping[str, Feature]):
    """What works here, for this process, at the moment it was tried: a mapping from names to `Feature`, in the order
    that they were tried. Frozen, picklable, JSON-able by `to_dict`; its `str` is what ``linx doctor`` prints.

    Attributes:
        features: all that were asked for.
        version: of this package.
        kernel: its release, as ``uname(2)`` has it.
        uid: the caller's effective one.
    """

    features: tuple[Feature, ...]
    version: str
    kernel: str
    uid: int

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (feature.name for feature in self.features)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def failed(self) -> tuple[Feature, ...]:
        """Those that do not work."""
        return tuple(feature for feature in self.features if not feature)

    def causes(self) -> dict[str, tuple[Feature, ...]]:
        """Those that do not work, by cause: what to do about one may mend all the others of it."""
        found: dict[str, list[Feature]] = {}
        for feature in self.failed:
            found.setdefault(feature.cause or "unknown", []).append(feature)
        return {cause: tuple(features) for cause, features in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; ``features`` is one of dictionaries, by name."""
        return {
            "version": self.version,
            "kernel": self.kernel,
            "uid": self.uid,
            "features": {feature.name: feature.to_dict() for feature in self.features},
        }

    def __str__(self) -> str:
        lines = [f"linx-trio {self.version} on Linux {self.kernel}, as uid {self.uid}"]
        width = max((len(name) for name in self), default=0)
        group = None
        said: dict[str, str] = {}
        for feature in self.features:
            if feature.group != group:
                group = feature.group
                lines += ["", group]
            verdict = feature.verdict
            if feature.remedy is not None:  # what is said once need not be said again
                first = said.setdefault(verdict, feature.name)
                verdict = verdict if first == feature.name else f"does not: as {first}"
            lines.append(f"  {feature.name:<{width}}  {verdict}")
        works = sum(map(bool, self.features))
        return "\n".join([*lines, "", f"{works} of {len(self.features)} work here"])
