"""What the project's algorithms add to Stable-Baselines3's: running means, whole-run progress, exact continuation."""

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from agents.algorithms.running_means import RunningMeans
from envs.errors import InputError

_COUNTERS = ("num_timesteps", "_n_updates", "_current_progress_remaining")


class ImageAlgorithm(BaseAlgorithm):
    """Mixin over an SB3 algorithm.

    Attributes:
        statistics: means since they were last read, on the device.
        progress_total: images of the whole run, where it takes several ``learn`` calls; None: of the call.
    """

    statistics: RunningMeans
    progress_total: int | None = None
    env: Any
    _last_obs: Any  # arrays, or tensors on the device
    _last_episode_starts: Any

    def _setup_model(self) -> None:
        super()._setup_model()  # type: ignore[safe-super]
        self.statistics = RunningMeans(self.device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "statistics", "_last_obs", "_last_episode_starts"]

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, self.progress_total or total_timesteps)
        # The last rollout may overrun the total; learning rates must not turn negative.
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def dump_logs(self, *args: Any) -> None:
        """Write SB3's log line with the running means in it; what a caller of ``learn`` sees."""
        for name, value in self.statistics.flush().items():
            self.logger.record(f"train/{name}", value)
        super().dump_logs(*args)  # type: ignore[misc]

    def _check_env_kind(self, env: Any, tensors: bool) -> None:
        """Refuse an environment that does not go with the buffer made at set-up."""
        if getattr(env, "tensors", False) != tensors:
            raise InputError(
                f"the model was set up for an environment with tensors={tensors} and has got one with "
                f"tensors={not tensors}; give it such an environment, or save it and load it with the new one"
            )

    @property
    def _shows_attacked(self) -> bool:
        """Whether the environment's images cannot be rendered again, see `AdversarialObservation`."""
        return getattr(self.env, "shows_attacked", False)

    def watch_weights(self) -> None:
        """Note in the statistics whether a weight has become NaN or infinite."""
        norms = torch._foreach_norm([parameter.detach() for parameter in self.policy.parameters()])
        self.statistics.watch(self.num_timesteps, torch.stack(norms).sum())

    def present_observations(self) -> Any:
        """Return what the environments show now: uint8 ``(n, C, H, W)`` on the device."""
        return self.env.observe() if self._shows_attacked else self.env.task.observe()

    def training_state(self) -> dict[str, Any]:
        """Return all that :meth:`load_training_state` needs to go on exactly, between two rollouts."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.policy.optimizer.state_dict(),
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "episode_starts": torch.as_tensor(self._last_episode_starts),
            "task": self.env.task.state_dict(),
            "statistics": self.statistics.state_dict(),
            "attacked": self._last_obs if self._shows_attacked else None,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned, into an algorithm of the same configuration."""
        self.policy.load_state_dict(state["policy"])
        self.policy.optimizer.load_state_dict(state["optimizer"])
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        self.env.task.load_state_dict(state["task"])
        attacked = state["attacked"]
        self._last_obs = self.present_observations() if attacked is None else attacked.to(self.device)
        self._last_episode_starts = state["episode_starts"].to(self.device)
        self.statistics.load_state_dict(state["statistics"])


def optimizer_step(
    loss: Tensor, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float
) -> Tensor:
    """Take one step of ``optimizer`` down ``loss`` and return the gradient's L2 norm before clipping, a scalar.

    Bit for bit ``zero_grad``, ``backward``, ``clip_grad_norm_(parameters, max_norm)`` and ``step``; on a small network
    that costs a twentieth less of the whole step.

    Args:
        loss: a scalar.
        optimizer: of the ``parameters``.
        parameters: all on one device.
        max_norm: gradients are scaled down to this norm; infinity switches it off.
    """
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp_(max=1.0))
    optimizer.step()
    return norm
