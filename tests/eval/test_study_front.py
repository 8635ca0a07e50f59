"""The clean-robust front, and the cost to equal accuracy, from trainings whose answers are known."""

import dataclasses
import json

import numpy as np
import pytest

from agents.adversarial_config import AdversarialConfig
from agents.config import TrainConfig
from envs.errors import InputError
from eval.core.stats import mean_interval
from eval.study.plan.cells import cells_of, training_passes
from eval.study.results.cell_results import CellResult, Validation, read_curve
from eval.study.results.equal_accuracy import (
    common_level,
    equal_accuracy_table,
    forward_flops,
    learning_picture,
    reached,
    training_flops,
)
from eval.study.results.front import families, front_picture, front_table, undominated
from eval.study.results.overview import Overview
from tests.support.study_toys import tiny

CNN4_AT_8 = 2 * (9 * 64 * (32 + 32 * 64) + 9 * 16 * 64 * 128 + 9 * 4 * 128 * 128 + 128 * 1024 + 1024 * 10)


class Outcome:
    """What an attack left: the first ``robust`` of ten images."""

    in_box = True

    def __init__(self, clean, robust):
        self.clean_correct, self.robust = np.arange(10) < clean, np.arange(10) < robust


class Examined(CellResult):
    """A cell whose worst case is its one attack."""

    @property
    def worst(self):
        return {threat: found["pgd"] for threat, found in self.attacks.items()}


STRENGTHS = {  # (clean, robust) of ten images by training radius
    "SL": (None, (10, 0)),
    "SL-PGD-0.2": (0.2, (6, 5)),
    "SL-PGD-0.05": (0.05, (9, 4)),
    "SL-PGD-0.4": (0.4, (5, 4)),
}


@pytest.fixture
def overview():
    regimes = {"RL": {"algo": "reinforce"}} | {
        name: {"algo": "supervised"}
        | ({} if radius is None else {"adversarial": {"method": "pgd", "eps": radius}})
        for name, (radius, _) in STRENGTHS.items()
    }
    grid = tiny(regimes=regimes, seeds=[0, 1], attacks=["pgd"], attack={})
    curves = {0: ((10, 1.0, 0.5), (20, 2.0, 0.8)), 1: ((10, 1.5, 0.7), (20, 3.0, 0.9))}
    train = {"images": 1200, "shape": [1, 8, 8], "classes": 10}
    found = []
    for cell in cells_of(grid):
        clean, robust = STRENGTHS.get(cell.regime, (None, (10, 1)))[1]
        attacks = {grid.threats[0]: {"pgd": Outcome(clean, robust)}}
        curve = tuple(Validation(*point) for point in curves[cell.seed])
        if cell.regime == "RL":
            curve = tuple(point._replace(images=10 * point.images) for point in curve)
        found.append(Examined(cell, train, attacks, curve=curve))
    return Overview(grid, found)


def test_a_family_goes_from_the_plain_regime_to_the_strongest(overview):
    (group,) = overview.groups
    (members,) = families(overview, group).values()
    assert [item.regime for item in members] == ["SL", "SL-PGD-0.05", "SL-PGD-0.2", "SL-PGD-0.4"]
    assert [item.radius for item in members] == [0.0, 0.05, 0.2, 0.4]


def test_the_front_keeps_what_no_other_regime_beats(overview):
    table = front_table(overview)
    rows = {row["regime"]: row for row in table.rows}
    assert {name: row["front"] for name, row in rows.items()} == {
        "SL": "yes",
        "SL-PGD-0.05": "yes",
        "SL-PGD-0.2": "yes",
        "SL-PGD-0.4": "no",
    }
    assert (rows["SL-PGD-0.05"]["clean"].value, rows["SL-PGD-0.05"]["worst"].value) == (0.9, 0.4)
    assert undominated([(1, 1), (1, 1), (0.5, 1)]) == [True, True, False]
    _, figure = front_picture(overview, overview.groups[0])
    assert [line.get_label() for line in figure.axes[0].containers] == ["supervised, pgd"]


def test_one_strength_makes_no_front(overview):
    few = [item for item in overview.cells if item.cell.regime in ("SL", "SL-PGD-0.2", "RL")]
    assert front_table(Overview(overview.grid, few)) is None
    assert front_picture(Overview(overview.grid, few), overview.groups[0]) is None


def test_the_common_level_is_the_lowest_of_the_best_and_all_reach_it(overview):
    assert common_level(overview.cells) == 0.8
    table = equal_accuracy_table(overview)
    rows = {row["regime"]: row for row in table.rows}
    assert rows["RL"]["ratio"] == 1
    assert rows["SL"]["ratio"] == pytest.approx(0.1)
    assert rows["SL"]["images"].value == 20
    seconds = mean_interval([2.0, 3.0])
    assert (rows["SL"]["seconds"].value, rows["SL"]["seconds"].high) == (2.5, seconds.interval.high)
    assert rows["SL"]["seconds"].low == 0  # no training takes less
    assert rows["RL"]["flops"].value == pytest.approx(10 * rows["SL"]["flops"].value)
    assert rows["SL-PGD-0.2"]["flops"].value == pytest.approx(8 * rows["SL"]["flops"].value)  # 7 steps and 1
    without = [dataclasses.replace(item, curve=()) for item in overview.cells]
    assert equal_accuracy_table(Overview(overview.grid, without)) is None
    assert learning_picture(Overview(overview.grid, without), overview.groups[0]) is None
    _, figure = learning_picture(overview, overview.groups[0])
    assert len(figure.axes[0].lines) == len(overview.cells) + 1


def test_operations_are_counted():
    assert forward_flops("cnn4", (1, 8, 8), 10) == CNN4_AT_8
    assert forward_flops("no-such-network", (1, 8, 8), 10) is None
    config = TrainConfig(algo="supervised", network="cnn4", passes=3.0)
    train = {"images": 300, "shape": [1, 8, 8], "classes": 10}
    assert training_flops(config, train, 50) == 50 * 3 * CNN4_AT_8
    assert training_flops(config, {"images": 300}, 50) is None


def test_attacks_cost_from_their_start_on():
    attacks = AdversarialConfig("pgd", eps=0.1, steps=4, start=1.0)
    config = TrainConfig(schedule="supervised:2,reinforce:1", adversarial=attacks)
    assert training_passes(config, 100, until=100) == 300
    assert training_passes(config, 100, until=150) == 450 + 50 * 12
    assert training_passes(config, 100) == 900 + 200 * 12
    ppo = TrainConfig(algo="ppo", total_images=100)
    assert training_passes(ppo, 50, until=10) == 10 * (1 + 3 * ppo.ppo.epochs)


def test_curves_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 50, "time/images_per_second": 25.0},
        {"step": 100, "time/images_per_second": 50.0, "val/accuracy": 0.4, "train/loss": None},
        {"step": 101, "summary/test_accuracy": 0.5},
        {"step": 200, "time/images_per_second": 100.0, "val/accuracy": 0.6},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    curve = read_curve(path)
    assert curve == (Validation(100, 3.0, 0.4), Validation(200, 4.0, 0.6))
    assert reached(curve, 0.5) == curve[1]
    assert reached(curve, 0.7) is None
    assert read_curve(tmp_path / "none.jsonl") == ()
    path.write_text('{"step": "x"}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged"):
        read_curve(path)
