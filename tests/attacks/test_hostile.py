"""Hostile models, images and options: every attack works on them, or refuses them in one line."""

import inspect
import threading

import pytest
import torch
from torch import nn

import attacks
from attacks.checks import check_model
from attacks.core.entry import RULES
from attacks.core.errors import AttackError
from attacks.core.inputs import towards, validate_inputs
from attacks.core.norms import get_norm
from attacks.core.pass_counts import repair
from tests.attacks.test_table import CASES, FOOLBOX, TABLE, run

GRADIENT = ("fgsm", "pgd", "apgd", "multitargeted", "fab", "fab_targeted")
VERSIONS = ("standard", "plus", "fast")
QUICK = [pytest.param(name, TABLE[name][1][0], id=name) for name in TABLE if name not in FOOLBOX]


def net(shape=(1, 8, 8), classes=10):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pixels = torch.Size(shape).numel()
        layers = nn.Flatten(), nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, classes)
        return nn.Sequential(*layers).eval()


def images(n=6, shape=(1, 8, 8)):
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(1))


class Before(nn.Module):
    """A network behind a function of its images."""

    def __init__(self, function, model=None, after=lambda logits: logits):
        super().__init__()
        self.function, self.model, self.after = function, model or net(), after

    def forward(self, x):
        return self.after(self.model(self.function(x)))


class TestGradientsThatAreNotFinite:
    def test_repair(self):
        grad = torch.tensor(
            [[1.0, -3.0], [torch.inf, -2.0], [torch.nan, 1.0], [torch.nan, torch.nan], [0, -torch.inf]]
        )
        repaired = repair(grad)
        expected = torch.tensor(
            [[1.0, -3.0], [2.0, -2.0], [0.0, 1.0], [0.0, 0.0], [0.0, -torch.finfo().tiny]]
        )
        assert torch.equal(repaired.grad, expected)
        assert repaired.odd.tolist() == [False, True, True, True, True]
        assert repaired.blind.tolist() == [False, False, False, True, False]
        assert repair(torch.ones(2, 3)) is None

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [*GRADIENT, "deepfool", "transfer"])
    @pytest.mark.parametrize(("norm", "eps"), [("L2", 0.8), ("Linf", 0.08)])
    def test_as_strong_as_on_the_same_function_shifted(self, name, norm, eps):
        """x ** (1/2.2) has an infinite slope at black pixels, (x + 1e-3) ** (1/2.2) has none."""
        if name == "deepfool":
            pytest.importorskip("foolbox")
        x = images(40)
        x[:, :, 0, 0] = 0
        robust = []
        for shift in (0, 1e-3):
            model = Before(lambda z, shift=shift: (z + shift) ** (1 / 2.2))
            options = {"sources": [model]} if name == "transfer" else {}
            result = getattr(attacks, name)(model, x, model(x).argmax(1), norm=norm, eps=eps, **options)
            robust.append(result.robust_accuracy)
            assert result.adversarial.isfinite().all()
            assert bool(result.trace["nonfinite_gradient"].any()) == (shift == 0)
        assert robust[0] <= robust[1] + 0.15

    @pytest.mark.parametrize("name", GRADIENT)
    def test_without_a_finite_gradient_a_sample_is_not_attacked(self, name):
        model = Before(lambda z: z + (z * 0 - 1).sqrt().nan_to_num(0) * 0)
        x = images()
        result = run(name, "L2", model, x, model(x).argmax(1))
        assert result.trace["not_attacked"].all()
        assert (result.trace["nonfinite_gradient"] == 1).all()
        assert result.robust_accuracy == 0
        assert torch.equal(result.adversarial, x) or name != "fgsm"

    def test_the_check_says_so(self):
        x = images()
        x[:, :, 0, 0] = 0
        model = Before(lambda z: z.sqrt())
        report = check_model(model, x, model(x).argmax(1), norm="L2", eps=0.5)
        assert report.nonfinite_gradients == 1
        assert any("infinite or NaN entries on 100%" in line for line in report.warnings)

    @pytest.mark.parametrize("name", ["nes", "spsa"])
    def test_an_answer_that_is_nan_does_not_end_a_search(self, name):
        """Two bright pixels give NaN: some probes are that far away, no point of the ball is."""
        x = images()
        x[:, 0, 0, :2] = 0
        model = Before(lambda z: z.where(z[:, :, :1, :2].sum(3, keepdim=True) < 0.9, torch.inf))
        y = net()(x).argmax(1)
        options = {"norm": "L2", "eps": 0.6, "queries": 1000, "samples": 16, "delta": 0.5}
        assert not model(attacks.nes(net(), x, y, **options).adversarial).isnan().any()
        result = getattr(attacks, name)(model, x, y, **options)
        assert result.adversarial.isfinite().all()
        assert result.success.any()


