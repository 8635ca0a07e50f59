"""Norms, losses, draws, model access, checks and the final verification that all attacks rest on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks.checks import check_model
from attacks.core.batching import Batches
from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from attacks.core.losses import LOSSES, get_loss, misclassified
from attacks.core.model import CountedModel, forward, frozen
from attacks.core.norms import NORMS, ball_and_box, get_norm
from attacks.core.result import finish, in_batches
from attacks.core.rng import draws_for
from tests.support.attack_models import Linear, cnn_problem, linear_problem, random_cnn

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


class TestCountedModel:
    def test_counts_and_gradient(self):
        model, x, y = linear_problem()
        problem = validate_inputs(x, y, norm="L2", eps=0.1)
        counted = CountedModel(model, problem, samples=3)
        rows = torch.tensor([2, 5])
        with frozen(model):
            found = counted.gradient(x[rows], lambda z: z[:, 1] * 2, rows)
            counted.logits(x)
        torch.testing.assert_close(
            found.grad, (2 * model.weight).view(1, 1, 4, 4).expand(2, 1, 4, 4).detach()
        )
        assert counted.queries[rows].tolist() == [4, 4]
        assert counted.queries[0] == 1
        assert counted.backwards.sum() == 6

    def test_parameters_are_frozen_and_restored(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2))
        model[1].weight.requires_grad_(False)
        before = [p.requires_grad for p in model.parameters()]
        inside = []

        def attack():
            with frozen(model), frozen(model):
                inside.extend(p.requires_grad for p in model.parameters())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            attack()
        assert inside == [False] * 4
        assert [p.requires_grad for p in model.parameters()] == before

    def test_works_under_no_grad_and_inference_mode(self):
        model, x, y = linear_problem()
        counted = CountedModel(model, validate_inputs(x, y, norm="L2", eps=0.1))
        with torch.inference_mode():
            grad = counted.gradient(x, lambda z: z[:, 1]).grad
        with torch.no_grad():
            assert torch.equal(counted.gradient(x, lambda z: z[:, 1]).grad, grad)

    def test_fast_layout_changes_no_value_and_is_undone(self):
        from attacks.core.memory_format import fast_layout

        model, x, _ = cnn_problem(dtype=torch.float32)
        before = forward(model, x)
        storage = [p.data_ptr() for p in model.parameters()]
        with fast_layout(model, x):
            assert not model[3].weight.is_contiguous()
            torch.testing.assert_close(forward(model, x), before)
        assert [p.data_ptr() for p in model.parameters()] == storage
        assert torch.equal(forward(model, x), before)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda x: x.flatten(1)[:, :3].detach(), "carry no gradient to the input"),
            (lambda x: torch.ones(len(x), 3, requires_grad=True), "carry no gradient to the input"),
            (lambda x: (x.flatten(1),), "must return a tensor of logits .* got tuple"),
            (lambda x: x.sum(), r"for 12 images the model must return logits \(12, K >= 2\), not \(\)"),
            (lambda x: x.flatten(1)[:, :1], r"not \(12, 1\)"),
        ],
    )
    def test_wrong_models(self, model, message):
        _, x, y = linear_problem()
        counted = CountedModel(model, validate_inputs(x, y, norm="L2", eps=0.1))
        with pytest.raises(AttackError, match=message):
            counted.gradient(x, lambda z: z.sum(1))

    def test_labels_beyond_the_classes(self):
        model, x, y = linear_problem()
        with pytest.raises(AttackError, match="label 2 is out of range for a model of 2 classes"):
            CountedModel(model, validate_inputs(x, torch.full_like(y, 2), norm="L2", eps=0.1)).clean_logits()


class TestInputs:
    x, y = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (
                {"x": (torch.rand(4, 1, 2, 2) * 255).byte()},
                r"float tensor in \[0, 1\], got torch.uint8; convert",
            ),
            ({"x": torch.full((4, 1, 2, 2), 255.0)}, r"must lie in \[0, 1\], found 255..255; scale them"),
            ({"x": torch.full((4, 1, 2, 2), math.nan)}, r"must lie in \[0, 1\], found nan"),
            ({"x": torch.full((4, 1, 2, 2), -0.1)}, "move the normalisation into the model"),
            ({"x": torch.rand(0, 1, 2, 2)}, "with N >= 1"),
            ({"x": [[0.5]]}, "got list"),
            ({"y": torch.zeros(3, dtype=torch.int64)}, r"shape \(4,\), one per image, got \(3,\)"),
            (
                {"y": torch.zeros(4)},
                r"must be an integer tensor, got torch.float32; convert, e.g. y.long\(\)",
            ),
            ({"y": torch.tensor([0, -1, 0, 0])}, "labels must be 0..K-1, found -1"),
            ({"targets": torch.zeros(4, dtype=torch.int64)}, "another class"),
            ({"eps": -0.1}, "finite number >= 0, got -0.1"),
            ({"eps": math.nan}, "finite number >= 0"),
            ({"eps": math.inf}, "finite number >= 0"),
            ({"eps": 8}, r"eps 8 exceeds 1, the Linf diameter .* 0..255 scale: divide by 255"),
            ({"eps": torch.tensor([0.1, 0.2])}, r"one number or of shape \(4,\), got \(2,\)"),
            ({"norm": "L2", "eps": 128.0}, "exceeds 2, the L2 diameter"),
            ({"sample_ids": torch.arange(3)}, "sample_ids must have shape"),
        ],
    )
    def test_errors_name_value_expectation_and_remedy(self, changed, message):
        with pytest.raises(AttackError, match=message):
            validate_inputs(**{"x": self.x, "y": self.y, "norm": "Linf", "eps": 0.1, **changed})

    def test_per_sample_radii_and_rows(self):
        eps = torch.tensor([0.1, 0.2, 0.3, 0.4])
        problem = validate_inputs(self.x, self.y.int(), norm="Linf", eps=eps)[torch.tensor([3, 1])]
        assert problem.eps.tolist() == pytest.approx([0.4, 0.2])
        assert problem.ids.tolist() == [3, 1]
        assert problem.y.dtype == torch.int64


class TestFinish:
    def test_a_faulty_attack_is_caught(self):
        """Points outside the ball or the box, or not finite, are judged after projection, and reported."""
        model, x, y = linear_problem(6)
        problem = validate_inputs(x, y, norm="Linf", eps=0.01)
        candidate = x.clone()
        flip = -model.weight.sign().view(1, 4, 4) * (2 * y.double() - 1).view(-1, 1, 1, 1)
        candidate[0] += 0.4 * flip[0]
        candidate[1] = 7
        candidate[2, 0, 0, 0] = math.nan
        candidate[3, 0, 0, 0] = math.inf
        candidate[4] += 0.01 * flip[4]
        result = finish(CountedModel(model, problem), problem, candidate)
        assert result.trace["outside"].tolist() == [True, True, True, True, False, False]
        assert (result.distance(x, "Linf") <= 0.01 + 1e-9).all()
        assert torch.equal(result.adversarial[2:4], x[2:4])
        assert torch.equal(result.adversarial[4:], candidate[4:])
        assert torch.equal(result.success, model(result.adversarial).argmax(1) != y)
        assert result.queries.sum() == 0

    def test_nan_logits_count_as_success_and_are_told(self):
        x, y = torch.full((3, 1, 1, 2), 0.5), torch.zeros(3, dtype=torch.int64)
        problem = validate_inputs(x, y, norm="Linf", eps=0.1)
        model = Linear(torch.tensor([-1.0, -1.0]))
        candidate = x.clone()
        candidate[1] += 0.05
        result = finish(
            CountedModel(
                lambda images: model(images).where(images.flatten(1)[:, :1] <= 0.5, math.nan), problem
            ),
            problem,
            candidate,
        )
        assert result.success.tolist() == result.trace["nan"].tolist() == [False, True, False]
        assert result.robust_accuracy == pytest.approx(2 / 3)

    def test_clean_errors_count(self):
        model, x, y = linear_problem(4)
        wrong = torch.tensor([True, False, False, False])
        problem = validate_inputs(x, torch.where(wrong, 1 - y, y), norm="L2", eps=4.0)
        candidate = x.clone()
        candidate[0] = (x[0] + 0.4 * (2 * problem.y[0] - 1) * model.weight.sign().view(1, 4, 4)).detach()
        assert model(candidate[:1]).argmax(1) == problem.y[0]
        result = finish(CountedModel(model, problem), problem, candidate, clean_wrong=wrong)
        assert result.success.tolist() == wrong.tolist()
        assert torch.equal(result.adversarial, x)


class TestBatches:
    @pytest.mark.slow
    def test_out_of_memory_halves_and_goes_on(self):
        model, x, y = linear_problem(10)
        problem = validate_inputs(x, y, norm="L2", eps=0.1)
        sizes = []

        def attack(batch):
            sizes.append(len(batch))
            if len(batch) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return finish(CountedModel(model, batch), batch, batch.x, trace={"ids": batch.ids})

        with pytest.warns(UserWarning, match="going on with batches of [42] images"):
            result = in_batches(attack, problem, 8)
        assert sizes == [8, 4, 2, 2, 2, 2, 2]
        assert result.trace["ids"].tolist() == list(range(10))

    @pytest.mark.slow
    def test_the_cpu_allocator_speaks_by_message(self):
        def work(rows):
            if len(rows) > 1:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
                )
            return rows

        with pytest.warns(UserWarning, match="out of memory"):
            assert len(Batches(torch.rand(4, 3), 4).map(work, torch.arange(4))) == 4

    def test_one_image_too_many(self):
        def work(rows):
            raise torch.OutOfMemoryError

        with pytest.raises(AttackError, match="single image"):
            Batches(torch.rand(4, 3), 1).map(work, torch.arange(4))

    def test_other_errors_pass(self):
        def work(rows):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        with pytest.raises(RuntimeError, match="mat1"):
            Batches(torch.rand(4, 3), 2).map(work, torch.arange(4))

    def test_batch_size_must_be_positive(self):
        with pytest.raises(AttackError, match="batch_size must be at least 1, got 0"):
            Batches(torch.rand(4, 3), 0)


class TestCheckModel:
    @staticmethod
    def check(model, x, y, **options):
        return check_model(model, x, y, **{"norm": "Linf", "eps": 0.1, **options})

    def test_a_sound_model_raises_no_warning(self):
        model, x, y = cnn_problem()
        report = self.check(model, x, y)
        assert report.warnings == ()
        assert (report.images, report.classes) == (40, 5)
        assert report.clean_accuracy == pytest.approx(0.9)

    def test_probabilities(self):
        model, x, y = cnn_problem()
        report = self.check(nn.Sequential(model, nn.Softmax(1)), x, y)
        assert report.probabilities
        assert "probabilities, not logits" in report.warnings[0]

    def test_few_classes(self):
        model, x, y = linear_problem()
        assert "2 classes: the targeted DLR loss needs 4" in self.check(model, x, y).warnings[0]
        with pytest.raises(AttackError, match="dlr loss needs at least 3 classes"):
            self.check(model, x, y, loss="dlr")

    def test_training_mode(self):
        model, x, y = cnn_problem()
        random = nn.Sequential(model, nn.Dropout(0.1))
        report = self.check(random, x, y)
        assert "training mode (Dropout)" in report.warnings[0]
        assert not report.random_outputs
        assert random[1].training
        assert self.check(model.train(), x, y).warnings == ()  # nothing in it behaves differently

    def test_random_outputs(self):
        model, x, y = cnn_problem()
        assert self.check(
            lambda images: model(images) + 0.01 * torch.randn(len(images), 5), x, y
        ).random_outputs
        assert not self.check(
            lambda images: model(images) + 1e-9 * torch.randn(len(images), 5), x, y
        ).random_outputs

    def test_nan(self):
        model, x, y = cnn_problem()
        some = self.check(
            lambda images: model(images).where(images.sum((1, 2, 3))[:, None] < 32, math.nan), x, y
        )
        assert 0 < some.nan_logits < 1
        assert "NaN logits" in some.warnings[0]
        with pytest.raises(AttackError, match="all logits are NaN"):
            self.check(lambda images: model(images) * math.nan, x, y)

    def test_no_gradient(self):
        model, x, y = cnn_problem()
        with pytest.raises(AttackError, match="no gradient"):
            self.check(lambda images: model(images).detach(), x, y)
        report = self.check(lambda images: model(images).detach(), x, y, needs_gradient=False)
        assert not report.differentiable
        rounded = self.check(lambda images: model((images * 4).round() / 4), x, y)
        assert rounded.zero_gradients == 1
        assert "gradients are masked" in rounded.warnings[0]

    def test_saturated_logits(self):
        model, x, y = cnn_problem(scale=100)
        report = self.check(model, x, y)
        assert report.saturated > 0.5
        assert "use loss='mifpe'" in report.warnings[0]

    def test_images_the_model_cannot_take(self):
        model, x, y = cnn_problem()
        with pytest.raises(AttackError, match=r"fails on torch.float64 images of shape \(40, 1, 4, 4\)"):
            self.check(model, x[:, :, :4, :4], y)
        with pytest.raises(AttackError, match=r"fails on torch.float32 images"):
            self.check(random_cnn(), x.float(), y)
        with pytest.raises(AttackError, match="out of range for a model of 5 classes"):
            self.check(model, x, y + 3)
