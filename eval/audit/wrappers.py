"""Views of a classifier: modules with the same answers that an attack can make more of."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks.core.batching import default_batch_size
from eval.audit.callables import Clock, own_errors

_TOGETHER = 16  # images whose batches are passed at once


class Wrapper(nn.Module):
    """A classifier seen through another; the mode, training or not, is the seen model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Counted(Wrapper):
    """Counts images passed forward, and those of them passed with gradients; ends passes when time is over."""

    def __init__(self, model: nn.Module, clock: Clock | None = None) -> None:
        super().__init__(model)
        self.clock = clock or Clock()
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits."""
        self.count(len(x), x)
        return self.model(x)

    def count(self, images: int, x: Tensor) -> None:
        """Count ``images`` passes of images like ``x``."""
        self.clock.check()
        self.forwards += images
        self.backwards += images if x.requires_grad and torch.is_grad_enabled() else 0


class SameType(Wrapper):
    """Outputs in the type of the images; wider ones are shifted first, so that rounding makes no ties at the top."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K), of the type of ``x`` or a narrower one."""
        logits = self.model(x)
        if logits.element_size() <= x.element_size():
            return logits
        return (logits - logits.detach().amax(1, keepdim=True)).to(x.dtype)


class LogProbabilities(Wrapper):
    """Logits of a model that returns probabilities: their logarithm, which leaves every decision as it is.

    Rows that do not sum to 1, such as one-against-all sigmoids, become log p - log(1 - p), flat at neither end.
    """

    def __init__(self, model: nn.Module, normalised: bool = True) -> None:
        super().__init__(model)
        self.normalised = normalised

    def forward(self, x: Tensor) -> Tensor:
        """Return log p or log(p / (1 - p)), (N, K)."""
        p = self.model(x)
        limits = torch.finfo(p.dtype)
        logs = p.clamp_min(limits.tiny).log()
        return logs if self.normalised else logs - (1 - p).clamp_min(limits.eps / 2).log()


class Negated(Wrapper):
    """The model with its gradient turned round."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits (N, K)."""
        logits = self.model(x)
        return logits.detach() + (logits.detach() - logits)


class Rescaled(Wrapper):
    """Logits divided by one number for all images."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__(model)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled logits (N, K)."""
        return self.model(x) / self.scale


class LabelVotes(Wrapper):
    """Shares of the classes among the labels of noisy copies: all that a model showing labels alone gives away.

    The proxy score of label-only attacks (Ilyas et al. 2018, section 2.4).
    """

    def __init__(self, model: nn.Module, sigma: float, draws: int) -> None:
        super().__init__(model)
        self.sigma, self.draws = sigma, draws

    def forward(self, x: Tensor) -> Tensor:
        """Return the shares (N, K), plus 1 for the class of the image itself: so the decision stays the model's."""
        with torch.no_grad():
            logits = self.model(x)
            noisy = _noisy(_copies(x, self.draws), self.sigma)
            labels = self.model(noisy).argmax(1).view(self.draws, len(x))
        own = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()
        votes = nn.functional.one_hot(labels, logits.shape[1]).float().mean(0)
        return votes + 1.001 * own  # no vote can outweigh the image's own label


class Averaged(Wrapper):
    """Mean logits over several passes, for models with random outputs: expectation over transformation.

    Athalye et al. 2018.
    """

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__(model)
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits (N, K)."""
        return torch.stack([self.model(x).float() for _ in range(self.passes)]).mean(0)


class WithCompanions(Wrapper):
    """Each image passed alone among fixed clean neighbours: what a model that looks at its batch says of that image.

    Without it, images attacked together would shift the batch's statistics together, and cancel out.
    """

    def __init__(self, model: nn.Module, companions: Tensor, counter: Counted) -> None:
        super().__init__(model)
        self.companions = companions
        self.together = True
        self._counter = (counter,)  # not a child: it is one already

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of each image in its own batch."""
        (counter,) = self._counter
        if self.together:
            with own_errors():
                before = counter.forwards, counter.backwards
                logits = torch.func.vmap(self._alone, randomness="different", chunk_size=_TOGETHER)(x)
                counter.forwards, counter.backwards = before  # within vmap it sees one image of every chunk
                counter.count(len(x) * (1 + len(self.companions)), x)
                return logits
            self.together = False  # some layers have no rule for it, such as those that count their batches
        return torch.stack([self._alone(image) for image in x])

    def _alone(self, image: Tensor) -> Tensor:
        return self.model(torch.cat([image[None], self.companions]))[0]


