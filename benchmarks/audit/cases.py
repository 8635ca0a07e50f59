"""The audit's test bed: 31 masked classifiers and 25 sound ones, each with the expected verdict."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

from benchmarks.audit import defences as d
from benchmarks.audit import networks as n
from benchmarks.audit.networks import base, images
from eval.audit import Cause

Build = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Case:
    """A classifier and what the audit should say of it.

    Attributes:
        name: for tables.
        build: seed to classifier, in eval mode.
        cause: why it is masked; None if it is sound.
        adaptive: seed to what the truth is attacked through: a model without the mask, or a differentiable substitute.
        how: that attack in words; empty for the model itself.
        task: of `images`.
    """

    name: str
    build: Build
    cause: Cause | None = None
    adaptive: Build | None = None
    how: str = ""
    task: str = "digits"


def _after(function: d.Stage) -> Build:
    return lambda seed: d.After(base(seed), function)


def _before(function: d.Stage) -> Build:
    return lambda seed: d.Before(base(seed), function)


_coded = n.behind(d.thermometer)
_resized = n.behind(d.random_resize_pad)


def _soft_thermometer(x: Tensor) -> Tensor:
    """The slopes of thermometer codes, spread over their thresholds."""
    thresholds = (torch.arange(8) + 0.5) / 8
    return ((x - thresholds[None, :, None, None]) * 8 + 0.5).clamp(0, 1)


def _jpeg_softly(x: Tensor) -> Tensor:
    return d.jpeg_like(x, 1e-4)


@functools.cache
def _purifier(seed: int) -> nn.Module:
    return base(seed, d.denoising, 20, d.Purifier)


def _purified(seed: int, flat: bool) -> nn.Module:
    purify = _purifier(seed)
    return d.Before(base(seed), (lambda x: purify(x.detach()).detach()) if flat else purify)


def _neighbours(seed: int, soft: bool = False) -> nn.Module:
    x, y = images(600, "train")
    return d.Neighbours(base(seed), x, y, soft=soft)


class Forest(nn.Module):
    """A random forest as scikit-learn answers: nothing of it is PyTorch's."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        x, y = images(10**6, "train")
        self.forest = RandomForestClassifier(60, random_state=seed, n_jobs=1).fit(
            x.flatten(1).numpy(), y.numpy()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.forest.predict_proba(x.detach().flatten(1).numpy())).to(x)


def _mixed(seed: int) -> nn.Module:
    x, _ = images(600, "train")
    return d.MixupInference(base(seed), x)


def _turned(seed: int) -> nn.Module:
    return d.Before(base(seed), d.TurnedRound.apply)  # type: ignore[arg-type]


def _ensemble(seed: int, probabilities: bool = False) -> nn.Module:
    return d.Mean(*(base(seed + k) for k in range(3)), probabilities=probabilities)


def _mixed_precision(seed: int, quantised: bool = True) -> nn.Module:
    """Networks on coarse and on full images (EMPIR, Sen et al. 2020)."""
    coarse = (d.Before(base(seed + k), d.quantise) if quantised else base(seed + k) for k in (1, 2))
    return d.Mean(base(seed), *coarse, probabilities=True)


def _unscaled(build: Build, factor: float = 1 / n.TEMPERATURE) -> Build:
    return lambda seed: d.After(build(seed), lambda logits: logits * factor)


_sigmoids = functools.partial(base, loss=n.one_against_all)
BARE, _IDENTITY = "on the network without its mask", "through the identity in place of the flat stage"

