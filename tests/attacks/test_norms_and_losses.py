"""Norms, projections, losses and draws against closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.core.errors import AttackError
from attacks.core.losses import LOSSES, get_loss, misclassified
from attacks.core.norms import NORMS, ball_and_box, get_norm
from attacks.core.rng import draws_for

seeds = st.integers(0, 2**31)
norms = st.sampled_from(NORMS)


def scene(seed, norm, pixels=6, n=5):
    """Images, points anywhere around them, and radii from 0 up to the diameter; float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, pixels, generator=generator, dtype=torch.float64)
    x[0] = x[0].round()
    z = x + torch.randn(n, pixels, generator=generator, dtype=torch.float64)
    eps = torch.rand(n, generator=generator, dtype=torch.float64) * get_norm(norm).diameter(pixels)
    eps[1] = 0
    return x, z, eps


class TestNorms:
    @given(seeds, norms)
    @settings(max_examples=60, deadline=None)
    def test_projection_is_inside_and_idempotent(self, seed, name):
        x, z, eps = scene(seed, name)
        norm = get_norm(name)
        p = ball_and_box(z, x, eps, norm)
        assert ((p >= 0) & (p <= 1)).all()
        assert (norm.length(p - x) <= eps + 1e-9).all()
        torch.testing.assert_close(ball_and_box(p, x, eps, norm), p)
        delta = norm.project(z - x, eps)
        assert (norm.length(delta) <= eps + 1e-9).all()
        torch.testing.assert_close(norm.project(delta, eps), delta)

    @pytest.mark.slow
    @given(seeds, norms)
    @settings(max_examples=30, deadline=None)
    def test_projection_is_the_nearest_point(self, seed, name):
        """p is nearest to z in a convex set exactly if (z - p).(s - p) <= 0 for every point s of the set."""
        x, z, eps = scene(seed, name)
        norm = get_norm(name)
        draws = draws_for(seed, torch.arange(len(x)))
        for box in (True, False):
            p = ball_and_box(z, x, eps, norm) if box else x + norm.project(z - x, eps)
            for k in range(30):
                scale = 1 if k % 2 else 50  # points of the whole ball, and of its surface
                s = x + norm.project(norm.random(draws.fork(k), (6,), eps) * scale, eps)
                s = s.clamp(0, 1) if box else s
                assert (((z - p) * (s - p)).sum(1) <= 1e-9).all()

    @pytest.mark.parametrize("name", NORMS)
    def test_projection_agrees_with_a_general_solver(self, name):
        optimize = pytest.importorskip("scipy.optimize")
        x, z, eps = scene(7, name, pixels=3)
        norm = get_norm(name)
        found = ball_and_box(z, x, eps, norm)
        for i in range(2, len(x)):
            # delta = plus - minus with both >= 0 makes every ball smooth in the variables.
            target, radius, room = (z[i] - x[i]).numpy(), float(eps[i]), torch.cat([1 - x[i], x[i]]).numpy()
            ball = {
                "Linf": lambda v, r=radius: r - v,
                "L2": lambda v, r=radius: r**2 - ((v[:3] - v[3:]) ** 2).sum(),
                "L1": lambda v, r=radius: r - v.sum(),
            }[name]
            best = optimize.minimize(
                lambda v, t=target: ((v[:3] - v[3:] - t) ** 2).sum(),
                [0.0] * 6,
                bounds=[(0, r) for r in room],
                constraints={"type": "ineq", "fun": ball},
                tol=1e-12,
            )
            distance = float(((found[i] - z[i]) ** 2).sum())
            assert distance == pytest.approx(best.fun, abs=1e-5)

    @pytest.mark.parametrize("name", NORMS)
    def test_float32_images_of_real_size_stay_inside(self, name):
        x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        eps = torch.tensor([0.0, 0.03, 0.3]) * {"Linf": 1, "L2": 16, "L1": 400}[name]
        p = ball_and_box(x + torch.randn_like(x), x, eps, name)
        assert (get_norm(name).length(p - x) <= eps * (1 + 1e-5) + 1e-6).all()
        assert p.shape == x.shape

    @given(seeds, norms)
    @settings(max_examples=30, deadline=None)
    def test_step_is_steepest(self, seed, name):
        """The unit step gains the dual norm of the gradient, the most that unit length can gain."""
        grad = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        grad[0] = 0
        grad[1] *= 1e-100
        norm = get_norm(name)
        step = norm.step(grad)
        dual = {"Linf": 1, "L2": 2, "L1": math.inf}[name]
        gain = torch.linalg.vector_norm(grad, ord=dual, dim=1)
        torch.testing.assert_close((grad * step).sum(1), gain, rtol=1e-9, atol=0)
        torch.testing.assert_close(norm.length(step)[1:], torch.ones(3, dtype=torch.float64))
        assert (step[0] == 0).all()

    def test_l2_step_of_a_gradient_whose_square_underflows(self):
        grad = torch.full((1, 4), 1e-30)
        torch.testing.assert_close(get_norm("L2").step(grad), torch.full((1, 4), 0.5))

    def test_l1_ascent_spends_its_length_within_the_box(self):
        x = torch.tensor([[0.9, 0.5, 0.2, 0.5]])
        grad = torch.tensor([[3.0, -2.0, 1.0, 0.0]])
        moved = get_norm("L1").ascend(x, grad, torch.tensor([1.0]))
        torch.testing.assert_close(moved, torch.tensor([[1.0, 0.0, 0.6, 0.5]]))

    @pytest.mark.parametrize("name", NORMS)
    def test_random_start_fills_the_ball_uniformly(self, name):
        """Within half the radius lies the share 2^-d of the volume, and the mean is the centre."""
        norm, n, d = get_norm(name), 20000, 3
        eps = torch.full((n,), 0.4)
        delta = norm.random(draws_for(3, torch.arange(n)), (d,), eps)
        length = norm.length(delta)
        assert (length <= 0.4 + 1e-6).all()
        assert (length < 0.2).float().mean().item() == pytest.approx(2.0**-d, abs=0.01)
        assert delta.mean(0).abs().max() < 0.01

    def test_unknown_norm_lists_the_valid_ones(self):
        with pytest.raises(AttackError, match=r"'linf'; valid: Linf, L2, L1. Did you mean 'Linf'"):
            get_norm("linf")


