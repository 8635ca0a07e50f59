"""Attacks in stages: their state is kept, their progress shown, and an interrupted one goes on."""

import numpy as np
import pytest
import torch

import attacks
from attacks.autoattack.autoattack import autoattack
from eval.attack import autosave as watch
from eval.attack.autosave import Watch
from eval.attack.labels import blame_line
from eval.attack.parts import PartialStore
from eval.attack.runner import AttackSpec, run_attack
from eval.core.targets import load_samples, load_target
from eval.core.threats import Threat
from tests.eval.test_attack import MODEL

SPEC = AttackSpec("autoattack", Threat("L2", 0.5), {"version": ["apgd-ce", "apgd-mifpe"]})


@pytest.fixture(autouse=True)
def offered(monkeypatch):
    monkeypatch.setattr(attacks, "autoattack", autoattack, raising=False)
    monkeypatch.setattr(attacks, "__all__", [*{*attacks.__all__, "autoattack"}])
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(watch, "SHARE", 1e9)


@pytest.fixture(scope="module")
def evaluation():
    target = load_target(MODEL)
    return target, load_samples(target, n=12, dataset="digits")


def test_stages_are_named_and_add_up(evaluation):
    seen = []
    results = run_attack(*evaluation, SPEC, report=seen.append)
    assert {progress.stage for progress in seen if progress.stage} == {
        "clean (1/3)",
        "apgd-ce (2/3)",
        "apgd-mifpe (3/3)",
    }
    assert all(0 <= progress.done <= progress.total <= 12 for progress in seen)
    assert [progress.done == progress.total for progress in seen][-1]
    assert seen[-1].robust == pytest.approx(results.robust_accuracy)
    assert set(results.broken_by) <= {None, "clean", "apgd-ce", "apgd-mifpe"}
    assert [name is not None for name in results.broken_by] == results.success.tolist()
    assert "apgd-ce" in blame_line(results)
    assert (results.distance <= 0.5 * (1 + 1e-5)).all()
    assert results.queries.min() >= 1


@pytest.mark.slow
def test_an_interrupted_attack_goes_on_to_the_same_result(evaluation, tmp_path):
    whole = run_attack(*evaluation, SPEC, batch_size=4)
    calls = []

    def stop_at(count):
        def report(progress):
            calls.append(progress.stage)
            if len(calls) == count:
                raise KeyboardInterrupt

        return report

    for count in (3, 6):
        with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
            run_attack(*evaluation, SPEC, batch_size=4, results_dir=tmp_path, report=stop_at(count))
        assert list(tmp_path.rglob("state.pt"))
    again = run_attack(*evaluation, SPEC, batch_size=4, results_dir=tmp_path, report=stop_at(-1))
    # The batches whose report was interrupted are the only ones that were done twice.
    assert calls[:8] == ["clean (1/3)"] * 2 + ["clean (1/3)"] * 2 + ["apgd-ce (2/3)"] * 4
    for name in ("clean_correct", "success", "distance", "queries"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert again.broken_by == whole.broken_by
    assert list(tmp_path.iterdir()) == [next(tmp_path.glob("autoattack-L2-0.5-*.json"))]


def test_seconds_before_an_interruption_count(tmp_path):
    store = PartialStore(tmp_path / "p")
    store.write_state({"state": {"stage": 1}, "seconds": 100.0})
    resumed = Watch(store, None)
    assert resumed.state == {"stage": 1}
    assert 100 <= resumed.seconds < 110


def test_states_are_saved_now_and_then_only(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LEAST_SECONDS", 60.0)
    store = PartialStore(tmp_path / "p")
    seen = Watch(store, None)
    seen({"stage": 0, "pending": torch.arange(3)})
    assert store.read_state() is None
