"""Shared by the project's algorithms, beyond Stable-Baselines3: running means, run progress, exact resumption."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from torch import Tensor, nn

from agents.algorithms.running_means import RunningMeans
from envs.errors import InputError
from envs.plain import check_seed, plain
from envs.task import ImageTask

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
    _counts_episodes = True  # for SB3's ``time/episodes``; other algorithms do so themselves
    _last_obs: Any  # arrays, or tensors on the device
    _last_episode_starts: Any

    def _setup_model(self) -> None:
        for name, value in vars(self).items():
            setattr(self, name, plain(value))
        self._refuse_wrappers()
        self._join_device()
        super()._setup_model()  # type: ignore[safe-super]
        self.statistics = RunningMeans(self.device)
        if self._last_obs is not None:  # loaded, to go on without a reset
            self._go_on()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "statistics"]

    def save(
        self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """Save as SB3 does; observations on any device are stored as arrays."""
        kept = self._last_obs, self._last_episode_starts
        self._last_obs, self._last_episode_starts = (
            value.cpu().numpy() if isinstance(value, Tensor) else value for value in kept
        )
        try:
            super().save(path, exclude, include)
        finally:
            self._last_obs, self._last_episode_starts = kept

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Take another environment; without a reset, learning continues with the observations shown."""
        super().set_env(env, force_reset)
        self._refuse_wrappers()
        self._join_device(fixed=True)
        if self._last_obs is not None:
            self._go_on()

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed as SB3 does, without the slow cuDNN settings that it leaves behind for the whole process."""
        cudnn = torch.backends.cudnn
        before = cudnn.deterministic, cudnn.benchmark
        super().set_random_seed(check_seed(seed))  # Python's generator takes no NumPy integer
        cudnn.deterministic, cudnn.benchmark = before

    def _join_device(self, fixed: bool = False) -> None:
        """Work where the environment's tensors are: SB3's device "auto" is a GPU even if the environment is not."""
        task = image_task(self.env) if getattr(self.env, "tensors", False) else None
        if task is None or torch.empty(0, device=self.device).device == task.device:
            return
        remedy = f"make them with sb3_env(..., device={str(self.device)!r})"
        if fixed or self.device.type == "cpu":
            raise InputError(
                f"the environments are on {task.device} and the model is on {self.device}; {remedy}"
            )
        warnings.warn(
            f"the model joins its environments on {task.device}; for {self.device}, {remedy}", stacklevel=4
        )
        self.device = task.device

    def _refuse_wrappers(self) -> None:
        """Refuse SB3's wrappers around an environment of tensors, which they cannot add up."""
        env = self.env
        while isinstance(env, VecEnvWrapper) and getattr(env, "tensors", False):
            if type(env).__module__.startswith("stable_baselines3."):
                raise InputError(
                    f"{type(env).__name__} needs arrays; use sb3_env(..., monitor=True) in place of VecMonitor, or "
                    "sb3_env(..., tensors=False) under Stable-Baselines3's wrappers"
                )
            env = env.venv

    def _go_on(self) -> None:
        """Bring the observations to the environment's form: what it shows, where that can be known."""
        if not getattr(self.env, "tensors", False):
            return
        task = image_task(self.env)
        if task is not None and task.begun and not self._shows_attacked:
            self._last_obs = self.present_observations()
        self._last_obs, self._last_episode_starts = (
            torch.as_tensor(value, device=self.device)
            for value in (self._last_obs, self._last_episode_starts)
        )

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        """Return actions as an array, as SB3 does; observations may also be a tensor."""
        if isinstance(observation, Tensor):
            observation = observation.cpu().numpy()
        return super().predict(observation, *args, **kwargs)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, self.progress_total or total_timesteps)
        # The last rollout may overrun the total; learning rates must not turn negative.
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def dump_logs(self, *args: Any) -> None:
        """Write SB3's log line with the running means in it; what a caller of ``learn`` sees."""
        for name, value in self.log_record().items():
            self.logger.record(name, value)
        super().dump_logs(*args)  # type: ignore[misc]

    def log_record(self) -> dict[str, float]:
        """Return the means since the last call by TensorBoard tag, SB3's ``rollout/`` tags among them."""
        images = self.statistics.count("reward") * self.n_envs
        means = self.statistics.flush()
        finished = means.pop("finished", 1.0)  # share of answers that end an episode, uncounted where all do
        reward = means.pop("finished_reward", means.get("reward", 0.0))
        length = means.pop("finished_length", 1.0)
        record = {f"train/{name}": value for name, value in means.items()}
        if images and finished:
            self._episode_num += round(finished * images) if self._counts_episodes else 0
            record |= {"rollout/ep_rew_mean": reward / finished, "rollout/ep_len_mean": length / finished}
        return record

    def _report(self, callback: BaseCallback, scope: dict[str, Any], step: dict[str, Any]) -> bool:
        """Count a step of every environment and show it to the callback; return False if that asks to stop.

        Callbacks find the caller's local variables, ``scope``, and ``actions``, ``rewards``, ``dones``, ``new_obs`` and
        ``infos`` of the ``step``, tensors as arrays: those on the CPU share their memory, others wait to be read.
        """
        self.num_timesteps += self.n_envs
        if getattr(image_task(scope["env"]), "length", 0) != 1:
            self.statistics.add_episodes(step["rewards"], step["dones"])
        if any(step["infos"]):
            self._update_info_buffer(step["infos"], step["dones"])
        shown = scope | step
        for name, value in step.items():
            if isinstance(value, Tensor):
                shown[name] = value.detach().numpy() if value.device.type == "cpu" else HostArray(value)
        callback.update_locals(shown)
        return callback.on_step()

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


class HostArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A tensor on an accelerator that is copied to the host when it is first read, and then acts as an array."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Tensor | None = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._tensor is not None:
            self._array, self._tensor = self._tensor.cpu().numpy(), None
        return np.array(self._array, dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = (np.asarray(value) if isinstance(value, HostArray) else value for value in inputs)
        return getattr(ufunc, method)(*arrays, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]

    def __len__(self) -> int:
        return len(np.asarray(self))

    def __bool__(self) -> bool:
        return bool(np.asarray(self))


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


def image_task(env: Any) -> ImageTask | None:
    """Return the image task behind ``env``, or None where there is none."""
    task = getattr(env, "task", None)
    return task if isinstance(task, ImageTask) else None
