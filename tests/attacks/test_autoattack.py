"""AutoAttack: versions, records per sample, resuming after any interruption, memory, and what it warns of."""

import copy
import inspect
import io

import pytest
import torch
from torch import nn

import attacks
from attacks.autoattack.versions import stages_of
from attacks.core.errors import AttackError
from attacks.core.result import AttackResult
from tests.support.attack_models import cnn_problem, linear_problem, random_cnn

QUICK = ["apgd-ce", "apgd-t"]
OPTIONS = {"norm": "Linf", "eps": 0.03, "version": QUICK}


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def problem():
    return cnn_problem(30)


@pytest.fixture(scope="module")
def whole(problem):
    return attacks.autoattack(*problem, **OPTIONS, batch_size=8)


def names(version, norm="Linf", classes=10):
    return [stage.name for stage in stages_of(version, norm, classes)]


def options(version, name, norm="Linf", classes=10):
    """Every option that a stage calls its attack with, defaults included."""
    attack = next(stage.attack for stage in stages_of(version, norm, classes) if stage.name == name)
    defaults = inspect.signature(attack).parameters.items()
    return {key: parameter.default for key, parameter in defaults if parameter.kind is parameter.KEYWORD_ONLY}


def test_versions_are_the_published_ones():
    assert names("standard") == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert names("plus") == ["clean", "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert names("rand") == ["clean", "apgd-ce", "apgd-dlr"]
    for norm, restarts, targets in (("Linf", 1, 9), ("L2", 1, 9), ("L1", 5, 5)):
        assert options("standard", "apgd-ce", norm)["restarts"] == restarts
        assert options("standard", "apgd-t", norm)["num_targets"] == targets
        assert options("standard", "fab-t", norm)["num_targets"] == 9
        assert options("standard", "square", norm)["queries"] == 5000
    assert options("plus", "apgd-dlr")["restarts"] == options("plus", "fab")["restarts"] == 5
    assert options("rand", "apgd-ce")["eot_samples"] == 20


@pytest.mark.parametrize(
    ("classes", "targeted", "untargeted"), [(2, "ce", "margin"), (3, "ce", "dlr"), (4, "dlr", "dlr")]
)
def test_losses_for_few_classes(classes, targeted, untargeted):
    assert options("plus", "apgd-t", classes=classes)["loss"] == targeted
    assert options("plus", "apgd-dlr", classes=classes)["loss"] == untargeted
    assert options("fast", "successive-halving", classes=classes)["loss"] == targeted


def test_two_classes_work_and_are_told():
    model, x, _ = linear_problem()
    model.bias = -model.margin(x).median().item()
    y = model(x).argmax(1)
    result = attacks.autoattack(model, x, y, norm="Linf", eps=0.02, version=QUICK)
    assert 0 < result.success.sum() < len(x)
    assert any("2 classes" in line for line in result.warnings)


def test_every_sample_has_a_record(problem, whole):
    model, x, y = problem
    assert isinstance(whole, AttackResult)
    assert torch.equal(model(whole.adversarial).argmax(1) != y, whole.success)
    assert torch.equal(whole.trace["broken_by"] >= 0, whole.success)
    by = whole.broken_by()
    wrong = model(x).argmax(1) != y
    assert [name == "clean" for name in by] == wrong.tolist()
    assert {None, "clean", "apgd-ce"} <= set(by)
    left = ~whole.success
    assert torch.equal(whole.adversarial[left], x[left])
    assert (whole.trace["distance"][left] == 0).all()
    assert (whole.trace["distance"] <= 0.03 + 1e-9).all()
    assert (whole.queries[wrong] == 1).all()
    assert (whole.queries[left] > 300).all()


def test_accuracies_fall_stage_by_stage(whole):
    accuracies = whole.accuracies()
    assert list(accuracies) == ["clean", "apgd-ce", "apgd-t"]
    assert list(accuracies.values()) == sorted(accuracies.values(), reverse=True)
    assert accuracies["apgd-t"] == pytest.approx(whole.robust_accuracy)
    assert accuracies["clean"] == pytest.approx(0.9)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 30])
