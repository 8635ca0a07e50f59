"""Classifiers of the digits that answer NaN for one image of sixty, or outside [0, 1]."""

import torch
from torch import nn

from envs.datasets import load_dataset
from envs.sampling import choose_indices
from tests.eval.test_attack import nearest_mean

N = 60
ONE_NAN = "tests.support.nan_models:one_nan"
POWER = "tests.support.nan_models:power"


class NanNear(nn.Module):
    """A classifier that answers NaN at a distance below 1 from one image."""

    def __init__(self, model, image):
        super().__init__()
        self.model = model
        self.register_buffer("image", image)

    def forward(self, x):
        near = (x - self.image).flatten(1).norm(dim=1) < 1
        return self.model(x).masked_fill(near[:, None], torch.nan)


class Power(nn.Module):
    """Pixels to a power, NaN below 0, before a classifier."""

    def __init__(self, model, exponent):
        super().__init__()
        self.model, self.exponent = model, exponent

    def forward(self, x):
        return self.model((x + 1e-6) ** self.exponent)


def one_nan():
    """NaN for the first of the `N` images that every command takes."""
    data = load_dataset("digits", "test")
    first = int(choose_indices(len(data), N)[0])
    return NanNear(nearest_mean(), data.images[first].float() / 255)


def power():
    return Power(nearest_mean(), 0.9)
