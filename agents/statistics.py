"""Running means of training that stay on the device until somebody reads them."""

from typing import Any

import torch
from torch import Tensor

_FOLD = 256  # scalars that wait to be added up: one operation for all is a hundredth of one for each


class RunningMeans:
    """Means of named scalars since the last :meth:`flush`, accumulated without waiting for the device.

    It also remembers the first step at which a watched value was not finite.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._waiting: dict[str, list[Tensor]] = {}
        self._watched: list[tuple[int, Tensor]] = []
        self._first_bad = torch.full((), torch.inf, dtype=torch.float64, device=device)

    def add(self, **values: Tensor) -> None:
        """Add observations of each name: a scalar, or a tensor of one shape, all of whose elements count."""
        for name, value in values.items():
            self._counts[name] = self._counts.get(name, 0) + 1
            if value.dim() == 0:
                waiting = self._waiting.setdefault(name, [])
                waiting.append(value.detach())
                if len(waiting) == _FOLD:
                    self._accumulate(name, torch.stack(waiting).sum())
                    waiting.clear()
            else:
                self._accumulate(name, value.detach())

    def _accumulate(self, name: str, value: Tensor) -> None:
        if name in self._sums:
            self._sums[name].add_(value)
        else:
            self._sums[name] = value.to(torch.float32, copy=True)

    def watch(self, step: int, value: Tensor) -> None:
        """Note ``step`` if the scalar is NaN or infinite and no earlier step was noted."""
        self._watched.append((step, value.detach()))
        if len(self._watched) == _FOLD:
            self._look()

    def _look(self) -> None:
        if self._watched:
            steps, values = zip(*self._watched, strict=True)
            at = torch.tensor(steps, dtype=torch.float64, device=self.device)
            bad = torch.where(torch.stack(values).isfinite(), torch.inf, at).min()
            torch.minimum(self._first_bad, bad, out=self._first_bad)
            self._watched = []

    def first_bad_step(self) -> int | None:
        """Return the first step noted by :meth:`watch`, or None; waits for the device."""
        self._look()
        step = float(self._first_bad)
        return None if step == torch.inf else int(step)

    def flush(self) -> dict[str, float]:
        """Return the means since the last call and start anew; waits for the device."""
        means = {name: self._total(name) / count for name, count in self._counts.items()}
        self._sums, self._counts, self._waiting = {}, {}, {}
        return means

    def _total(self, name: str) -> float:
        total = float(self._sums[name].mean()) if name in self._sums else 0.0
        waiting = self._waiting.get(name)
        return total + float(torch.stack(waiting).sum()) if waiting else total

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs."""
        return {
            "sums": {name: total.clone() for name, total in self._sums.items()},
            "counts": dict(self._counts),
            "waiting": {name: torch.stack(values) for name, values in self._waiting.items() if values},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._sums = {name: value.to(self.device, copy=True) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
        self._waiting = {
            name: list(values.to(self.device).unbind()) for name, values in state["waiting"].items()
        }
