"""Models and images under attack, and options of attacks as people write them."""

import json

import numpy as np
import pytest

import attacks
from envs.errors import InputError
from envs.sampling import choose_indices, spread
from eval.attack.registry import (
    attack_names,
    attack_options,
    parse_option,
    recorded_options,
    resolve_options,
)
from eval.core.targets import load_target
from tests.eval.test_attack import MODEL


def test_hash_tells_models_apart():
    first, second = load_target(MODEL), load_target("tests.eval.test_attack:five_classes")
    assert first.sha256 == load_target(MODEL).sha256 != second.sha256


def test_smaller_choices_are_part_of_larger_ones():
    small, large = choose_indices(1000, 50).tolist(), choose_indices(1000, 300).tolist()
    assert set(small) < set(large)
    assert small == sorted(small)
    assert choose_indices(20, 50).tolist() == list(range(20))
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 4).tolist() == [0, 1, 2]
    assert spread(0, 4).tolist() == []
    thirds = np.histogram(large, bins=3, range=(0, 1000))[0]
    assert thirds.min() > 70  # spread over the split, which may be sorted by class


def test_every_exported_attack_is_offered_with_its_options():
    assert {"fgsm", "pgd"} <= set(attack_names()) <= set(attacks.__all__)
    for name in attack_names():
        options = attack_options(name)
        json.dumps(options, allow_nan=False)
        assert not {"norm", "eps", "seed", "targets", "sample_ids", "batch_size"} & set(options)
        assert resolve_options(name, {}) == options | (
            {"averaged_over": 128} if "averaged_over" in options else {}
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("queries=1000", ("queries", 1000)),
        ("p-init=.3", ("p_init", 0.3)),
        ("step_size=2/255", ("step_size", 2 / 255)),
        ("early-stop=false", ("early_stop", False)),
        ("attacks=[1, 2]", ("attacks", [1, 2])),
        ("version=plus", ("version", "plus")),
        ("loss=", ("loss", "")),
    ],
)
def test_options_read_as_people_write_them(text, expected):
    assert parse_option(text) == expected


def test_options_without_a_value_are_refused():
    for text in ("queries", "=3", ""):
        with pytest.raises(InputError, match="key=value"):
            parse_option(text)


def test_the_former_option_random_is_taken_and_recorded_as_before():
    assert "random" not in resolve_options("apgd", {"random": "sample"})
    assert recorded_options("fab-targeted", {})["random"] == "sample"
    assert "random" not in recorded_options("pgd", {})
    with pytest.raises(InputError, match="no longer takes random='original'"):
        resolve_options("square", {"random": "original"})
