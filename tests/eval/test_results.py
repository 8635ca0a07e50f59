"""Result files: what is written is read back, what is damaged is refused, worst cases are pointwise."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.errors import InputError
from eval.attack.results import (
    AttackResults,
    configuration_hash,
    read_results,
    result_name,
    worst_case,
    write_results,
)


def make_results(success, name="pgd", clean=None, distance=None, **changes):
    success = np.asarray(success, dtype=bool)
    n = len(success)
    clean = np.ones(n, dtype=bool) if clean is None else np.asarray(clean, dtype=bool)
    result = AttackResults(
        attack={"name": name, "norm": "L2", "eps": 1.0, "steps": 10},
        data={"dataset": "digits", "split": "test", "fingerprint": "f" * 64},
        model={"sha256": "a" * 64, "name": "run"},
        indices=np.arange(n) * 3,
        label=np.arange(n) % 10,
        clean_correct=clean,
        success=success | ~clean,
        distance=np.full(n, 0.5) if distance is None else np.asarray(distance, dtype=float),
        queries=np.full(n, 11),
        broken_by=tuple(
            "clean" if not c else name if s else None for s, c in zip(success, clean, strict=True)
        ),
        warnings=(f"{name} is odd",),
        cost={"seconds": 1.5, "forwards": 11 * n, "backwards": 10 * n},
        seed=3,
        versions={"torch": "2"},
        device="cpu",
        created="2026-01-01T00:00:00+00:00",
    )
    return replace(result, **changes)


def test_a_file_holds_everything(tmp_path):
    result = make_results([1, 0, 0, 1], clean=[1, 1, 0, 1], extra={"shortened": np.array([0, 0.5, 1, 0.25])})
    write_results(tmp_path / "r.json", result)
    again = read_results(tmp_path / "r.json")
    for name in (
        "attack",
        "data",
        "model",
        "broken_by",
        "cost",
        "warnings",
        "seed",
        "versions",
        "device",
        "created",
    ):
        assert getattr(again, name) == getattr(result, name), name
    for name in ("indices", "label", "clean_correct", "success", "distance", "queries"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
        assert getattr(again, name).dtype == getattr(result, name).dtype
    assert again.shortened == pytest.approx(0.4375)
    assert (again.clean_accuracy, again.robust_accuracy) == (0.75, 0.25)
    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert content["summary"]["robust_accuracy"] == 0.25
    assert content["summary"]["ci95"] == pytest.approx(list(again.interval))
    assert content["data"] == {**result.data, "n": 4, "indices": [0, 3, 6, 9]}
    assert content["samples"]["broken_by"] == ["pgd", None, "clean", "pgd"]


def test_nan_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(tmp_path / "r.json", make_results([0], distance=[float("nan")]))
    assert list(tmp_path.iterdir()) == []


def test_what_is_undefined_for_an_image_is_null_in_the_file(tmp_path):
    extra = {"loss": np.asarray([0.5, np.nan, np.inf])}
    write_results(tmp_path / "r.json", make_results([0, 1, 0], extra=extra))
    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert content["samples"]["loss"] == [0.5, None, None]
    assert content["summary"]["mean_loss"] is None
    np.testing.assert_array_equal(read_results(tmp_path / "r.json").extra["loss"], [0.5, np.nan, np.nan])


def damage_length(content):
    content["samples"]["queries"].append(1)


def damage_type(content):
    content["samples"]["success"][0] = 0.5


def damage_missing(content):
    del content["samples"]["label"]


def damage_format(content):
    content["format"] = 99


def damage_nan(content):
    content["samples"]["distance"][0] = float("nan")


def damage_twice(content):
    content["data"]["indices"] = [0] * content["data"]["n"]


def damage_logic(content):
    content["samples"]["clean_correct"][1] = False


def damage_names(content):
    content["samples"]["broken_by"][0] = 7


def damage_model(content):
    content["model"] = "weights"


def damage_n(content):
    content["data"]["n"] = "two"


@pytest.mark.parametrize(
    "damage",
    [
        damage_length,
        damage_type,
        damage_missing,
        damage_format,
        damage_nan,
        damage_twice,
        damage_logic,
        damage_names,
        damage_model,
        damage_n,
    ],
)
def test_damaged_files_are_refused_with_their_path(tmp_path, damage):
    path = tmp_path / "r.json"
    write_results(path, make_results([1, 0]))
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"r\.json is not a result file"):
        read_results(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"format": 1}', "{"])
def test_other_content_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=r"r\.json"):
        read_results(tmp_path / "r.json")


def test_worst_case_is_the_mean_of_the_minimum():
    a = make_results([1, 0, 0, 0], "apgd", distance=[0.9, 0.1, 0.1, 0.1])
    b = make_results([1, 1, 0, 0], "fab", distance=[0.3, 0.7, 0.2, 0.2])
    c = make_results([0, 0, 1, 0], "square")
    worst = worst_case([a, b, c])
    assert (a.robust_accuracy, b.robust_accuracy, c.robust_accuracy) == (0.75, 0.5, 0.75)
    assert worst.robust_accuracy == 0.25
    assert worst.broken_by == ("apgd", "fab", "square", None)
    assert worst.distance.tolist() == [0.3, 0.7, 0.5, 0.1]
    assert worst.queries.tolist() == [33] * 4
    assert worst.cost["seconds"] == 4.5
    assert worst.warnings == ("apgd is odd", "fab is odd", "square is odd")


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=5))
def test_worst_case_never_exceeds_any_attack(table):
    results = [make_results(row, f"attack{k}") for k, row in enumerate(table)]
    worst = worst_case(results)
    assert worst.robust_accuracy == np.mean(~np.any(table, axis=0))
    assert worst.robust_accuracy <= min(result.robust_accuracy for result in results)
    for broken, name in zip(worst.success, worst.broken_by, strict=True):
        assert (name is not None) == broken


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": {"sha256": "b"}}, "different weights"),
        ({"data": {"fingerprint": "other"}}, "different data sets"),
        ({"indices": np.array([0, 3, 7])}, "different images"),
        ({"attack": {"name": "fab", "norm": "L2", "eps": 2.0}}, "L2 1 and L2 2"),
        ({"attack": {"name": "fab", "norm": "Linf", "eps": 1.0}}, "Linf 1"),
    ],
)
def test_worst_case_refuses_what_cannot_be_compared(changes, match):
    with pytest.raises(InputError, match=match):
        worst_case([make_results([1, 0, 0]), make_results([0, 1, 0], **changes)])
    with pytest.raises(InputError, match="at least one"):
        worst_case([])


def test_names_depend_on_everything_that_matters():
    base = {"data": {"indices": [1]}, "model_sha256": "a", "seed": 0}
    base["attack"] = {"name": "pgd", "norm": "L2", "eps": 1.0, "steps": 10}
    digests = {configuration_hash(**base)}
    for change in (
        {"attack": {**base["attack"], "steps": 11}},
        {"data": {"indices": [2]}},
        {"model_sha256": "b"},
        {"seed": 1},
    ):
        digests.add(configuration_hash(**{**base, **change}))
    assert len(digests) == 5
    reordered = {"eps": 1.0, "steps": 10, "norm": "L2", "name": "pgd"}
    assert configuration_hash(**{**base, "attack": reordered}) in digests
    assert result_name(base["attack"], "abc") == "pgd-L2-1-abc"
    assert result_name({"name": "fgsm", "norm": "Linf", "eps": 8 / 255}, "abc") == "fgsm-Linf-0.03137-abc"
