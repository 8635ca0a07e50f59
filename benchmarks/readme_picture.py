"""The README's picture, from a finished run: ``python -m benchmarks.readme_picture RUN``."""

from pathlib import Path

import torch
import tyro

from agents import load_classifier
from attacks import pgd
from envs import load_dataset
from eval.core.plot_style import save_figure
from eval.mechanism.plots import adversarial_grid

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "digits.png"


def main(run: Path, eps: float = 1.5, count: int = 8) -> None:
    """Attack the first test digit of each class and draw originals, perturbations and attacked images."""
    test = load_dataset("digits", "test")
    model = load_classifier(run)
    rows = torch.stack([(test.labels == label).nonzero()[0, 0] for label in range(count)])
    x, y = test.images[rows].float() / 255, test.labels[rows]
    attacked = pgd(model, x, y, norm="L2", eps=eps, loss="margin").adversarial
    with torch.no_grad():
        figure = adversarial_grid(x, attacked, y, model(x), model(attacked), test.classes, f"PGD, L2 {eps:g}")
    save_figure(PICTURE, figure)


if __name__ == "__main__":
    tyro.cli(main)
