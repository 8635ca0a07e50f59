"""The published AutoAttack in float64, one sample at a time, and its random numbers as a source for our attacks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def float64() -> Iterator[None]:
    """Within, what the published code makes, or rounds to float32, is float64; PyTorch's state is restored."""
    convert = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float = convert


class Recording:
    """A classifier that keeps the images at which its gradient was taken."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model
        self.points: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.points.append(x.detach().clone())
        return self.model(x)


class PublishedDraws:
    """A random source with the numbers that the published code draws for a sample that it attacks alone.

    That code seeds PyTorch's generator when an attack begins and draws as it goes; our attacks say instead what a
    number is for.
    """

    def __init__(self, seed: int, place: Callable[[int], int] = lambda attempt: attempt) -> None:
        """``place`` says which draw (0, 1, ...) is the start of a try."""
        self.generator = torch.Generator().manual_seed(seed)
        self.place = place
        self.drawn: list[Tensor] = []

    def normal(self, ids: Tensor, shape: tuple[int, ...], attempt: Tensor) -> Tensor:
        return self._nth(torch.randn, shape, [self.place(one) for one in attempt.tolist()])

    def uniform(self, ids: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        if len(path) == 1:
            return self._nth(torch.rand, shape, [self.place(one) for one in path[0].tolist()])
        if path[1] == 0:  # Square's start, which it asks for in the order of the published code
            return torch.rand((1, *shape), generator=self.generator, dtype=torch.float64)
        return self._nth(torch.rand, shape, path[2].tolist())

    def _nth(self, draw: Callable[..., Tensor], shape: tuple[int, ...], places: list[int]) -> Tensor:
        while len(self.drawn) <= max(places):
            self.drawn.append(draw(shape, generator=self.generator, dtype=torch.float64))
        return torch.stack([self.drawn[place] for place in places])
