"""The time that an audit may take: attacks and checks stop when it is over, what they found before stays."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfTime(Exception):
    """The time given to the audit is over."""


class Clock:
    """Counts down ``minutes`` from now; None never ends."""

    def __init__(self, minutes: float | None = None) -> None:
        self.start = time.perf_counter()
        self.end = math.inf if minutes is None else self.start + 60 * minutes
        self._stops = False

    @property
    def left(self) -> float:
        """Seconds, negative once time is over."""
        return self.end - time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @contextmanager
    def stopping(self, stops: bool = True) -> Iterator[None]:
        """Whether passes of the model within the block end with `OutOfTime` once time is over."""
        before, self._stops = self._stops, stops
        try:
            yield
        finally:
            self._stops = before

    def check(self) -> None:
        """Raise `OutOfTime` where that was asked for and time is over."""
        if self._stops and self.left < 0:
            raise OutOfTime("the time given to the audit is over")
