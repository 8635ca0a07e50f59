"""Watching an attack at work: what a progress bar shows, and the state from which an interrupted one goes on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.attack.parts import PartialStore

LEAST_SECONDS = 5.0  # between two saved states: what a kill may cost
SHARE = 0.05  # of the time, at most, goes into saving states


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is."""

    done: int  #: images attacked; of an attack in stages, by its present stage
    total: int  #: images to attack; of an attack in stages, those that reached its present stage
    robust: float  #: share of the images looked at that nothing has broken yet
    images_per_second: float  #: in this process, since the present stage began
    stage: str = ""  #: what an attack in stages is doing, such as ``apgd-t (2/4)``


Report = Callable[[Progress], None]


class Watch:
    """Called by an attack in stages with its state after every batch; tells ``report``, and saves now and then.

    ``store`` is where states are kept; None keeps nothing.
    """

    def __init__(self, store: PartialStore | None, report: Report | None) -> None:
        self.store, self.report = store, report
        saved = {"state": None, "seconds": 0.0} | ((store.read_state() if store else None) or {})
        self.state: dict[str, Any] | None = saved["state"]  # from which the attack goes on
        self._before = float(saved["seconds"])
        self._started = self._saved = self._stage_started = time.perf_counter()
        self._pause, self._stage, self._entered, self._seen = LEAST_SECONDS, -1, 0, 0

    @property
    def seconds(self) -> float:
        """Seconds that the attack has taken, those before an interruption included."""
        return self._before + time.perf_counter() - self._started

    def __call__(self, state: dict[str, Any]) -> None:
        """Take note of the attack's ``state``."""
        if self.report is not None:
            self.report(self._progress(state))
        if self.store is not None and time.perf_counter() - self._saved > self._pause:
            begun = time.perf_counter()
            self.store.write_state({"state": state, "seconds": self.seconds})
            self._saved = time.perf_counter()
            self._pause = max(LEAST_SECONDS, (self._saved - begun) / SHARE)

    def _progress(self, state: dict[str, Any]) -> Progress:
        stage, left, broken_by = state["stage"], len(state["pending"]), state["broken_by"]
        if stage != self._stage:
            self._stage, self._stage_started, self._seen = stage, time.perf_counter(), left
            self._entered = int(((broken_by < 0) | (broken_by >= stage)).sum())
        seconds = time.perf_counter() - self._stage_started
        robust, speed = float((broken_by < 0).double().mean()), (self._seen - left) / max(seconds, 1e-9)
        name = f"{state['stages'][stage]} ({stage + 1}/{len(state['stages'])})"
        return Progress(self._entered - left, self._entered, robust, speed, name)
