"""Adapter for any Stable-Baselines3 algorithm with discrete actions, named by its import path.

Images come as NumPy arrays, as these algorithms expect; off-policy ones remember them by index.
"""

import inspect
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from agents.algorithms.base import ImageAlgorithm
from agents.algorithms.buffers import ImageReplayBuffer
from agents.algorithms.registry import AlgorithmSpec, register_family
from agents.algorithms.setups import Setup
from agents.config import TrainConfig
from agents.models.image_network import to_fast_layout
from envs.errors import InputError

_PARAMETERS = {  # our options, and what Stable-Baselines3 calls them; passed where they differ from our defaults
    "ppo.epochs": "n_epochs",
    "ppo.clip_range": "clip_range",
    "ppo.vf_coef": "vf_coef",
    "ppo.ent_coef": "ent_coef",
    "ppo.gae_lambda": "gae_lambda",
    "ppo.target_kl": "target_kl",
    "ppo.normalize_advantage": "normalize_advantage",
    "max_grad_norm": "max_grad_norm",
    "exploration.eps": "exploration_final_eps",
    "exploration.mode": "",
    "compile": "",
}
_OF_ONE_CALL = ("start_time", "_total_timesteps", "_num_timesteps_at_start")  # set by each call of learn


class ReportingEnv(VecEnvWrapper):
    """Adds rewards and accuracy to the running means of ``model``; remembers which images the last actions answered."""

    model: Any = None
    answered: tuple[torch.Tensor, torch.Tensor]  # their indices and augmentation seeds (n,)

    def reset(self) -> Any:
        """Begin new episodes and return the images."""
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        """Take the answers."""
        task = self.venv.task  # type: ignore[attr-defined]
        self.answered = task.indices, task.augment_seeds
        self._right = torch.as_tensor(actions, device=task.labels.device) == task.labels
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Return observations, rewards, dones and infos."""
        result = self.venv.step_wait()
        statistics = self.model.statistics
        reward, accuracy = (
            torch.as_tensor(value).to(statistics.device) for value in (result[1], self._right)
        )
        statistics.add(reward=reward, accuracy=accuracy)
        if self.venv.task.length > 1:  # type: ignore[attr-defined]
            statistics.add_episodes(reward, torch.as_tensor(result[2]).to(statistics.device))
        return result


class IndexedReplayBuffer(ImageReplayBuffer):
    """Takes the place of Stable-Baselines3's replay buffer and stores indices in place of images.

    Args:
        env: shows the images.
        options: those of `ImageReplayBuffer`.
    """

    def __init__(self, *options: Any, env: ReportingEnv, **more: Any) -> None:
        super().__init__(*options, **more)
        self.task = env.task
        self._env = env

    def add(self, *transition: Any) -> None:
        """Store (observations, next observations, actions, rewards, dones, infos) of every environment."""
        actions, rewards, dones = (torch.as_tensor(value, device=self.device) for value in transition[2:5])
        self.add_step(
            indices=self._env.answered[0],
            augment_seeds=self._env.answered[1],
            next_indices=self.task.indices,
            next_augment_seeds=self.task.augment_seeds,
            actions=actions.flatten(),
            rewards=rewards,
            dones=dones.float(),
        )


class StockAlgorithm(ImageAlgorithm):
    """Mixin over an algorithm on NumPy arrays, which keeps what an exact continuation needs."""

    action_space: Any
    replay_buffer: Any = None
    _counts_episodes = False

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "replay_buffer_class", "replay_buffer_kwargs"]

    def learn(self, *args: Any, **options: Any) -> Any:
        """Learn as the algorithm does; every action is allowed, where it asks for masks."""
        learn: Any = super().learn  # type: ignore[safe-super]
        if "use_masking" in inspect.signature(learn).parameters:
            options.setdefault("use_masking", False)
        return learn(*args, **options)

    def present_observations(self) -> np.ndarray:
        """Return what the environments show now: uint8 ``(n, C, H, W)``."""
        return np.asarray(torch.as_tensor(super().present_observations()).cpu())

    def training_state(self) -> dict[str, Any]:
        """Return all that :meth:`load_training_state` needs: every count, the replay memory, the spaces' generators."""
        state = super().training_state()
        attacked, replay = state["attacked"], self.replay_buffer
        return state | {
            "attacked": None if attacked is None else torch.as_tensor(attacked),
            "numbers": {
                name: value
                for name, value in vars(self).items()
                if type(value) in (int, float) and name not in _OF_ONE_CALL
            },
            "actions": self.action_space.np_random.bit_generator.state,
            "replay": None if replay is None else replay.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        vars(self).update(state["numbers"])
        super().load_training_state(state)
        self._last_obs = np.asarray(torch.as_tensor(self._last_obs).cpu())
        self._last_episode_starts = np.asarray(self._last_episode_starts.cpu())
        self.action_space.np_random.bit_generator.state = state["actions"]
        if state["replay"] is not None:
            self.replay_buffer.load_state_dict(state["replay"])


def _given(config: TrainConfig) -> dict[str, Any]:
    """Return the options among `_PARAMETERS` that are not at our defaults."""
    plain = TrainConfig()
    read = {option: attrgetter(option) for option in _PARAMETERS}
    return {option: value(config) for option, value in read.items() if value(config) != value(plain)}


def _notes(config: TrainConfig, algorithm: type[Any]) -> str:
    """Return the line that says which options do not apply."""
    known = inspect.signature(algorithm.__init__).parameters
    unused = [option for option in _given(config) if _PARAMETERS[option] not in known]
    text = f"{algorithm.__name__} runs Stable-Baselines3's own updates, on NumPy arrays and in float32"
    if not unused:
        return text
    return f"{text}; it has no use for --" + ", --".join(option.replace("_", "-") for option in unused)


def _build(setup: Setup) -> Any:
    config, envs, algorithm = setup.config, setup.env.num_envs, setup.algorithm
    known = inspect.signature(algorithm.__init__).parameters
    env = ReportingEnv(setup.env)
    options: dict[str, Any] = {"batch_size": envs}
    if issubclass(algorithm, OnPolicyAlgorithm):
        options["n_steps"] = max(config.ppo.rollout // envs, 1) if "batch_size" in known else 1
    else:
        options |= setup.off_policy
        options |= {"replay_buffer_class": IndexedReplayBuffer, "replay_buffer_kwargs": {"env": env}}
    options |= {_PARAMETERS[option]: value for option, value in _given(config).items()}
    if options.get("max_grad_norm") == 0:
        options["max_grad_norm"] = float("inf")
    policies = [name for name in algorithm.policy_aliases if name.startswith("Cnn")]
    kind = type(algorithm.__name__, (StockAlgorithm, algorithm), {"__module__": algorithm.__module__})
    try:
        model = kind(
            (policies or ["MlpPolicy"])[0],
            policy_kwargs=setup.stock_policy,
            **setup.common | {"env": env},
            **{name: value for name, value in options.items() if name in known},
        )
    except Exception as error:  # whatever the algorithm's own code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"cannot build {algorithm.__name__} ({reason}); expected an algorithm for images and discrete actions"
        ) from error
    env.model = model
    if config.channels_last:
        to_fast_layout(model.policy)
    return model


_ON_POLICY = AlgorithmSpec(
    OnPolicyAlgorithm,
    _build,
    adversarial="observations",
    small_batch=256,
    in_schedules=False,
    bf16=False,
    tensors=False,
    notes=_notes,
)
register_family(_ON_POLICY)
register_family(
    replace(_ON_POLICY, algorithm=OffPolicyAlgorithm, exploration=0.05, adversarial="none", small_batch=64)
)
