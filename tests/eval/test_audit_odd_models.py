"""The audit ends with a report for every callable, and shows none of them an image outside [0, 1]."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eval.audit import audit
from eval.audit.callables import AnyCallable, models_own
from tests.support.audit_budgets import TINY

N = 12
WEIGHT = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def x():
    images = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return images.where(images > 0.3, torch.zeros(()))  # many pixels lie at the bound


def linear(x):
    return x.flatten(1) @ WEIGHT.to(x.dtype)


class Called:
    def __call__(self, x):
        return linear(x)


class Net(nn.Module):
    def __init__(self, stage=linear):
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())
        self.stage = stage

    def forward(self, x):
        return self.stage(x)


class NoCopy(Net):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


class Double(Net):
    def forward(self, x):
        return x.flatten(1) @ self.weight


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("no backward pass")


class _NaNBackward(_NoBackward):
    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


def asserts_range(x):
    assert torch.equal(x, x.clamp(0, 1)), "images must lie in [0, 1]"
    return linear(x)


def refuses_range(x):
    if x.min() < 0 or x.max() > 1:
        raise ValueError("images must lie in [0, 1]")
    return linear(x)


TABLE = torch.linspace(-1, 1, 256)


def looks_up(x):
    return linear(TABLE[(x * 255).long()])


def embeds(x):
    return linear(F.embedding((x * 255).long(), TABLE[:, None]).squeeze(-1))


def one_hot(x):
    return linear(F.one_hot((x * 7).long(), 8).float() @ torch.linspace(0, 1, 8))


def only(size):
    def model(x):
        if len(x) != size:
            raise RuntimeError(f"compiled for batches of {size}")
        return linear(x)

    return model


def at_most(size):
    def model(x):
        if len(x) > size:
            raise ValueError(f"no more than {size} images")
        return linear(x)

    return model


def refuses_grad(x):
    if x.requires_grad:
        raise RuntimeError("only tensors that need no gradient")
    return linear(x)


def answers_nan(x):
    logits = linear(x)
    return logits.masked_fill((x.flatten(1)[:, :1] > 0.9) & (x.flatten(1)[:, 1:2] > 0), float("nan"))


def sometimes_nothing(x):
    logits = linear(x)
    return logits.where(logits > logits.amin(1, keepdim=True), -torch.inf)


def through_numpy(x):
    return x.detach().numpy().reshape(len(x), -1) @ WEIGHT.numpy()


ODD = {
    "plain function": linear,
    "object with __call__": Called(),
    "no deep copy": NoCopy(),
    "no backward": lambda x: linear(_NoBackward.apply(x)),
    "NaN gradient": lambda x: linear(_NaNBackward.apply(x)),
    "asserts the range": asserts_range,
    "refuses the range": refuses_range,
    "looks up pixels": looks_up,
    "embeds pixels": embeds,
    "one-hot pixels": one_hot,
    "batches of N": only(N),
    "batches of 7": only(7),
    "batches of 20": only(20),
    "at most 5": at_most(5),
    "one at a time": only(1),
    "float64 outputs": lambda x: linear(x.double()),
    "float64 parameters": Double().double(),
    "float64 probabilities": lambda x: linear(x.double() * 30).softmax(1),
    "bfloat16 outputs": lambda x: linear(x).bfloat16(),
    "refuses gradients": refuses_grad,
    "no_grad": torch.no_grad()(linear),
    "one NaN answer": answers_nan,
    "infinite outputs": sometimes_nothing,
    "NumPy array": through_numpy,
    "labels as integers": lambda x: F.one_hot(linear(x).argmax(1), 4),
    "sigmoids": lambda x: (linear(x) * 3).sigmoid(),
    "two classes": lambda x: linear(x)[:, :2],
    "constant": lambda x: torch.zeros(len(x), 4),
    "random": lambda x: linear(x + 0.1 * torch.randn_like(x)),
    "batch statistics": lambda x: linear(x - 0.5 * x.mean(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [(name, "L2", 0.6) for name in ODD]
    + [
        (name, "Linf", 0.3)
        for name in ("plain function", "asserts the range", "refuses the range", "NaN gradient")
    ],
)
def test_every_callable_gets_a_report(name, norm, eps, x):
    model, seen = ODD[name], []

    def watched(images):
        seen.extend((float(images.detach().min()), float(images.detach().max())))
        return model(images)

    shown = model if isinstance(model, nn.Module) else watched
    labels = torch.as_tensor(AnyCallable(model, x)(x)).nan_to_num().argmax(1)
    report = audit(shown, x, labels, norm=norm, eps=eps, budget=TINY)
    assert not seen or (min(seen) >= 0 and max(seen) <= 1)
    json.dumps(report.to_json(), allow_nan=False)
    failed = [outcome for outcome in report.attacks if outcome.error]
    assert all("gradient" in outcome.error or "AttackError" in outcome.error for outcome in failed)
    told = next(line for line in report.evidence if line.check == "attacks that could not run")
    assert (told.value, told.alarm) == (len(failed), bool(failed))
    assert len(report.tables("m")) == 2
    if name == "asserts the range":
        plain = audit(linear, x, labels, norm=norm, eps=eps, budget=TINY)
        assert torch.equal(report.robust, plain.robust)


@pytest.mark.parametrize(
    ("model", "size", "exact"), [(only(7), 7, True), (at_most(5), 4, False), (linear, None, False)]
)
def test_batch_sizes_are_found_and_answers_stay_the_same(model, size, exact, x):
    called = AnyCallable(model, x)
    assert (called.size, called.exact) == (size, exact)
    torch.testing.assert_close(called(x), linear(x))
    torch.testing.assert_close(called(x[:3]), linear(x[:3]))


@pytest.mark.slow
def test_what_had_to_be_done_is_said(x):
    y = linear(x).argmax(1)
    report = audit(refuses_grad, x, y, norm="L2", eps=0.3, budget=TINY)
    notes = [line.note for line in report.evidence if line.check == "how the model had to be called"]
    assert len(notes) == 1
    assert "need no gradient" in notes[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("Expected all tensors to be on the same device, but found cpu and cuda:0"),
    ],
)
def test_errors_of_the_machine_are_not_swallowed(error, x):
    assert not models_own(error)
    calls = []

    def model(images):
        calls.append(1)
        if len(calls) > 40:
            raise error
        return linear(images)

    with pytest.raises((type(error), ValueError), match=r"memory|CUDA|device|^$"):
        audit(model, x, linear(x).argmax(1), norm="L2", eps=0.3, budget=TINY)


def test_a_model_that_answers_nothing_is_refused_in_one_line(x):
    def broken(images):
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        audit(broken, x, torch.zeros(N, dtype=torch.int64), norm="L2", eps=0.3)
    assert models_own(ValueError("not today"))
    assert isinstance(through_numpy(x), np.ndarray)