def test_batches_do_not_matter(problem, whole, size):
    other = attacks.autoattack(*problem, **OPTIONS, batch_size=size)
    assert torch.equal(other.success, whole.success)
    assert torch.equal(other.trace["broken_by"], whole.trace["broken_by"])
    torch.testing.assert_close(other.adversarial, whole.adversarial, rtol=0, atol=1e-6)


def saved(state):
    """``state`` as a kill would leave it on disk."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def interrupted_after(count, problem, **options):
    kept = []

    def stop(state):
        kept.append(saved(state))
        if len(kept) == count:
            raise Interrupted

    with pytest.raises(Interrupted):
        attacks.autoattack(*problem, **options, on_progress=stop)
    return kept[-1]


@pytest.mark.slow
@pytest.mark.parametrize("version", [QUICK, "fast"])
def test_resuming_after_every_batch_gives_the_same(problem, version):
    model, x, y = problem
    short = (model, x[:12], y[:12])
    options = {**OPTIONS, "version": version, "batch_size": 5}
    calls = []
    whole = attacks.autoattack(*short, **options, on_progress=lambda state: calls.append(state["stage"]))
    assert len(calls) > 4
    for count in range(1, len(calls)) if version == QUICK else (2, len(calls) - 1):
        state = interrupted_after(count, short, **options)
        again = attacks.autoattack(*short, **options, state=state)
        assert torch.equal(again.adversarial, whole.adversarial)
        assert torch.equal(again.queries, whole.queries)
        assert torch.equal(again.backwards, whole.backwards)
        assert again.broken_by() == whole.broken_by()
        assert again.warnings == whole.warnings


@pytest.mark.slow
def test_a_state_is_not_changed_by_resuming(problem):
    state = interrupted_after(2, problem, **OPTIONS, batch_size=8)
    before = copy.deepcopy(state)
    attacks.autoattack(*problem, **OPTIONS, batch_size=8, state=state)
    assert torch.equal(state["broken_by"], before["broken_by"])
    assert torch.equal(state["queries"], before["queries"])


@pytest.mark.slow
def test_a_state_with_the_former_name_of_a_stage_goes_on(problem):
    model, x, y = problem
    options = {**OPTIONS, "version": "fast", "batch_size": 5}
    state = interrupted_after(3, (model, x[:8], y[:8]), **options)
    state["stages"] = ["race" if name == "successive-halving" else name for name in state["stages"]]
    again = attacks.autoattack(model, x[:8], y[:8], **options, state=state)
    assert torch.equal(again.queries, attacks.autoattack(model, x[:8], y[:8], **options).queries)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"eps": 0.04}, {"norm": "L2"}, {"version": ["apgd-ce"]}])
def test_a_state_of_another_run_is_refused(problem, changed):
    state = interrupted_after(1, problem, **OPTIONS, batch_size=8)
    with pytest.raises(AttackError, match="another run"):
        attacks.autoattack(*problem, **{**OPTIONS, **changed}, batch_size=8, state=state)


class Tight(nn.Module):
    """Has memory for few images; says so as PyTorch's CPU allocator does."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.largest = model, most, 0

    def forward(self, x):
        if len(x) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        self.largest = max(self.largest, len(x))
        return self.model(x)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch_and_goes_on(problem):
    model, x, y = problem
    tight = Tight(model, 64)
    options = {"norm": "Linf", "eps": 0.03, "version": ["apgd-ce"]}
    with pytest.warns(UserWarning, match="out of memory"):
        found = attacks.autoattack(tight, x.repeat(3, 1, 1, 1), y.repeat(3), batch_size=90, **options)
    expected = attacks.autoattack(model, x.repeat(3, 1, 1, 1), y.repeat(3), batch_size=90, **options)
    assert torch.equal(found.success, expected.success)
    assert torch.equal(found.queries, expected.queries)