class TestLosses:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0], [0.0, 3.0, 1.0, 2.0]])
    y = torch.tensor([0, 2])
    targets = torch.tensor([1, 3])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("ce", [-math.log(math.exp(2) / sum(map(math.exp, (2, 1, 0.5, -1)))), None]),
            ("margin", [-1.0, 2.0]),
            ("dlr", [-1 / 1.5, 2 / 2]),
            ("mifpe", [-math.log(math.exp(2) / sum(map(math.exp, (2, 1, 0.5, -1)))), None]),
        ],
    )
    def test_untargeted_by_hand(self, name, expected):
        found = get_loss(name)(self.logits, self.y, None)
        for value, wanted in zip(found.tolist(), expected, strict=True):
            assert wanted is None or value == pytest.approx(wanted, rel=1e-6)

    def test_targeted_by_hand(self):
        found = {name: get_loss(name)(self.logits, self.y, self.targets) for name in LOSSES}
        assert found["margin"].tolist() == [-1.0, 1.0]
        torch.testing.assert_close(found["dlr"], torch.tensor([-1 / (2 - (0.5 - 1) / 2), 1 / (3 - 0.5)]))
        torch.testing.assert_close(found["ce"], self.logits.log_softmax(1)[[0, 1], self.targets])
        torch.testing.assert_close(found["mifpe"], found["ce"])  # both gaps are 1

    @given(seeds, st.sampled_from(LOSSES))
    @settings(max_examples=30, deadline=None)
    def test_gradient_pushes_the_true_logit_down(self, seed, name):
        logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        y = logits.argmax(1)
        logits.requires_grad_()
        (grad,) = torch.autograd.grad(get_loss(name)(logits, y, None).sum(), logits)
        assert (grad.gather(1, y[:, None]) < 0).all()
        assert (grad.sum(1).abs() < 1e-9).all()  # a shift of all logits changes nothing

    def test_margin_is_positive_where_misclassified(self):
        logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        y = torch.randint(4, (200,), generator=torch.Generator().manual_seed(1))
        assert ((get_loss("margin")(logits, y, None) > 0) == misclassified(logits, y)).all()

    @pytest.mark.parametrize("factor", [1.0, 1e3])
    def test_mifpe_keeps_its_gradient_on_saturated_logits(self, factor):
        logits = (self.logits[:1] * factor).requires_grad_()
        get_loss("mifpe")(logits, self.y[:1], None).sum().backward()
        assert logits.grad.norm() * factor > 0.4
        logits.grad = None
        get_loss("ce")(logits, self.y[:1], None).sum().backward()
        assert (logits.grad.norm() > 0.1) == (factor == 1.0)

    def test_too_few_classes(self):
        two, three = torch.zeros(1, 2), torch.zeros(1, 3)
        y, targets = torch.tensor([0]), torch.tensor([1])
        with pytest.raises(
            AttackError, match=r"dlr loss needs at least 3 classes, the model has 2; use loss='ce'"
        ):
            get_loss("dlr")(two, y, None)
        with pytest.raises(AttackError, match="targeted dlr loss needs at least 4 classes"):
            get_loss("dlr")(three, y, targets)
        get_loss("dlr")(three, y, None)

    def test_nan_counts_as_misclassified(self):
        logits = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [0.0, math.nan]])
        assert misclassified(logits, torch.tensor([0, 0, 0])).tolist() == [False, True, True]


