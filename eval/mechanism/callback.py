"""Pictures while training: an SB3 callback that shows in TensorBoard what an attack does to the policy."""

from typing import Any

import torch
from matplotlib.figure import Figure as Picture
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure

from agents.common.precision import tf32
from agents.common.protocols import default_eps
from agents.models.extraction import extract_classifier
from attacks.gradient.pgd import pgd
from envs.datasets import ImageDataset
from envs.errors import InputError
from envs.sampling import choose_indices, spread
from eval.core.targets import logits_of
from eval.core.threats import Threat
from eval.mechanism.path_indicators import dynamic_indicators
from eval.mechanism.plots import adversarial_grid, dynamic_figure, nested_curve, security_figure

_GRID_IMAGES = 8
_RADII = (0.25, 0.5, 0.75, 1.0, 1.5)  # of the security curve, in radii of the threat


class PictureCallback(BaseCallback):
    """Logs, at intervals, an adversarial grid, the indicators along the path of PGD, and accuracy against the radius.

    Works with any actor-critic or DQN policy over images; the policy's mode and its random state are left as they were.

    Args:
        dataset: images to attack, the validation data say.
        every: environment steps (images) between pictures.
        threat: norm and radius of PGD; by default L2 at the usual radius of such images.
        images: how many are attacked.
        steps: of PGD.

    Raises:
        InputError: ``every``, ``images`` or ``steps`` is too small.

    Example:
        >>> callback = PictureCallback(load_dataset("digits", "val"), every=20_000)  # doctest: +SKIP
        >>> model.learn(100_000, callback=callback)  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: ImageDataset,
        every: int,
        *,
        threat: Threat | None = None,
        images: int = 64,
        steps: int = 20,
    ) -> None:
        super().__init__()
        if every < 1 or images < 1 or steps < 2:
            expected = "expected at least 1 image, 1 between pictures, 2 steps"
            raise InputError(f"every={every}, images={images}, steps={steps}; {expected}")
        self.dataset = dataset.take(choose_indices(len(dataset), images))
        self.every, self.steps = every, steps
        self.threat = threat or Threat("L2", default_eps("L2", dataset.shape[0]))
        self._next = every

    def _on_training_start(self) -> None:
        self._next = (self.num_timesteps // self.every + 1) * self.every  # also where a run is resumed

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= self._next:
            self._on_training_start()
            exclude = ("stdout", "log", "json", "csv")
            for name, picture in self.pictures().items():
                self.logger.record(f"pictures/{name}", Figure(picture, close=True), exclude=exclude)

    @tf32(False)
    def pictures(self) -> dict[str, Picture]:
        """Return the pictures of the policy as it is now, by name."""
        policy = self.model.policy
        modes = {module: module.training for module in policy.modules()}
        try:
            return self._draw(extract_classifier(policy).eval())
        finally:
            for module, training in modes.items():
                module.training = training

    def _draw(self, classifier: torch.nn.Module) -> dict[str, Picture]:
        x = self.dataset.images.to(self.model.device).float() / 255
        y = self.dataset.labels.to(self.model.device)
        found = dynamic_indicators(classifier, x, y, **vars(self.threat), steps=self.steps)
        now, clean = f"{self.num_timesteps:,} images", logits_of(classifier, x)
        radii = [factor * self.threat.eps for factor in _RADII]
        options: dict[str, Any] = {"norm": self.threat.norm, "steps": self.steps, "loss": "margin"}
        masks = [~pgd(classifier, x, y, eps=eps, **options).success.cpu() for eps in radii]
        curves = {self.threat.norm: {now: nested_curve(radii, (clean.argmax(1) == y).cpu(), masks)}}
        rows = spread(len(x), _GRID_IMAGES)
        grid = (x, found.adversarial, y, clean, logits_of(classifier, found.adversarial))
        original, attacked, labels, before, after = (item[rows].cpu() for item in grid)
        about = (self.dataset.classes, f"PGD, {self.threat}, after {now}")
        return {
            "adversarial": adversarial_grid(original, attacked, labels, before, after, *about),
            "path": dynamic_figure({now: found}, self.threat),
            "security": security_figure(curves, f"(PGD-{self.steps})"),
        }
