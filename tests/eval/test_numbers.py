"""NumPy's numbers and 0-d tensors count as Python's own wherever an evaluation takes a number."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from eval.attack.results import read_results
from eval.attack.runner import AttackSpec, run_attack
from eval.audit import audit
from eval.core.targets import Target, load_samples, model_sha256, samples_from
from eval.core.threats import Threat
from eval.mechanism.analysis import AnalysisOptions, analyse
from eval.mechanism.landscape import landscape
from eval.robustness.iterations import iteration_curve
from eval.robustness.suite import evaluate
from eval.robustness.targeted import targeted_outcome
from eval.transfer.matrix import fill
from tests.support.audit_budgets import TINY


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


MODEL = model()
X = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(1))
Y = MODEL(X).argmax(1)


def target(folder):
    return Target("m", MODEL, model_sha256(MODEL), folder, {"name": "digits"})


def _analyse(folder, *, eps, seed, **options):
    return analyse(
        target(folder), samples_from(X, Y), Threat("L2", eps), AnalysisOptions(**options), seed=seed
    )


def _landscape(folder, **options):
    return landscape(MODEL, X, Y, 1 - X, norm="L2", **options).figures()


def _attack(folder, *, eps, seed, batch_size, **options):
    spec = AttackSpec("pgd", Threat("L2", eps), options, seed)
    run_attack(target(folder), samples_from(X, Y), spec, results_dir=folder, batch_size=batch_size)
    (path,) = folder.glob("*.json")
    return path.name, read_results(path).robust.tolist()


def _iterations(folder, *, eps, number, **options):
    asked = (target(folder), samples_from(X, Y), Threat("L2", eps), "pgd", "ce", [number])
    return iteration_curve(*asked, folder=folder, **options).figures()


def _targeted(folder, *, eps, goal, **options):
    asked = (target(folder), samples_from(X, Y), Threat("L2", eps), "pgd", "ce", goal)
    return targeted_outcome(*asked, **options).figures()


def _transfer(folder, *, eps, **options):
    fill(folder / "t.json", [target(folder)], samples_from(X, Y), Threat("L2", eps), **options)
    return (folder / "t.json").read_text()


def _evaluate(folder, *, eps, **options):
    report = evaluate(MODEL, X, Y, names=("fgsm", "pgd-cleverhans"), threats=[Threat("Linf", eps)], **options)
    found = report.figures()
    for attack in found["threats"][0]["attacks"].values():
        attack.pop("seconds", None)
    return found["threats"][0]["worst_case"]["robust_accuracy"], json.dumps(found) is not None


def _audit(folder, *, eps, seed, minutes, **sizes):
    report = audit(
        MODEL, X, Y, norm="L2", eps=eps, seed=seed, minutes=minutes, budget=TINY.__class__(**sizes)
    )
    return report.verdict, report.robust_accuracy


def _samples(folder, **options):
    return load_samples(target(folder), **options).indices.tolist()


SEEDED = {"seed": 3, "batch_size": 4, "eps": 0.25}
ANALYSIS = {"steps": 3, "resolution": 4, "average_images": 2, "average_resolution": 3, "plane_resolution": 3}
ANALYSIS |= {"draws": 2, "power_iterations": 2, "image": 1, "seed": 3, "eps": 0.25}
TABLE = {
    "evaluate": (_evaluate, SEEDED),
    "run_attack": (_attack, {**SEEDED, "steps": 3, "restarts": 2, "step_size": 0.125}),
    "iteration_curve": (_iterations, {**SEEDED, "number": 3}),
    "targeted_outcome": (_targeted, {**SEEDED, "goal": 2}),
    "transfer": (_transfer, {**SEEDED, "steps": 3}),
    "landscape": (_landscape, {**SEEDED, "resolution": 4}),
    "load_samples": (_samples, {"n": 5, "image_size": 8}),
    "analyse": (_analyse, ANALYSIS),
    "audit": (_audit, {**vars(TINY), "seed": 3, "eps": 0.25, "minutes": 5.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_numbers_of_numpy_and_torch_count_as_pythons(name, tmp_path):
    call, options = TABLE[name]

    def run(kind):
        folder = tmp_path / str(kind)
        folder.mkdir()
        return call(folder, **{key: kind(value) for key, value in options.items()})

    def of_numpy(value):
        return (np.int64 if isinstance(value, int) else np.float32)(value)

    expected = run(lambda value: value)
    for kind in (of_numpy, torch.tensor, np.array):
        found = run(kind)
        if name == "analyse":
            assert json.dumps(found.figures()) == json.dumps(expected.figures())
        else:
            assert found == expected


def test_images_and_labels_that_are_no_tensors_are_refused():
    for images, labels in ((X.numpy(), Y), (X, Y.tolist())):
        with pytest.raises(ValueError, match="expected a tensor"):
            evaluate(MODEL, images, labels, names=("fgsm",))
