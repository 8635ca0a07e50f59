"""Small classifiers of scikit-learn's digits, honest and masked, for the tests of the audit."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from envs.datasets import load_splits

NORM, EPS = "L2", 0.5  # breaks about half of the images of the standard network


class TinyNet(nn.Module):
    """Two convolutions and two linear layers for 8x8 images."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.features(x))


class Scaled(nn.Module):
    """Logits times a factor, which leaves the decisions as they are."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.model(x) * self.factor


class Softmax(nn.Module):
    """Probabilities in place of logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).softmax(1)


class DetachedStage(nn.Module):
    """The features are computed without gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.head(self.model.features(x).detach())


class Preprocessed(nn.Module):
    """A model behind a function of its input."""

    def __init__(self, model, preprocess):
        super().__init__()
        self.model, self.preprocess = model, preprocess

    def forward(self, x):
        return self.model(self.preprocess(x))


def quantise(x, levels=8):
    return (x * (levels - 1)).round() / (levels - 1)


def gaussian_noise(x, sigma=0.15):
    return x + sigma * torch.randn_like(x)


@functools.cache
def base(seed, epochs=10):
    """A trained network, kept for the process."""
    data = load_splits("digits").train
    images, labels = data.images.float() / 255, data.labels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyNet()
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
    return model.eval()


def images(count):
    """The first test images, floats in [0, 1], and their labels."""
    data = load_splits("digits").test
    return data.images[:count].float() / 255, data.labels[:count]
