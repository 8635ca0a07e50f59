"""The classifiers that the attacks' benchmark attacks, trained by this project: fragile and robust ones."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from agents.adversarial_config import AdversarialConfig
from agents.config import TrainConfig
from agents.models.classifier_files import load_classifier
from agents.training.validation import to_pixels
from benchmarks import trainings
from envs import load_dataset
from envs.sampling import choose_indices

NETWORK = "small"
# Radii at which standard training leaves nothing (False), and training against the Linf ball a quarter or more (True).
EPS = {
    ("digits", False): {"Linf": 0.2, "L2": 1.0, "L1": 3.0},
    ("digits", True): {"Linf": 0.2, "L2": 0.75, "L1": 1.25},
    ("mnist", False): {"Linf": 0.2, "L2": 2.25, "L1": 16.0},
    ("mnist", True): {"Linf": 0.2, "L2": 1.5, "L1": 6.0},
    ("cifar10", True): {"Linf": 8 / 255, "L2": 0.75, "L1": 8.0},
}
_PASSES = {"digits": 60.0, "mnist": 3.0, "cifar10": 4.0}


def source(dataset: str, data_root: Path | None) -> str:
    """The name to load ``dataset`` by: CIFAR-10 may lie as images, in ``data_root``/cifar10jpg/train and test."""
    images = data_root / "cifar10jpg" if data_root else None
    return f"folder:{images}" if dataset == "cifar10" and images and images.is_dir() else dataset


@dataclass(frozen=True)
class Setting:
    """A classifier to attack: trained plainly (fragile), or by PGD in the Linf ball (adversarial)."""

    dataset: str
    adversarial: bool

    @property
    def name(self) -> str:
        """As the tables and folders call it."""
        return f"{self.dataset} {'adversarial' if self.adversarial else 'fragile'}"

    @property
    def eps(self) -> dict[str, float]:
        """The radius in each norm."""
        return EPS[self.dataset, self.adversarial]

    def config(self, path: Path, data_root: Path | None) -> TrainConfig:
        """The training that `python -m agents.train` would do with these options."""
        ball = AdversarialConfig("pgd", eps=self.eps["Linf"], norm="Linf", steps=5)
        return TrainConfig(
            algo="supervised",
            dataset=source(self.dataset, data_root),
            data_root=data_root,
            network=NETWORK,
            passes=_PASSES[self.dataset],
            select="robust" if self.adversarial else "clean",
            adversarial=ball if self.adversarial else AdversarialConfig(),
            attack=False,
            progress=False,
            threads=torch.get_num_threads(),
            run_dir=path,
        )


def classifier_of(setting: Setting, runs: Path, data_root: Path | None, console: Console) -> nn.Module:
    """Return the setting's classifier, trained now unless it is in ``runs``."""
    return trained(setting.config(runs / setting.name.replace(" ", "-"), data_root), console)


def trained(config: TrainConfig, console: Console) -> nn.Module:
    """Return the classifier of a training, which is run or resumed first if it is not finished."""
    console.print(f"training {config.run_dir}, unless it is done")
    return load_classifier(trainings.trained(config))


def test_images(dataset: str, n: int, data_root: Path | None) -> tuple[Tensor, Tensor]:
    """Return ``n`` test images, spread over all as in evaluations, as floats in [0, 1], and their labels."""
    test = load_dataset(source(dataset, data_root), "test", data_root=data_root)
    rows = choose_indices(len(test), n)
    return to_pixels(test.images[rows]), test.labels[rows]