class TestDraws:
    @given(seeds, st.lists(st.integers(0, 2**40), min_size=4, max_size=9, unique=True), st.integers(1, 3))
    @settings(max_examples=30, deadline=None)
    def test_do_not_depend_on_the_batch(self, seed, ids, cut):
        ids = torch.tensor(ids)
        whole = draws_for(seed, ids).fork(3, 5)
        parts = [draws_for(seed, part).fork(3, 5) for part in (ids[:cut], ids[cut:])]
        for draw in (
            lambda d: d.uniform((3, 5)),
            lambda d: d.normal((3, 5)),
            lambda d: d.signs((70,)),
            lambda d: d.integers(10, (4,)),
            lambda d: d.permutation(9),
        ):
            assert torch.equal(draw(whole), torch.cat([draw(part) for part in parts]))

    def test_forks_by_tensor_equal_forks_by_number(self):
        draws = draws_for(0, torch.arange(3))
        steps = torch.tensor([4, 0, 7])
        together = draws.fork(steps).uniform((2,))
        for i, step in enumerate(steps.tolist()):
            assert torch.equal(together[i], draws.fork(step).uniform((2,))[i])

    def test_streams_are_distinct(self):
        draws = draws_for(0, torch.arange(50))
        words = [draws.fork(k).bits(20) for k in range(5)] + [draws_for(1, torch.arange(50)).fork(0).bits(20)]
        words += [
            draws.fork(1, 0).bits(20),
            draws.fork(0, 1).bits(20),
            draws_for(-1, torch.arange(50)).bits(20),
        ]
        assert torch.stack(words).unique().numel() == len(words) * 50 * 20

    def test_distributions(self):
        draws = draws_for(11, torch.arange(300))
        uniform, normal = draws.uniform((300,)), draws.fork(1).normal((301,))
        assert uniform.min() >= 0
        assert uniform.max() < 1
        assert uniform.histc(10, 0, 1).div(uniform.numel()).sub(0.1).abs().max() < 0.005
        assert normal.mean().abs() < 0.01
        assert normal.std().item() == pytest.approx(1, abs=0.01)
        assert normal.pow(4).mean().item() == pytest.approx(3, abs=0.1)
        signs = draws.fork(2).signs((257,))
        assert signs.unique().tolist() == [-1, 1]
        assert signs.mean().abs() < 0.02
        # Neighbouring samples and neighbouring places are uncorrelated.
        for series in (uniform, normal[:, :300], signs):
            assert torch.corrcoef(series[:40]).fill_diagonal_(0).abs().max() < 0.3
            assert (
                torch.corrcoef(torch.stack([series[:, :-1].flatten(), series[:, 1:].flatten()]))[0, 1].abs()
                < 0.02
            )

    def test_integers_and_permutations(self):
        draws = draws_for(0, torch.arange(2000))
        counts = draws.integers(7, (2,)).flatten().bincount()
        assert len(counts) == 7
        assert counts.min() > 450
        assert (draws.permutation(6).sort(1).values == torch.arange(6)).all()
