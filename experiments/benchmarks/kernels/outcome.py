"""What a contestant is, what it may take, what came of it, and how tables say so."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping
from typing import Literal

import numpy as np

from ntkfusion.utils.memory import show_size

Status = Literal["ok", "memory", "time", "error"]

#: What the messages of allocators have in common.
MEMORY_SIGNS = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc|MemoryError|memory_limit")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What every contestant may take.

    Attributes:
        memory: resident bytes of its process.
        seconds: seconds of one call.
    """

    memory: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A contestant: its name in the tables, what to run, calls per turn, and fake devices."""

    label: str
    spec: Mapping[str, object]
    calls: int = 1
    devices: int = 1


@dataclasses.dataclass
class RaceOutcome:
    """What came of a contestant.

    Attributes:
        label: its name.
        status: "ok", or what stopped it.
        reason: why, in words, unless ok.
        first: seconds of the first call, compilation included.
        seconds: of every later call.
        compiling: seconds that XLA compiled in each of those (a function that compiles once has zeros here).
        baseline: resident bytes with libraries, weights and inputs in place.
        peak: most resident bytes up to now.
        working: what later calls took beyond what was resident before them: without compilation.
        result: the last kernel, if asked for.
    """

    label: str
    status: Status = "ok"
    reason: str = ""
    first: float = float("nan")
    seconds: list[float] = dataclasses.field(default_factory=list)
    compiling: list[float] = dataclasses.field(default_factory=list)
    baseline: int = 0
    peak: int = 0
    working: int = 0
    result: np.ndarray | None = None

    @property
    def ok(self) -> bool:
        """Whether it finished."""
        return self.status == "ok"

    @property
    def median(self) -> float:
        """Median seconds of the later calls; the first call if there was only that."""
        return statistics.median(self.seconds) if self.seconds else self.first

    @property
    def running(self) -> float:
        """The same without what these calls compiled."""
        pairs = zip(self.seconds, self.compiling, strict=True)
        return statistics.median([total - part for total, part in pairs] or [self.first])

    @property
    def above(self) -> int:
        """Peak bytes above the baseline."""
        return self.peak - self.baseline

    def record(self) -> dict[str, object]:
        """As plain numbers, without the kernel."""
        known: dict[str, object] = {name: value for name, value in vars(self).items() if name != "result"}
        finished = self.first == self.first
        return known | {"first": self.first if finished else None, "median": self.median if finished else None}


def seconds(value: float) -> str:
    """Seconds with three digits.

    >>> seconds(0.0123456), seconds(123.4)
    ('0.0123', '123')
    """
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def took(outcome: RaceOutcome) -> str:
    """The median seconds of a contestant, or why there are none."""
    return seconds(outcome.median) if outcome.ok else outcome.reason


def peak(outcome: RaceOutcome) -> str:
    """Peak resident memory; what a contestant held when it asked for too much says nothing."""
    return "–" if outcome.status == "memory" else show_size(outcome.peak)


def verdict(value: float, most: float) -> str:
    """Whether a target is met.

    >>> verdict(2.0, 2.5), verdict(3.0, 2.5)
    ('2.00 (≤ 2.5: yes)', '3.00 (≤ 2.5: NO)')
    """
    return f"{value:.2f} (≤ {most:g}: {'yes' if value <= most else 'NO'})"
