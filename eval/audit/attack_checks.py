"""Checks of the attacks themselves, by Carlini et al. 2019, Pintor et al. 2022 and Zimmermann et al. 2022."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attacks.blackbox.square import square
from attacks.core.losses import get_loss, misclassified
from attacks.core.model_state import frozen
from attacks.core.norms import get_norm
from attacks.core.rng import Draws, draws_for
from attacks.gradient.pgd import Step, pgd
from envs.sampling import spread
from eval.audit import settings
from eval.audit.attacks import SINGLE_STEP, SQUARE
from eval.audit.callables import own_errors
from eval.audit.findings import Finding
from eval.audit.record import AttackRecord, Family, logits_of
from eval.audit.settings import Budget
from eval.audit.wrappers import Differenced, Wrapper

_PINTOR = "Pintor et al. 2022"
_CARLINI = "Carlini et al. 2019"
_FACTORS = (0.5, 1.0, 2.0, 4.0)
_FEW = 8  # images, where every step asks the model many times
_DEAR_FACTORS = (1.0,)
_RIDGE = 1e-4  # of the readouts' fit


def longer_runs(record: AttackRecord, view: nn.Module, climbed: list[nn.Module], budget: Budget) -> Finding:
    """Twice the steps and more restarts on the survivors, repeated while it gains: accuracy lost by the last time.

    The gradients of all views ``climbed`` are followed; Square asks ``view`` again where it broke what they did not.
    """
    lost = 0.0
    for turn in range(budget.rounds):
        before, seed = record.accuracy, record.seed + 1 + turn
        later = f", turn {turn + 1}" if turn else ""
        for which, model in enumerate(climbed):
            name = f"PGD, margin, twice the steps and restarts{later}"
            name, family = (f"{name}, surrogate", Family.TRANSFER) if which else (name, Family.GRADIENT)
            dear = isinstance(model, Differenced)
            steps, turns = (budget.difference_steps, 1) if dear else (budget.steps, budget.restarts)
            record.run(name, family, pgd, model, steps=2 * steps, restarts=turns, loss="margin", seed=seed)
        squared = record.outcome(SQUARE)
        if squared is not None and squared.first:
            queries, name = 2 * budget.square_queries, f"{SQUARE}, again{later}"
            record.run(name, Family.FREE, square, view, queries=queries, seed=seed)
        lost = before - record.accuracy
        if lost <= settings.CONVERGED_POINTS:
            break
    check, source = "accuracy lost to twice the steps, and restarts", f"{_CARLINI}: more changes nothing"
    return Finding.above(check, lost, settings.CONVERGED_POINTS, source, decisive=True)


def single_step(record: AttackRecord) -> Finding:
    """Images that a single step breaks and no iterative gradient attack does."""
    one = record.outcome(SINGLE_STEP)
    many = record.clean_wrong.clone()
    for outcome in record.outcomes:
        if outcome is not one and outcome.family in (Family.STANDARD, Family.GRADIENT, Family.REPAIRED):
            many |= outcome.broken
    share = None if one is None or one.error else float((one.broken & ~many).double().mean())
    check, note = "images broken by a single step alone", "" if one is None else one.error
    source = f"{_CARLINI}: iterative attacks never lose to a single step"
    return Finding.above(check, share, 0.0, source, note)


def growing_radius(record: AttackRecord, view: nn.Module, budget: Budget) -> list[Finding]:
    """Success against eps: monotone, and 100 % where every image is within reach."""
    rows = (~record.clean_wrong).nonzero().squeeze(1)
    dear = isinstance(view, Differenced)
    rows = rows[spread(len(rows), min(budget.radius_images, _FEW) if dear else budget.radius_images)]
    if not len(rows):
        return []
    x, y = record.x[rows], record.y[rows]
    most = get_norm(record.norm).diameter(x[0].numel())
    factors = _DEAR_FACTORS if dear else _FACTORS
    radii = dict.fromkeys([*(min(record.eps * factor, most) for factor in factors), most])
    steps, restarts = (budget.difference_steps, 1) if dear else (budget.steps, 2)
    how: dict[str, Any] = {"steps": steps, "restarts": restarts, "loss": "margin", "sample_ids": rows}
    rates = []
    with own_errors() as failed:
        for radius in radii:
            points = pgd(view, x, y, **record.ball | how | {"eps": radius}).adversarial
            rates.append(float(record.wrong(points, y).double().mean()))
    unbounded = "success of an unbounded attack"
    if failed:
        return [Finding(unbounded, None, source=_CARLINI, note=failed[0])]
    drop = max([0.0, *(earlier - later for earlier, later in pairwise(rates))])
    curve = ", ".join(f"{rate:.2f} at {radius:.3g}" for radius, rate in zip(radii, rates, strict=True))
    check, source = "largest drop of success as eps grows", f"{_CARLINI}: success grows with eps"
    reached, least = rates[-1], settings.UNBOUNDED_SUCCESS
    origin = f"{_CARLINI}; Pintor et al. 2022, unconstrained failure"
    return [
        Finding.above(check, drop, settings.CONVERGED_POINTS, source, curve),
        Finding(unbounded, reached, least, reached < least, origin, decisive=True),
    ]


def attack_indicators(record: AttackRecord, raw: nn.Module, steps: int) -> list[Finding]:
    """Run the standard attack to its last step on every image and read the indicators off its path.

    The sixth, unconstrained failure, is the unbounded attack of `growing_radius`.
    """
    x, y = record.x, record.y
    zero, succeeded = torch.zeros(2, len(y), dtype=torch.bool, device=y.device)
    losses = torch.zeros(steps, len(y), device=y.device)

    def note(step: Step) -> None:
        zero[step.rows] |= (step.grad == 0).flatten(1).all(1)
        succeeded[step.rows] |= misclassified(step.logits, y[step.rows])
        losses[step.index, step.rows] = step.loss.to(losses.dtype)

    with own_errors() as failed:
        how: dict[str, Any] = {"steps": steps, "keep": "last", "sample_ids": record.rows, "on_step": note}
        result = pgd(raw, x, y, **record.ball | how)
    if failed:
        return [Finding("unavailable gradients", 1.0, 0.0, True, f"{_PINTOR}, indicator 1", failed[0])]
    last = misclassified(logits_of(raw, result.adversarial), y)
    transferred = result.success & ~record.wrong(result.adversarial, y)
    indicators = {
        "unavailable gradients: a zero gradient on the path": zero,
        "unstable predictions under noise of 8/255": unstable(raw, record),
        "silent success: adversarial on the path, not at its end": succeeded & ~last,
        "incomplete optimisation: the loss still rises": incomplete(losses),
        "transfer failure: adversarial for the attack, not for the model": transferred,
    }
    findings = []
    for number, (check, holds) in enumerate(indicators.items(), 1):
        share, source = float(holds.double().mean()), f"{_PINTOR}, indicator {number}"
        findings.append(Finding.above(check, share, settings.PINTOR_SHARE, source))
    return findings


def unstable(model: nn.Module, record: AttackRecord) -> Tensor:
    """bool (N,): the margin changes by more than 10 % on average over 100 points of radius 8/255."""
    measure, stream = get_loss("margin"), draws_for(record.seed, record.rows).fork(7)
    here = measure(logits_of(model, record.x), record.y, None)
    change = torch.zeros_like(here)
    for draw in range(settings.PINTOR_DRAWS):
        noise = (2 * stream.fork(draw).uniform(record.x.shape[1:]) - 1) * settings.PINTOR_RADIUS
        there = measure(logits_of(model, (record.x + noise).clamp(0, 1)), record.y, None)
        change += (there - here).abs()
    mean = change / settings.PINTOR_DRAWS
    return mean / here.abs().clamp_min(1e-12) > settings.PINTOR_UNSTABLE


def incomplete(loss: Tensor) -> Tensor:
    """bool (N,): of the way from least to most loss so far, over 5 % were made in the last 10 of the steps (T, N)."""
    best = loss.cummax(0).values
    low, high = best[0], best[-1]
    before = best[-min(settings.PINTOR_LAST_STEPS, len(best))]
    return (high - before) / (high - low).clamp_min(1e-12) > settings.PINTOR_INCOMPLETE


# The binarization test (Zimmermann et al. 2022, arXiv 2206.13991): can the attack find what must be there?
# For each image a binary readout of the model's features is fitted that tells one point on the edge of the ball from
# many inside. An adversarial image for it exists by construction, so an attack that is fit for the model finds one.


class Features(Wrapper):
    """The input of the model's last linear layer, where its output is the model's; otherwise the output itself."""

    def __init__(self, model: nn.Module, layer: nn.Linear | None) -> None:
        super().__init__(model)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, D)."""
        if self.layer is None:
            return self.model(x).float()
        seen: list[Tensor] = []
        handle = self.layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            self.model(x)
        finally:
            handle.remove()
        return torch.cat(seen).float() if len(seen[0]) < len(x) else seen[-1].float()