@pytest.mark.slow
def test_progress_counts_down(problem):
    seen = []

    def note(state):
        seen.append((state["stage"], len(state["pending"]), (state["broken_by"] < 0).sum().item()))

    attacks.autoattack(*problem, **OPTIONS, batch_size=8, on_progress=note)
    assert [left for number, left, _ in seen if number == 0] == [22, 14, 6, 0]
    survivors = [alive for *_, alive in seen]
    assert survivors == sorted(survivors, reverse=True)
    assert [number for number, *_ in seen] == sorted(number for number, *_ in seen)


@pytest.mark.slow
def test_fast_is_not_weaker_than_the_gradient_attacks_of_standard(problem):
    model, x, y = problem
    fast = attacks.autoattack(model, x, y, norm="Linf", eps=0.03, version="fast")
    slow = attacks.autoattack(model, x, y, norm="Linf", eps=0.03, version=["apgd-ce", "apgd-t", "fab-t"])
    assert fast.robust_accuracy <= slow.robust_accuracy
    assert fast.queries[~fast.success].double().mean() < slow.queries[~slow.success].double().mean()


class Stairs(nn.Module):
    """Logits without slope: gradients are exactly zero wherever they exist."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x * 8).round() / 8 + 0 * x)


@pytest.mark.slow
def test_square_unmasks_zero_gradients_and_says_so():
    model = Stairs(random_cnn())
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = model(x).argmax(1)
    result = attacks.autoattack(model, x, y, norm="Linf", eps=0.2, version="fast")
    assert {"square", "square-on"} & set(result.broken_by())
    assert any("square broke" in line for line in result.warnings)
    assert any("exactly zero" in line for line in result.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "standart"}, "standard"),
        ({"version": ["apgd-xe"]}, "apgd-ce"),
        ({"version": []}, "at least one"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_options_are_told(problem, options, message):
    with pytest.raises(AttackError, match=message):
        attacks.autoattack(*problem, **{**OPTIONS, **options})


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_fast_goes_on_where_it_came_close_or_gradients_may_be_masked(norm):
    stages = stages_of("fast", norm, 10)
    names = [stage.name for stage in stages]
    wants = {stage.name: stage.wants for stage in stages if stage.wants}
    scores = torch.full((4, len(stages)), -torch.inf)
    gradients = names.index("apgd-t" if norm == "L1" else "successive-halving")
    scores[:, gradients] = torch.tensor([-0.5, -0.5, -0.5, -0.2])
    if norm != "L1":  # there all samples that are left go through this stage and FAB-T
        assert wants["apgd-t"](scores).tolist() == [False, False, False, True]
    # 200 queries of Square came farther than the gradients, nearly as far, and not so far.
    at = {name: names.index(name) for name in ("square", "square-on")}
    scores[:, at["square"]] = torch.tensor([-0.4, -0.59, -0.61, -0.5])
    if norm != "L1":
        assert wants["fab-t"](scores).tolist() == [True, True, False, False]
    assert wants["square-on"](scores).tolist() == [True, True, False, False]
    # After 1,000 queries: ahead of the gradients all along, close now, and neither.
    scores[:, at["square-on"]] = torch.tensor([-0.4, -0.3, -torch.inf, -0.24])
    assert wants["square-to-the-end"](scores).tolist() == [True, False, False, True]
    # A hair's breadth from an error, everything is tried.
    scores[:, gradients] = torch.tensor([-0.04, -0.09, -0.2, -0.5])
    for name in ("apgd-t-on", "apgd-ce-on") if norm == "L1" else ("fab-t-on", "apgd-ce-on"):
        assert wants[name](scores).tolist() == [True, norm == "L1", False, False]
    assert wants["square-on"](torch.where(scores == -0.4, -0.9, scores)).tolist()[0]
    assert len(wants) == (4 if norm == "L1" else 6)