MASKED = (
    Case("logits x10", _after(lambda z: 10 * z), Cause.SATURATED, base, BARE),
    Case("logits x100", _after(lambda z: 100 * z), Cause.SATURATED, base, BARE),
    Case("float16 saturation", _after(lambda z: (300 * z).half()), Cause.SATURATED, base, BARE),
    Case("defensive distillation", n.distilled, Cause.SATURATED, _unscaled(n.distilled), BARE),
    Case("long-trained epsilon-greedy policy", n.greedy, Cause.SATURATED, _unscaled(n.greedy), BARE),
    Case("clamped logits", _after(d.clamped), Cause.SATURATED, base, BARE),
    Case(
        "error-correcting codes", _after(d.error_correcting), Cause.SATURATED,
        base, "through the logits before the bits",
    ),
    Case(
        "anti-adversary", lambda s: d.AntiAdversary(base(s)), Cause.WRONG, base,
        "through the network without its layer",
    ),
    Case("softmax outputs", _after(lambda z: z.softmax(1)), Cause.PROBABILITIES, base, BARE),
    Case("softmax of logits x30", _after(lambda z: (30 * z).softmax(1)), Cause.PROBABILITIES, base, BARE),
    Case(
        "one-against-all sigmoids, sharpened", lambda s: d.After(_sigmoids(s), lambda z: (5 * z).sigmoid()),
        Cause.PROBABILITIES, _sigmoids, BARE,
    ),
    Case(
        "ensemble of probabilities", functools.partial(_ensemble, probabilities=True), Cause.PROBABILITIES,
        _ensemble, "through the mean of the logits",
    ),
    Case(
        "mixed-precision ensemble", _mixed_precision, Cause.PROBABILITIES,
        lambda s: _mixed_precision(s, False), "through its members on full images",
    ),
    Case("input quantisation", _before(d.quantise), Cause.QUANTISED, base, _IDENTITY),
    Case("JPEG-like rounding", _before(d.jpeg_like), Cause.QUANTISED, _before(_jpeg_softly), _IDENTITY),
    Case(
        "thermometer code", lambda s: d.Before(base(s, _coded, channels=8), d.thermometer), Cause.QUANTISED,
        lambda s: d.Before(base(s, _coded, channels=8), _soft_thermometer), "through slopes at the thresholds",
    ),
    Case(
        "sign activation", functools.partial(base, activation=d.Sign), Cause.QUANTISED,
        lambda s: _softened(base(s, activation=d.Sign), d.Sign, nn.Hardtanh()), "through the clipped identity",
    ),
    Case(
        "spiking rates", functools.partial(base, activation=d.Spikes), Cause.QUANTISED,
        lambda s: _softened(base(s, activation=d.Spikes), d.Spikes, nn.Hardtanh(0, 1)), "through the rates' slope",
    ),
    Case("random forest", Forest, Cause.QUANTISED, base, "through a network trained on the same data"),
    Case(
        "deep k-nearest neighbours", _neighbours, Cause.QUANTISED,
        functools.partial(_neighbours, soft=True), "through soft neighbours",
    ),
    Case(
        "k winners take all", functools.partial(base, activation=d.KWinners), Cause.SHATTERED,
        lambda s: Smooth(base(s, activation=d.KWinners)), "through the mean slope under noise",
    ),
    Case("sine on the logits", _after(d.sine), Cause.SHATTERED, base, BARE),
    Case(
        "random resize and pad", lambda s: d.Before(base(s, _resized, 40), d.random_resize_pad), Cause.RANDOM,
    ),
    Case("Gaussian noise", _before(d.gaussian_noise), Cause.RANDOM),
    Case("pixel deflection", _before(d.pixel_deflection), Cause.RANDOM),
    Case("stochastic activation pruning", functools.partial(base, activation=d.Pruned), Cause.RANDOM),
    Case("Mixup inference", _mixed, Cause.RANDOM),
    Case("batch statistics at test time", functools.partial(base, norm="test batch"), Cause.BATCH),
    Case("total variation", _before(d.total_variation), Cause.DETACHED, base, "through the identity"),
    Case(
        "purification, detached", lambda s: _purified(s, True), Cause.DETACHED,
        lambda s: _purified(s, False), "through the purifier",
    ),
    Case("decoy gradient", lambda s: d.Decoy(base(s), base(s + 50)), Cause.WRONG, base, BARE),
    Case("gradient turned round", _turned, Cause.WRONG, base, BARE),
    Case("gradient NaN", _before(d.NoNumber.apply), Cause.NONFINITE, base, BARE),  # type: ignore[arg-type]
    Case(
        "gamma correction", lambda s: d.Before(base(s, n.behind(d.gamma)), d.gamma), Cause.NONFINITE,
        lambda s: d.Before(base(s, n.behind(d.gamma)), lambda x: d.gamma(x + 1e-3)), "shifted by .001",
    ),
)  # fmt: skip


class Smooth(nn.Module):
    """Mean logits over 8 noisy copies."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.model((x + 0.05 * torch.randn_like(x)).clamp(0, 1)) for _ in range(8)]).mean(
            0
        )


def _softened(model: nn.Module, flat: type[nn.Module], soft: nn.Module) -> nn.Module:
    """The same weights with another activation."""
    twin = n.made(0)
    twin.load_state_dict(model.state_dict())
    for i, layer in enumerate(model.features):  # type: ignore[union-attr, arg-type]
        if isinstance(layer, flat):
            twin.features[i] = soft  # type: ignore[index, operator, assignment]
    return twin.eval()


def _bfloat16(seed: int) -> nn.Module:
    network = base(seed)
    twin = n.made(seed).bfloat16()
    twin.load_state_dict(network.state_dict())
    return d.Before(twin.eval(), lambda x: x.bfloat16())


SOUND = (
    Case("standard training", base),
    Case("standard training, another seed", lambda s: base(s + 1)),
    Case("narrow", functools.partial(base, width=8)),
    Case("wide", functools.partial(base, width=32)),
    Case("PGD-AT", functools.partial(base, loss=n.pgd_at)),
    Case("TRADES", functools.partial(base, loss=n.trades)),
    Case("FGSM-AT", functools.partial(base, loss=n.fgsm_at)),
    Case("trained on noise", functools.partial(base, loss=n.noisy_images)),
    Case("logit squeezing", functools.partial(base, loss=n.squeezed_logits)),
    Case("label smoothing", functools.partial(base, loss=n.smoothed_labels)),
    Case("one-against-all logits", functools.partial(base, loss=n.one_against_all)),
    Case("GELU", functools.partial(base, activation=nn.GELU)),
    Case("SiLU", functools.partial(base, activation=nn.SiLU)),
    Case("softplus", functools.partial(base, activation=nn.Softplus)),
    Case("LayerNorm", functools.partial(base, norm="layer")),
    Case("BatchNorm", functools.partial(base, norm="batch")),
    Case("vision transformer", functools.partial(base, network=n.TinyViT)),
    Case("multilayer perceptron", functools.partial(base, network=n.Linear, hidden=2)),
    Case("logistic regression", functools.partial(base, network=n.Linear)),
    Case("ensemble of logits", _ensemble),
    Case("two classes", functools.partial(base, classes=2, task="parity"), task="parity"),
    Case("40 classes", functools.partial(base, classes=40, task="turned"), task="turned"),
    Case("many clean errors", functools.partial(base, epochs=1)),
    Case("temperature 5", _after(lambda z: z / 5)),
    Case("PGD-AT, logits x3", lambda s: d.After(base(s, n.pgd_at), lambda z: 3 * z)),
    Case("bfloat16", _bfloat16),
)  # fmt: skip
