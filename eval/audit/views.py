"""The audited model as it is, as it decides, and as attacks should see it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from eval.audit import attacks
from eval.audit.callables import AnyCallable, own_errors
from eval.audit.clock import Clock
from eval.audit.findings import Finding
from eval.audit.model_checks import check_outputs, input_gradients
from eval.audit.record import logits_of
from eval.audit.settings import Budget
from eval.audit.straight_through import StraightThrough, Unsquashed, WithoutInnerSteps
from eval.audit.wrappers import (
    Averaged,
    BackwardThrough,
    Counted,
    Differenced,
    LogProbabilities,
    SameType,
    WithCompanions,
    Wrapper,
)

_COMPANIONS = 15
_FIRST = 64  # images on which outputs are compared
_NOISE = (0.0, 0.05, 0.2, 0.5)  # widths of the noise on them


class Views:
    """A model's views, by what its outputs are.

    Args:
        called: the model.
        x: images (N, C, H, W).
        budget: of the audit.
        clock: of the audit.

    Attributes:
        called: the model, its passes counted.
        raw: its outputs in the images' type.
        outputs: what they are.
        squashed: which functions squash them, where these can be left out without changing a decision.
        judge: the model as it decides: each image in its own batch, logits for outputs.
        attacked: the model as attacks should see it: besides, averaged where outputs are random.
        budget: less for models that need many passes where others need one.
        findings: the evidence.
    """

    def __init__(self, called: AnyCallable, x: Tensor, budget: Budget, clock: Clock) -> None:
        self.called, self.x = Counted(called, clock), x
        self.raw: nn.Module = SameType(self.called)
        self.classes = logits_of(self.raw, x[:1]).shape[1]
        self.outputs, self.findings = check_outputs(self.called, x)
        self.outputs = replace(self.outputs, inner_steps=self._inner_steps())
        costly = self.outputs.random or self.outputs.batch_dependent
        self.budget = budget.thrifty() if costly or self.outputs.inner_steps else budget
        self.squashed = "" if costly else self._squashing()
        self.judge = self._one_pass(self.called, self.outputs.probabilities)
        plain = not (costly or self.squashed or self.outputs.probabilities)
        self.attacked = self.raw if plain else self._view(self.called)

    def _inner_steps(self) -> bool:
        bare, failed = WithoutInnerSteps(self.called), list[str]()
        with torch.no_grad(), own_errors(failed):
            bare(self.x[:2])
        source = "ours: attacked without them as well; informs only"
        self.findings.append(
            Finding("gradients taken inside the forward pass", float(bare.taken), source=source)
        )
        return bare.taken > 0 and not failed

    def _squashing(self) -> str:
        bare, names, failed = Unsquashed(self.called, self.classes), "", list[str]()
        x = self.x[:_FIRST]
        with torch.no_grad(), own_errors(failed):
            points = torch.cat([x + width * (torch.rand_like(x) - 0.5) for width in _NOISE]).clamp(0, 1)
            outputs, inner = self.called(points), bare(points)
            top = outputs.topk(2, dim=1).values
            same = (outputs.argmax(1) == inner.argmax(1)) | (top[:, 0] == top[:, 1])
            changed = bool(bare.replaced) and not torch.equal(outputs, inner)
            if changed and bool(inner.isfinite().all()) and bool(same.all()):
                names = ", ".join(sorted(bare.replaced))
        note, source = "; ".join([names, *failed]), "ours: attacked in the scale before them; informs only"
        self.findings.append(Finding("squashed outputs", float(bool(names)), source=source, note=note))
        return names

    def _one_pass(self, model: nn.Module, probabilities: bool) -> nn.Module:
        if self.outputs.batch_dependent:
            model = WithCompanions(model, self.x[:_COMPANIONS], self.called)
        return SameType(LogProbabilities(model, self.outputs.normalised) if probabilities else model)

    def _view(self, model: Wrapper) -> nn.Module:
        if self.squashed:
            return SameType(Unsquashed(model, self.classes))
        view = self._one_pass(model, self.outputs.probabilities)
        return Averaged(view, self.budget.passes) if self.outputs.random else view

    def straight_through(self) -> nn.Module | None:
        """The attacked view with straight-through gradients, where that changes anything."""
        changed, operations = attacks.straight_through_changes(self.raw, self.x)
        source = "Athalye et al. 2018: attacked straight through; informs only"
        check = "flat operations and custom backward passes between image and logits"
        self.findings.append(Finding(check, float(changed), source=source, note=operations))
        if self.outputs.inner_steps:
            bare = self._view(StraightThrough(WithoutInnerSteps(self.called)))
            return BackwardThrough(self.attacked, bare)
        return self._view(StraightThrough(self.called)) if changed else None

    def with_gradient(self, through: nn.Module | None, y: Tensor) -> nn.Module:
        """A view that attacks can climb, for a model without gradients: straight through, else by differences."""
        if through is not None:
            grad = input_gradients(through, self.x[:8], y[:8], "margin")
            if bool(grad.any()) and bool(grad.isfinite().all()):
                return through
        return Differenced(self.attacked, attacks.SMOOTHING[-1], self.budget.directions)
