"""The audit from end to end: verdict, cause and corrected accuracy on models masked in known ways."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacks.core.errors import AttackError
from attacks.gradient.pgd import pgd
from envs.files import read_json
from eval.audit import Cause, Verdict, audit, main
from eval.audit.attacks import SEEN_CE
from eval.audit.settings import Budget
from tests.support import masked_models as bed

SMALL = Budget(
    steps=10,
    restarts=1,
    targets=2,
    square_queries=20,
    spsa_queries=34,
    label_queries=20,
    difference_steps=4,
    random_points=5,
    passes=2,
    votes=5,
    distillation_steps=20,
    distillation_rounds=2,
    binarization_images=2,
    inner_points=49,
)
# Where the verdict rests on probes, not on how much the attacks find.
TINY = replace(SMALL, steps=6, square_queries=8, distillation_steps=5, distillation_rounds=1, rounds=1)


def run(model, count=24, budget=SMALL, **options):
    x, y = bed.images(count)
    return audit(model, x, y, norm=bed.NORM, eps=bed.EPS, budget=budget, **options)


@pytest.fixture(scope="module")
def base():
    return bed.base(0)


@pytest.fixture(scope="module")
def sound(base):
    return run(base)


@pytest.mark.slow
def test_standard_training_is_fragile_but_sound(sound, base):
    assert sound.verdict is Verdict.SOUND
    assert sound.cause is None
    x, y = bed.images(24)
    margin = pgd(base, x, y, norm=bed.NORM, eps=bed.EPS, steps=100, loss="mifpe", restarts=3)
    assert sound.robust_accuracy == pytest.approx(margin.robust_accuracy, abs=1 / 24 + 1e-9)
    assert sound.clean_accuracy > sound.robust_accuracy


@pytest.mark.slow
def test_a_model_that_needs_no_repair_is_attacked_once(sound):
    names = [outcome.name for outcome in sound.attacks]
    assert len(names) == len(set(names))
    assert SEEN_CE not in names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "cause"),
    [
        (lambda model: bed.Scaled(model, 100), Cause.SATURATED),
        (bed.DetachedStage, Cause.DETACHED),
        (bed.Softmax, Cause.PROBABILITIES),
    ],
    ids=["logits x100", "detached stage", "softmax"],
)
def test_masks_that_keep_decisions(wrap, cause, base, sound):
    report = run(wrap(base))
    assert report.verdict is Verdict.MASKED
    assert report.cause is cause
    assert report.robust_accuracy == pytest.approx(sound.robust_accuracy, abs=1 / 24 + 1e-9)
    assert report.clean_accuracy == sound.clean_accuracy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "cause"),
    [
        (lambda model: bed.Preprocessed(model, bed.quantise), Cause.QUANTISED),
        (lambda model: bed.Preprocessed(model, bed.gaussian_noise), Cause.RANDOM),
    ],
    ids=["quantised", "noise"],
)
def test_masks_that_change_decisions(wrap, cause, base):
    report = run(wrap(base), count=12, budget=TINY)
    assert report.verdict is Verdict.MASKED
    assert report.cause is cause
    if cause is not Cause.RANDOM:  # whose lucky errors count in the claim, and not in what is left
        assert report.robust_accuracy <= report.claimed_accuracy


class PerBatch(nn.Module):
    """Centres features on the batch, as normalisation with batch statistics does."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        features = self.model.features(x)
        return self.model.head(features - 0.5 * features.mean(0))


@pytest.mark.slow
def test_batch_statistics_are_named_and_images_attacked_one_at_a_time(base):
    report = run(PerBatch(base), count=6, budget=TINY)
    assert (report.verdict, report.cause) == (Verdict.MASKED, Cause.BATCH)


@pytest.mark.slow
def test_report_is_complete_and_reproducible(base):
    report = run(base, count=12, budget=TINY)
    first, second = report.to_json(), run(base, count=12, budget=TINY).to_json()
    for record in (first, second):
        record["cost"].pop("seconds")
        for attack in record["attacks"]:
            attack.pop("seconds")
    assert first == second
    assert first["cost"]["forwards"] > first["cost"]["backwards"] > 0
    assert sum(first["samples"]["robust"]) == round(12 * first["robust_accuracy"])
    assert {by for by in first["samples"]["broken_by"] if by} <= {"clean"} | {
        a["name"] for a in first["attacks"]
    }
    assert all(item["source"] for item in first["evidence"])
    assert [table.title for table in report.tables("m")] == ["m: attacks, L2 0.5, n = 12", "m: evidence"]


@pytest.mark.slow
def test_clean_errors_never_count_as_robust(sound, base):
    x, y = bed.images(24)
    assert (sound.robust <= (base(x).argmax(1) == y)).all()
    assert [by == "clean" for by in sound.broken_by] == (base(x).argmax(1) != y).tolist()


def test_too_few_correct_images_are_inconclusive(base):
    x, y = bed.images(16)
    report = audit(base, x, (y + 1) % 10, norm="L2", eps=0.5, budget=TINY)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "correctly" in report.headline
    assert report.robust_accuracy <= report.clean_accuracy


@pytest.mark.slow
def test_a_given_surrogate_is_used(base):
    report = run(bed.DetachedStage(base), count=8, budget=TINY, surrogates={"twin": base})
    names = [outcome.name for outcome in report.attacks]
    assert "transfer from twin, ce" in names


def test_wrong_inputs_are_refused(base):
    x, y = bed.images(4)
    with pytest.raises(AttackError, match="label 12"):
        audit(base, x, y + 12 - y.max(), norm="L2", eps=0.5)
    with pytest.raises(AttackError, match=r"\[0, 1\]"):
        audit(base, x * 255, y, norm="L2", eps=0.5)
    with pytest.raises(AttackError, match="norm"):
        audit(base, x, y, norm="L3", eps=0.5)


@pytest.mark.slow
def test_model_and_generator_are_left_as_they_were(base):
    model = bed.Preprocessed(base, bed.gaussian_noise).train()
    before = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    run(model, count=4, budget=TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == before


@pytest.mark.slow
def test_command_line(digits_run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.audit.run.QUICK", TINY)
    arguments = [str(digits_run), "--norm", "linf", "--eps", "0.1", "--n", "12", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path), "--surrogate", str(digits_run)]) == 0
    record = read_json(tmp_path / "audit-Linf-0.1-quick.json")
    assert record["verdict"] in ("sound", "masked", "inconclusive")
    assert record["data"]["n"] == len(record["samples"]["robust"]) == 12
    out = capsys.readouterr().out
    assert record["headline"] in out
    assert "binarization" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--full"], "choose one"),
        (["--eps", "0.1"], "add --norm"),
        (["--norm", "L7"], "unknown norm"),
        (["--norm", "L2", "--eps", "-1"], "above 0"),
    ],
)
def test_command_line_errors(digits_run, capsys, arguments, message):
    assert main([str(digits_run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


class ThroughNumPy(nn.Module):
    """A stage that leaves PyTorch, so that nothing can be run straight through it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(torch.from_numpy(x.detach().numpy().copy()))


@pytest.mark.slow
def test_a_stage_outside_pytorch_is_attacked_by_differences(base):
    report = run(ThroughNumPy(base), count=8, budget=replace(TINY, difference_steps=8, directions=24))
    assert (report.verdict, report.cause) == (Verdict.MASKED, Cause.DETACHED)
    assert report.robust_accuracy < report.claimed_accuracy