@pytest.mark.parametrize(("name", "norm"), CASES)
class TestEveryAttack:
    def test_refuses_a_model_that_writes_into_its_input(self, name, norm):
        model = Before(lambda z: z.sub_(0.5).mul_(2))
        x = images()
        y, kept = Before(lambda z: (z - 0.5) * 2)(x).argmax(1), x.clone()
        with pytest.raises(AttackError, match="changes its input in place"):
            run(name, norm, model, x, y)
        assert torch.equal(x, kept)

    @pytest.mark.slow
    def test_runs_in_eval_mode_and_leaves_the_mode(self, name, norm):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
        )
        x = images()
        y = model.eval()(x).argmax(1)
        expected = run(name, norm, model, x, y)
        model.train()
        before = model[1].running_mean.clone()
        with pytest.warns(UserWarning, match=r"training mode \(BatchNorm2d\).*eval mode"):
            found = run(name, norm, model, x, y)
        assert torch.equal(found.success, expected.success)
        assert all(module.training for module in model.modules())
        assert torch.equal(model[1].running_mean, before)


def run_any(name, norm, model, x, y, **changed):
    """`run`, also for what its table leaves out: AutoAttack by version, transfer, BPDA in front of PGD."""
    if name in VERSIONS:
        return run("autoattack", norm, model, x, y, version=name, **changed)
    if name == "transfer":
        return attacks.transfer(model, x, y, sources=[model], norm=norm, steps=3, **changed)
    if name == "bpda":
        model, name = nn.Sequential(attacks.BPDA(lambda z: z.clone()), model), "pgd"
    return run(name, norm, model, x, y, **changed)


MORE = [pytest.param(name, TABLE[name][1][0], id=name) for name in ("deepfool", "ddn", "carlini_wagner")]
MORE += [pytest.param(name, "Linf", id=name) for name in ("transfer", "bpda", *VERSIONS)]


FLOATS = (torch.float64, torch.float32, torch.bfloat16)
TYPES = [(images, answer, torch.contiguous_format) for images in FLOATS for answer in FLOATS]
TYPES += [(both, both, torch.channels_last) for both in FLOATS]


class TestTypes:
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "norm"), QUICK + MORE)
    @pytest.mark.parametrize(("dtype", "answer", "layout"), TYPES)
    def test_model_and_images_of_one_type(self, name, norm, dtype, answer, layout):
        model = Before(lambda z: z, net().to(dtype), lambda logits: logits.to(answer))
        x = images(3).to(dtype).contiguous(memory_format=layout)
        result = run_any(name, norm, model, x, model(x).argmax(1), eps=0.1 if norm == "Linf" else 1.0)
        assert result.adversarial.dtype == dtype
        change = result.adversarial.double() - x.double()
        radius = 0.1 if norm == "Linf" else 1.0
        assert (get_norm(norm).length(change) <= radius * (1 + 1e-5) + 1e-6).all()
        assert torch.equal(model(result.adversarial).argmax(1) != model(x).argmax(1), result.success)

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "norm"), QUICK)
    def test_inside_inference_mode(self, name, norm):
        x = images(3)
        model = net()
        y = model(x).argmax(1)
        expected = run(name, norm, model, x, y)
        with torch.inference_mode():
            made = net()
            assert torch.equal(run(name, norm, model, x.clone(), y.clone()).success, expected.success)
            assert torch.equal(run(name, norm, made, x, y).success, expected.success)
        assert made[1].weight.is_inference()


def test_types_that_do_not_fit_are_refused_in_one_line():
    x = images()
    for model, given in ((net(), x.double()), (net().bfloat16(), x)):
        with pytest.raises(AttackError, match="the model fails on"):
            attacks.pgd(model, given, torch.zeros(6, dtype=torch.int64), norm="Linf", eps=0.1)


