"""Adversarial training as an environment wrapper: the policy sees attacked images."""

from typing import Any

import torch
import torch.nn.functional as F
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from agents.algorithms.adversarial import Ascent, crafting, make_ascent
from agents.algorithms.buffers import ShownImagesBuffer
from agents.models.extraction import extract_classifier
from agents.models.policy import ImagePolicy
from attacks.core.norms import Norm
from envs.errors import InputError
from envs.task import ImageTask

_LEVEL = 5e-6  # of 1/255: what rounding in float32 may add to a whole number of levels


class AdversarialObservation(VecEnvWrapper):
    """Shows the policy that learns from this environment attacked images in place of clean ones.

    Any SB3 algorithm over images then trains adversarially, unchanged::

        env = AdversarialObservation(sb3_env("mnist"), eps=0.1)
        model = PPO("CnnPolicy", env, policy_kwargs=...)
        env.watch(model)
        model.learn(1_000_000)

    The attack raises the cross-entropy of the labels that the rewards go by, in the policy's eval mode and from a
    random start (Madry et al. 2018). It meets the policy at the time of the step, so the first images of a rollout were
    attacked just before the last update. Attacked pixels are whole numbers again, see `quantise`. Algorithms of this
    project on tensors keep the images shown in their rollouts (`ShownImagesBuffer`); stock ones do anyway.

    Args:
        venv: an environment from ``envs.sb3_env``, tensors or NumPy.
        eps: radius in units of pixels in [0, 1].
        norm: "Linf", "L2" or "L1".
        steps: gradient steps.
        step_size: length of one; default 2.5 eps / steps, and at most 1.25 eps.
        start: "random", or "clean" (FGSM, with ``steps=1, step_size=eps``).
        share: probability with which an image is shown attacked, in (0, 1].
        begins: images before the first attack.
        model: the algorithm whose policy is attacked; or call `watch` before learning begins.

    Raises:
        InputError: the environment shows no images of an image task, or an argument is out of range.
    """

    rollout_buffer_class = ShownImagesBuffer
    shows_attacked = True
    _shown: Any = None

    def __init__(
        self,
        venv: VecEnv,
        *,
        eps: float,
        norm: str = "Linf",
        steps: int = 7,
        step_size: float | None = None,
        start: str = "random",
        share: float = 1.0,
        begins: int = 0,
        model: BaseAlgorithm | None = None,
    ) -> None:
        task = getattr(venv, "task", None)
        if not isinstance(task, ImageTask):
            raise InputError(
                f"a {type(venv).__name__} has no labels to attack; wrap an environment from envs.sb3_env"
            )
        if not 0 < share <= 1:
            raise InputError(f"share is {share}; expected above 0 and up to 1")
        super().__init__(venv)
        self.ascent: Ascent = make_ascent(norm, eps, steps, step_size, start, task.dataset.shape)
        self.share = share
        self.begins = begins
        self.model = model

    def watch(self, model: BaseAlgorithm) -> None:
        """Attack the policy of ``model`` from now on."""
        self.model = model

    def reset(self) -> Any:
        """Begin new episodes and return attacked images, uint8 (n, C, H, W)."""
        return self._show(self.venv.reset())

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Return observations, rewards, dones and infos, images attacked."""
        answered = self._shown
        observations, rewards, dones, infos = self.venv.step_wait()
        for index, info in enumerate(infos):
            if "terminal_observation" in info:
                info["terminal_observation"] = answered[index]
        return self._show(observations), rewards, dones, infos

    def observe(self) -> Any:
        """Return the images shown at present, attacked once more."""
        observations = self.venv.task.observe()  # type: ignore[attr-defined]
        return self._show(observations if self.venv.tensors else observations.cpu().numpy())  # type: ignore[attr-defined]

    def _show(self, observations: Any) -> Any:
        """Attack the observations, and remember what is shown."""
        if self.model is None:
            raise InputError(
                "AdversarialObservation has no policy to attack; call watch(model) before learning"
            )
        self._shown = observations
        if self.model.num_timesteps < self.begins:
            return observations
        clean = torch.as_tensor(observations, device=self.model.device)
        policy: Any = self.model.policy
        ours = isinstance(policy, ImagePolicy)
        pixels = policy.pixels(clean) if ours else clean.float().div_(255)
        labels = self.venv.task.labels.to(self.model.device)  # type: ignore[attr-defined]
        with crafting(policy):
            logits = policy.logits if ours else extract_classifier(policy)
            attacked = self.ascent.climb(
                lambda images: F.cross_entropy(logits(images).float(), labels, reduction="sum"), pixels
            )
        images = quantise(attacked, clean, self.ascent.norm, self.ascent.eps)
        if self.share < 1:
            chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < self.share
            images = torch.where(chosen, images, clean)
        self._shown = images if isinstance(observations, Tensor) else images.cpu().numpy()
        return self._shown


def quantise(attacked: Tensor, clean: Tensor, norm: Norm, eps: float) -> Tensor:
    """Return attacked images as uint8 ``(N, C, H, W)``, within ``eps`` of the clean ones.

    Each image is rounded to the nearest levels; where that leaves the ball, every pixel is rounded towards the clean
    one instead, which cannot. At Linf .1 the largest change is thus 25 levels of 255.

    Args:
        attacked: float images in [0, 1], ``(N, C, H, W)``, in the ball.
        clean: uint8 images ``(N, C, H, W)``.
        norm: of the ball.
        eps: its radius, in units of pixels in [0, 1].
    """
    change = attacked * 255 - clean
    nearest = change.round()
    inside = norm.length(nearest / 255) <= eps * (1 + 1e-6)
    shorter = (change + _LEVEL * change.sign()).trunc()
    change = torch.where(inside.view(-1, *[1] * (clean.ndim - 1)), nearest, shorter)
    return (clean + change).to(torch.uint8)
