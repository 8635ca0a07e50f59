"""The binarization test (Zimmermann et al. 2022, arXiv 2206.13991): can the attack find what must be there?

For each image a binary readout of the model's features is fitted that tells one point on the edge of the ball from
many inside. An adversarial image for it exists by construction, so an attack that is fit for the model finds one.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.core.model import frozen
from attacks.core.norms import Norm, get_norm
from attacks.core.rng import Draws, draws_for
from attacks.gradient.pgd import pgd
from envs.sampling import spread
from eval.audit import settings
from eval.audit.callables import first_line, models_own
from eval.audit.findings import Finding
from eval.audit.record import AttackRecord
from eval.audit.wrappers import Wrapper

_SOURCE = "Zimmermann et al. 2022"
_RIDGE = 1e-4


class Features(Wrapper):
    """The input of the model's last linear layer, where its output is the model's; otherwise the output itself."""

    def __init__(self, model: nn.Module, layer: nn.Linear | None) -> None:
        super().__init__(model)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, D)."""
        layer = self.layer
        if layer is None:
            return self.model(x).float()
        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            self.model(x)
        finally:
            handle.remove()
        return torch.cat(seen).float() if len(seen[0]) < len(x) else seen[-1].float()


def last_layer(model: nn.Module, x: Tensor) -> nn.Linear | None:
    """The linear layer whose output is the model's output, if there is one."""
    found: list[tuple[nn.Linear, Tensor]] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: found.append((module, output)))  # type: ignore
        for layer in layers
    ]
    try:
        with torch.no_grad():
            logits = model(x[:2])
    finally:
        for handle in handles:
            handle.remove()
    return (
        found[-1][0]
        if found and found[-1][1].shape == logits.shape and torch.equal(found[-1][1], logits)
        else None
    )


class Readout(nn.Module):
    """One binary classifier per image of a fixed batch: logits (0, w_i . f + b_i)."""

    def __init__(self, features: nn.Module, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.features, self.weights, self.bias = features, weights, bias

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 2) for the batch in its order."""
        score = (self.features(x) * self.weights).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Test(NamedTuple):
    """Images of the test, those whose readout separates, and those where the attack and chance succeeded."""

    images: int
    valid: int
    success: int
    chance: int


def binarization_test(
    record: AttackRecord, model: nn.Module, *, images: int, inner: int, steps: int, seed: int
) -> tuple[Test, Finding]:
    """Fit the readouts and attack them with the engine and loss of the audit's gradient attack."""
    rows = (~record.clean_wrong).nonzero().squeeze(1)
    rows = rows[spread(len(rows), images)]
    x, measure = record.x[rows], get_norm(record.norm)
    stream = draws_for(seed, rows).fork(11)
    features = Features(model, last_layer(model, record.x))
    outcome, note = Test(len(rows), 0, 0, 0), ""
    if len(rows):
        try:
            weights, bias, valid = _fit(features, x, measure, record.eps, inner, stream)
            if valid.any():
                outcome = _attack(
                    features,
                    x[valid],
                    weights[valid],
                    bias[valid],
                    record,
                    len(rows),
                    steps,
                    stream[valid],
                    seed,
                )
        except Exception as error:
            if not models_own(error):
                raise
            note = first_line(error)
    rate = outcome.success / outcome.valid if outcome.valid else None
    where = "features of the last layer" if features.layer is not None else "logits"
    note = (
        note
        or f"{outcome.valid} of {outcome.images} readouts of the {where} separate; chance breaks {outcome.chance}"
    )
    return outcome, Finding(
        "binarization test: success of the attack where an adversarial image is known",
        rate,
        settings.BINARIZATION_SUCCESS,
        rate is not None and rate < settings.BINARIZATION_SUCCESS,
        f"{_SOURCE}: a sound attack comes near 1",
        note,
    )


def _fit(
    features: nn.Module, x: Tensor, measure: Norm, eps: float, inner: int, stream: Draws
) -> tuple[Tensor, Tensor, Tensor]:
    """Fisher's discriminant of one edge point against the inner ones; valid (n,) where it separates them."""
    weights, bias, valid = [], [], []
    for i, image in enumerate(x):
        centre = image[None].expand(inner, *image.shape)
        own = stream[torch.full((inner,), i, device=x.device)].fork(torch.arange(inner, device=x.device))
        radius = x.new_full((inner,), settings.BINARIZATION_ETA * eps)
        inside = measure.confine(centre + measure.random(own, image.shape, radius), centre, radius)
        move = measure.random(stream[i : i + 1].fork(inner), image.shape, x.new_full((1,), eps))
        edge = (image + move * (eps / measure.length(move))).clamp(0, 1)
        with torch.no_grad():
            f = features(torch.cat([edge, image[None], inside])).double()
        rest = f[1:] - f[1:].mean(0)
        scatter = rest.T @ rest / len(rest)
        ridge = _RIDGE * scatter.diagonal().mean().clamp_min(1e-30)
        w = torch.linalg.solve(
            scatter + ridge * torch.eye(len(scatter), dtype=f.dtype, device=x.device), f[0] - f[1:].mean(0)
        )
        w = w / w.norm().clamp_min(1e-30)
        scores = f @ w
        weights.append(w.float())
        bias.append((-(scores[0] + scores[1:].max()) / 2).float())
        valid.append(scores[0] > scores[1:].max())
    return torch.stack(weights), torch.stack(bias), torch.stack(valid)


def _attack(
    features: nn.Module,
    x: Tensor,
    weights: Tensor,
    bias: Tensor,
    record: AttackRecord,
    images: int,
    steps: int,
    stream: Draws,
    seed: int,
) -> Test:
    readout = Readout(features, weights, bias)
    inside = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    with frozen(features):
        # All readouts stay in one batch, in order: each row has its own classifier.
        result = pgd(
            readout,
            x,
            inside,
            norm=record.norm,
            eps=record.eps,
            steps=steps,
            restarts=2,
            loss="margin",
            early_stop=False,
            batch_size=len(x),
            seed=seed,
        )
        chance = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        measure, radius = get_norm(record.norm), x.new_full((len(x),), record.eps)
        for draw in range(2 * steps):  # as many points as the attack sees
            noise = measure.random(stream.fork(20, draw), x.shape[1:], radius)
            with torch.no_grad():
                chance |= readout(measure.confine(x + noise, x, radius)).argmax(1) == 1
    return Test(images, len(x), int(result.success.sum()), int(chance.sum()))