def test_narrow_types_round_towards_the_image():
    x = torch.rand(100, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    points = (x + 0.02 * torch.randn(100, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    rounded = towards(x, points, torch.bfloat16)
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert ((rounded - x).abs() <= (points - x).abs()).all()
    assert ((rounded - points).abs() <= 2**-8).all()


class TestNumbers:
    def test_every_numeric_option_has_a_rule(self):
        for name in attacks.__all__:
            if not inspect.isfunction(getattr(attacks, name)):
                continue
            for option, parameter in inspect.signature(getattr(attacks, name)).parameters.items():
                if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool):
                    assert option in RULES, f"{name}: {option}"

    @pytest.mark.parametrize("option", [option for option in RULES if option != "seed"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, -0.5, "many", True])
    def test_what_means_nothing_is_refused(self, option, value):
        named = [
            getattr(attacks, name) for name in attacks.__all__ if inspect.isfunction(getattr(attacks, name))
        ]
        for function in named:
            if option not in inspect.signature(function).parameters:
                continue
            start = {} if function is attacks.transfer_images else {"model": net()}
            if "sources" in inspect.signature(function).parameters:
                start["sources"] = [net()]
            start |= {"images": images()} if function is attacks.judge else {}
            given = start | {"x": images(), "y": torch.zeros(6, dtype=torch.int64), option: value}
            if function is not attacks.expected_success:
                given |= {"norm": "Linf", "eps": 0.1}
            with pytest.raises(AttackError, match=f"{option} must be"):
                function(**given)

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "norm"), [*QUICK, pytest.param("transfer", "Linf", id="transfer")])
    def test_numbers_of_numpy_and_torch_count_as_pythons(self, name, norm):
        numpy = pytest.importorskip("numpy")
        x, model = images(4), net()
        y = model(x).argmax(1)
        options = TABLE.get(name, ({"sources": [model], "steps": 3},))[0] | {"batch_size": 3, "eps": 0.25}
        function = attacks.transfer_images if name == "transfer" else getattr(attacks, name)
        for option, parameter in inspect.signature(function).parameters.items():
            if option in RULES and type(parameter.default) in (int, float):
                options.setdefault(option, parameter.default)

        def attack(**changed):
            return getattr(attacks, name)(model, x, y, norm=norm, **options | changed).adversarial

        expected = attack()
        for option, value in options.items():
            if type(value) in (int, float) and option != "queries":
                value = type(value)(numpy.float32(value))  # as float32 and so tensors hold it
                known = expected if value == options[option] else attack(**{option: value})
                kinds = numpy.float32 if type(value) is float else numpy.int64, torch.tensor, numpy.array
                for kind in kinds:
                    assert torch.equal(attack(**{option: kind(value)}), known), f"{option}={kind(value)!r}"

    @pytest.mark.parametrize("eps", ["0.1", None, True, 1j, [[0.1]], [0.1, 0.2]])
    def test_a_radius_that_is_none_is_refused(self, eps):
        with pytest.raises(AttackError, match="eps must be one number or of shape"):
            attacks.fgsm(net(), images(), torch.zeros(6, dtype=torch.int64), norm="Linf", eps=eps)

    def test_classes_below_0_and_beyond_the_model(self):
        x, model = images(), net()
        y = model(x).argmax(1)
        for loss in ("ce", "margin"):
            with pytest.raises(AttackError, match="targets must be classes"):
                attacks.pgd(model, x, y, norm="Linf", eps=0.1, loss=loss, targets=torch.full((6,), -1))
        for action in ("sampled", "argmax"):
            with pytest.raises(AttackError, match="label 10 is out of range"):
                attacks.expected_success(model, x, y * 0 + 10, action=action)

    def test_pixels_a_rounding_outside_the_box_are_put_back(self):
        x = images()
        x[0, 0, 0, 0] = 1 + 1.2e-7
        problem = validate_inputs(x, torch.zeros(6, dtype=torch.int64), norm="Linf", eps=0.1)
        assert problem.x.max() <= 1
        with pytest.raises(AttackError, match=r"\[0, 1\]"):
            validate_inputs(x + 1e-5, torch.zeros(6, dtype=torch.int64), norm="Linf", eps=0.1)

    @pytest.mark.parametrize("norm", ["L1", "L2"])
    def test_lengths_of_large_images(self, norm):
        delta = torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(0)) * 0.01
        exact = get_norm(norm).length(delta.double())
        torch.testing.assert_close(get_norm(norm).length(delta).double(), exact, rtol=1e-7, atol=0)


def test_fab_says_that_a_model_is_detached():
    class Detached(nn.Module):
        def forward(self, x):
            return net()(x.detach()) + torch.zeros((), requires_grad=True)

    x = images()
    for name in ("fab", "fab_targeted"):
        with pytest.raises(AttackError, match="carry no gradient to the input"):
            run(name, "L2", Detached(), x, net()(x).argmax(1))


@pytest.mark.slow
def test_square_and_autoattack_take_vectors():
    model, x = net((64,)), images(12, (64,))
    y = model(x).argmax(1)
    assert attacks.square(model, x, y, norm="Linf", eps=0.05, queries=200).success.any()
    result = attacks.autoattack(model, x, y, norm="Linf", eps=0.005)
    assert result.stages[-1] == "square"
    assert result.adversarial.shape == x.shape


def test_threads_leave_the_model_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)
    ).train()
    x = images(4, (3, 8, 8))
    y = model(x).argmax(1)
    results = []

    def work(steps):
        results.append(attacks.pgd(model, x, y, norm="Linf", eps=0.02, early_stop=False, steps=steps))

    threads = [threading.Thread(target=work, args=(steps,)) for steps in (2, 4, 6, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model[0].weight.is_contiguous()
    assert "forward" not in vars(model[0])
    assert all(module.training for module in model.modules())
