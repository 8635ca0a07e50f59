"""The threshold of the L1 projection: it spends the radius exactly, and both ways to find it agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.core.projections import by_newton, by_sorting

BOTH = pytest.mark.parametrize("find", [by_newton, by_sorting])


def kept(size, room, t):
    return torch.minimum((size - t[:, None]).clamp_min(0), room).sum(1)


@BOTH
def test_known_thresholds(find):
    size = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.2, 0.1, 0.0]])
    room = torch.tensor([[torch.inf] * 3, [1.0, 1.0, 1.0], [1.0, 0.5, 2.0], [1.0] * 3])
    eps = torch.tensor([3.0, 2.0, 1.25, 1.0])
    # 3 - 1 + 2 - 1; 1 + 1 + (1 - 1); 1 + (2 - 1.75); nothing to shrink.
    torch.testing.assert_close(find(size, room, eps), torch.tensor([1.0, 1.0, 1.75, 0.0]))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    pixels=st.integers(1, 60),
    scale=st.floats(1e-3, 100.0),
    levels=st.sampled_from([0, 1, 3]),
)
def test_the_radius_is_spent_and_the_ways_agree(seed, pixels, scale, levels):
    generator = torch.Generator().manual_seed(seed)
    size, room = torch.rand(2, 7, pixels, generator=generator, dtype=torch.float64)
    if levels:  # ties
        size, room = (size * levels).round() / levels, (room * levels).round() / levels
    size = size * scale
    eps = torch.rand(7, generator=generator, dtype=torch.float64) * pixels / 3
    newton, sorting = by_newton(size, room, eps), by_sorting(size, room, eps)
    spent = torch.minimum(kept(size, room, torch.zeros_like(eps)), eps)
    for t in (newton, sorting):
        assert (t >= 0).all()
        torch.testing.assert_close(kept(size, room, t), spent)


def test_a_row_does_not_depend_on_the_others():
    size, room = torch.rand(2, 50, 30, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[[3.0]], [[1.0]]]
    )
    eps = torch.linspace(0.1, 9, 50)
    alone = torch.cat(
        [by_newton(*row) for row in zip(size.split(1), room.split(1), eps.split(1), strict=True)]
    )
    assert torch.equal(by_newton(size, room, eps), alone)