def last_layer(model: nn.Module, x: Tensor) -> nn.Linear | None:
    """The linear layer whose output is the model's output, if there is one."""
    found: list[tuple[nn.Linear, Tensor]] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append((module, output))  # type: ignore[arg-type]

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            logits = model(x[:2])
    finally:
        for handle in handles:
            handle.remove()
    layer, output = found[-1] if found else (None, logits)
    return layer if output.shape == logits.shape and torch.equal(output, logits) else None


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
    """How many images' readouts separate, and for how many of them attack and chance succeeded."""

    valid: int
    success: int
    chance: int


def binarization_test(record: AttackRecord, model: nn.Module, budget: Budget) -> tuple[Test, Finding]:
    """Fit the readouts and attack them with the engine and loss of the audit's gradient attack."""
    rows = (~record.clean_wrong).nonzero().squeeze(1)
    rows = rows[spread(len(rows), budget.binarization_images)]
    x, stream = record.x[rows], draws_for(record.seed, rows).fork(11)
    features = Features(model, last_layer(model, record.x))
    outcome = Test(0, 0, 0)
    with own_errors() as failed:
        if len(rows):
            weights, bias, valid = _fit(features, x, record, budget.inner_points, stream)
            if valid.any():
                readout = Readout(features, weights[valid], bias[valid])
                outcome = _attack(readout, x[valid], record, budget.steps, stream[valid])
    where = "features of the last layer" if features.layer is not None else "logits"
    separate = f"{outcome.valid} of {len(rows)} readouts of the {where} separate"
    note = failed[0] if failed else f"{separate}; chance breaks {outcome.chance}"
    rate, least = outcome.success / outcome.valid if outcome.valid else None, settings.BINARIZATION_SUCCESS
    check = "binarization test: success of the attack where an adversarial image is known"
    source = "Zimmermann et al. 2022: a sound attack comes near 1"
    return outcome, Finding(check, rate, least, rate is not None and rate < least, source, note)


