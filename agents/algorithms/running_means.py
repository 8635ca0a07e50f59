"""Running means of training, kept on the device until they are read."""

from typing import Any

import torch
from torch import Tensor

_WATCHED = 256  # values that are looked at together


class RunningMeans:
    """Means of named scalars since the last :meth:`flush`, accumulated without waiting for the device.

    It also remembers the first step at which a watched value was not finite.

    Nothing that was added stays in memory: on a CPU a small tensor kept from every step would lie between the freed
    activations, which then no longer fit where they were; that took a twentieth of the speed of a small network.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._running: Tensor | None = None
        self._steps: list[int] = []
        self._watched = torch.zeros(_WATCHED, device=device)
        self._slots = self._watched.unbind()
        self._first_bad = torch.full((), torch.inf, dtype=torch.float64, device=device)

    def add(self, **values: Tensor) -> None:
        """Add observations of each name: a scalar, or a tensor of one shape, all of whose elements count."""
        known = [name for name in values if name in self._sums]
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = value.detach().to(torch.float32, copy=True)
            self._counts[name] = self._counts.get(name, 0) + 1
        if known:
            torch._foreach_add_(
                [self._sums[name] for name in known], [values[name].detach() for name in known]
            )

    def add_episodes(self, rewards: Tensor, dones: Tensor) -> None:
        """Add a step of n environments; ``finished``, ``finished_reward`` and ``finished_length`` are of episodes.

        Args:
            rewards: ``(n,)``.
            dones: ``(n,)``, whether the step ended its episode.
        """
        if self._running is None:
            self._running = torch.zeros(2, len(rewards), device=self.device)
        self._running += torch.stack([rewards.float(), torch.ones_like(rewards, dtype=torch.float32)])
        finished = self._running * dones
        self.add(finished=dones.float(), finished_reward=finished[0], finished_length=finished[1])
        self._running -= finished

    def watch(self, step: int, value: Tensor) -> None:
        """Note ``step`` if the scalar is NaN or infinite and no earlier step was noted."""
        self._slots[len(self._steps)].copy_(value.detach())
        self._steps.append(step)
        if len(self._steps) == _WATCHED:
            self._look()

    def _look(self) -> None:
        if self._steps:
            at = torch.tensor(self._steps, dtype=torch.float64, device=self.device)
            bad = torch.where(self._watched[: len(at)].isfinite(), torch.inf, at).min()
            torch.minimum(self._first_bad, bad, out=self._first_bad)
            self._steps = []

    def first_bad_step(self) -> int | None:
        """Return the first step noted by :meth:`watch`, or None; waits for the device."""
        self._look()
        step = float(self._first_bad)
        return None if step == torch.inf else int(step)

    def count(self, name: str) -> int:
        """Return how often the name was added since the last :meth:`flush`."""
        return self._counts.get(name, 0)

    def flush(self) -> dict[str, float]:
        """Return the means since the last call and reset them; waits for the device."""
        means = {name: float(total.mean()) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs."""
        return {
            "sums": {name: total.clone() for name, total in self._sums.items()},
            "counts": dict(self._counts),
            "running": None if self._running is None else self._running.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._sums = {name: value.to(self.device, copy=True) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
        running = state.get("running")  # of episodes that are not over; earlier versions kept none
        self._running = None if running is None else running.to(self.device, copy=True)
