"""Counted passes, checked inputs, the final verification, batches and the sanity checks before an attack."""

import math

import pytest
import torch
from torch import nn

from attacks.checks import check_model
from attacks.core.batching import Batches
from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from attacks.core.model import CountedModel, forward
from attacks.core.model_state import frozen
from attacks.core.result import finish, in_batches
from tests.support.attack_models import Linear, cnn_problem, linear_problem, random_cnn


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
        from attacks.core.model_state import fast_layout

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