def _fit(
    features: nn.Module, x: Tensor, record: AttackRecord, inner: int, stream: Draws
) -> tuple[Tensor, Tensor, Tensor]:
    """Fisher's discriminant of one edge point against the inner ones; valid (n,) where it separates them."""
    measure, eps, points = get_norm(record.norm), record.eps, torch.arange(inner, device=x.device)
    weights, bias, valid = [], [], []
    for i, image in enumerate(x):
        centre = image[None].expand(inner, *image.shape)
        own = stream[torch.full_like(points, i)].fork(points)
        radius = x.new_full((inner,), settings.BINARIZATION_ETA * eps)
        inside = measure.confine(centre + measure.random(own, image.shape, radius), centre, radius)
        move = measure.random(stream[i : i + 1].fork(inner), image.shape, x.new_full((1,), eps))
        edge = (image + move * (eps / measure.length(move))).clamp(0, 1)
        with torch.no_grad():
            f = features(torch.cat([edge, image[None], inside])).double()
        mean = f[1:].mean(0)
        rest = f[1:] - mean
        scatter = rest.T @ rest / len(rest)
        ridge = _RIDGE * scatter.diagonal().mean().clamp_min(1e-30)
        unit = torch.eye(len(scatter), dtype=f.dtype, device=x.device)
        w = torch.linalg.solve(scatter + ridge * unit, f[0] - mean)
        w = w / w.norm().clamp_min(1e-30)
        scores = f @ w
        weights.append(w.float())
        bias.append((-(scores[0] + scores[1:].max()) / 2).float())
        valid.append(scores[0] > scores[1:].max())
    return torch.stack(weights), torch.stack(bias), torch.stack(valid)


def _attack(readout: Readout, x: Tensor, record: AttackRecord, steps: int, stream: Draws) -> Test:
    inside = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    measure, radius = get_norm(record.norm), x.new_full((len(x),), record.eps)
    how: dict[str, Any] = {
        "steps": steps,
        "restarts": 2,
        "loss": "margin",
        "early_stop": False,
        "batch_size": len(x),
    }
    with frozen(readout.features):
        # All readouts stay in one batch, in order: each row has its own classifier.
        success = pgd(readout, x, inside, **record.ball | how).success
        chance = torch.zeros_like(success)
        for draw in range(2 * steps):  # as many points as the attack sees
            noise = measure.random(stream.fork(20, draw), x.shape[1:], radius)
            with torch.no_grad():
                chance |= readout(measure.confine(x + noise, x, radius)).argmax(1) == 1
    return Test(len(x), int(success.sum()), int(chance.sum()))