class Smoothed(Wrapper):
    """The model's logits with the gradient of their mean over Gaussian noise.

    Averaging finds the slope under shattered gradients; the decision stays the model's.
    """

    def __init__(self, model: nn.Module, sigma: float, draws: int) -> None:
        super().__init__(model)
        self.sigma, self.draws = sigma, draws

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits (N, K)."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.model(x)
        with torch.no_grad():
            hard = self.model(x)
        noisy = _noisy(_copies(x, self.draws), self.sigma)
        soft = self.model(noisy).view(self.draws, len(x), -1).mean(0)
        return soft + (hard - soft).detach()


class BackwardThrough(Wrapper):
    """The model's logits with the gradient of a differentiable surrogate (BPDA, Athalye et al. 2018)."""

    def __init__(self, model: nn.Module, surrogate: nn.Module) -> None:
        super().__init__(model)
        self.surrogate = surrogate

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits (N, K)."""
        with torch.no_grad():
            hard = self.model(x).float()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return hard
        soft = self.surrogate(x)
        return soft + (hard - soft).detach()


class Differenced(Wrapper):
    """The model's logits with a gradient from finite differences along random orthogonal directions.

    With as many directions as pixels it is exact for a linear function; with fewer it is the slope's projection on
    them, smoothed over ``radius`` (Spall 1992; Ilyas et al. 2018). It needs no gradient of the model. The gradient of
    a ``guide`` is one direction more, each image's own (Cheng et al. 2019, prior-guided).
    """

    def __init__(
        self, model: nn.Module, radius: float, directions: int, guide: nn.Module | None = None
    ) -> None:
        super().__init__(model)
        self.radius, self.directions = radius, directions
        self._guide = (guide,)  # not a child: attacks need not freeze it

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits (N, K)."""
        with torch.no_grad():
            hard = self.model(x).float()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return hard
        return _Difference.apply(x, hard, self)

    def slope(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the estimated gradient of (weights * logits).sum() with respect to ``x``."""
        pixels = x[0].numel()
        count = min(self.directions, pixels)
        basis = torch.linalg.qr(torch.randn(pixels, count, device=x.device)).Q.T.to(x.dtype)
        grad = torch.zeros_like(x).flatten(1)
        lines = [line.expand(len(x), -1) for line in (*basis[:, None], *self._prior(x, weights))]
        together = max(1, default_batch_size(x) // (2 * len(x)))  # a call may cost more than its images
        for first in range(0, len(lines), together):
            # One unit a pixel, on average.
            part = torch.stack(lines[first : first + together]) * pixels**0.5
            move, here = self.radius * part.view(-1, *x.shape[1:]), _copies(x, len(part))
            ends = torch.cat([(here + move).clamp(0, 1), (here - move).clamp(0, 1)])
            after, before = self.model(ends).float().chunk(2)
            change = (weights * (after - before).view(len(part), *weights.shape)).sum(2)
            # A pixel at its bound moves to one side only.
            moved = (ends[: len(here)] - ends[len(here) :]).view_as(part)
            share = part.square() / moved.where(moved != 0, torch.ones_like(moved))
            grad += (change[..., None].to(x.dtype) * share.where(moved != 0, 0)).sum(0)
        return (grad / pixels).view_as(x)

    def _prior(self, x: Tensor, weights: Tensor) -> list[Tensor]:
        """The guide's gradients of the same function, as unit vectors (n, pixels)."""
        (guide,) = self._guide
        if guide is None:
            return []
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad((weights * guide(leaf)).sum(), leaf)
        return [nn.functional.normalize(grad.flatten(1), eps=1e-30)]


class _Difference(torch.autograd.Function):
    """Hands logits on and asks the view for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, view: Differenced) -> Tensor:
        ctx.save_for_backward(x)
        ctx.view = view
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return ctx.view.slope(x, weights), None, None


def _copies(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, *(1,) * (x.ndim - 1))


def _noisy(x: Tensor, sigma: float) -> Tensor:
    """Images ``x`` with Gaussian noise, kept in [0, 1]; gradients pass as if nothing had been cut off."""
    noise = sigma * torch.randn_like(x)
    return x + ((x + noise).clamp(0, 1) - x).detach()
