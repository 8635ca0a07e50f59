"""Errors of a device are raised, wherever code goes on after errors or puts them into words of its own."""

from pathlib import Path

import pytest
import torch
from torch import nn

from agents.models.image_network import ImageNetwork, image_space
from attacks.checks import check_model
from attacks.core.errors import is_machine_error, is_out_of_memory
from attacks.core.model_state import passes_laid_out
from eval.core.targets import Samples, Target, check_fit

FAULTS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: an illegal memory access")]


class Faulty(nn.Module):
    """Fails as a device does."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.convolution = fault, nn.Conv2d(1, 1, 3)

    def forward(self, x):
        raise self.fault


def test_errors_are_told_apart():
    assert all(is_machine_error(fault) for fault in FAULTS)
    assert [is_out_of_memory(fault) for fault in FAULTS] == [True, False]
    assert not is_machine_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))


def sanity_of(model, x, y):
    check_model(model, x, y, norm="Linf", eps=0.1)


def network_of(model, x, y):
    ImageNetwork(image_space((1, 8, 8)), lambda shape: model)


def fit_of(model, x, y):
    images, target = (x * 255).to(torch.uint8), Target("toy", model, "", Path())
    check_fit(target, Samples(images, y, torch.arange(3), "toy", "test", "", ("a", "b")))


@pytest.mark.parametrize("fault", FAULTS, ids=["memory", "device"])
@pytest.mark.parametrize("work", [passes_laid_out, sanity_of, network_of, fit_of])
def test_a_fault_of_the_device_is_raised_as_it_is(work, fault):
    arguments = (Faulty(fault), torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(type(fault), match="CUDA"):
        work(*arguments[: 2 if work is passes_laid_out else 3])
