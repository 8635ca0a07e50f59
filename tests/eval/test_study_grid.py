"""What a study may be, and how its cells are named."""

import dataclasses
from pathlib import Path

import pytest

from envs.errors import InputError
from eval.core.threats import Threat
from eval.study.plan.cells import cells_of
from eval.study.plan.config import PRESETS, parse_grid, preset, read_grid
from eval.study.run.estimate import estimate
from eval.study.run.stages import specs
from tests.support.study_toys import TINY, study, tiny

FILE = """
datasets = ["digits"]
networks = ["mlp", "small"]
seeds = [0, 3]
threats = ["Linf 8/255"]
attacks = ["pgd", "short"]
[attack.short]
attack = "pgd"
steps = 7
[train]
passes = 2
[regimes.SL]
algo = "supervised"
[regimes.RL-adv]
algo = "reinforce"
passes = 3
adversarial = {method = "fgsm", eps = 0.01, weight = 0.2}
"""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name):
    grid = preset(name)
    cells = cells_of(grid)
    assert len(cells) == len(grid.datasets) * len(grid.networks) * len(grid.regimes) * len(grid.seeds)
    assert specs(grid)
    whole = study(grid, Path("nowhere"))
    for cell in cells[: len(grid.regimes)]:
        cost = estimate(whole, cell, 1000, 1e-4)
        assert cost.training >= 3 * 1000
        assert cost.seconds > 0


def test_named_studies_differ_as_they_say():
    def configs(name):
        return {cell.regime: cell.config for cell in cells_of(preset(name)) if cell.seed == 0}

    rates = configs("exploration")
    found = {name: config.exploration.eps for name, config in rates.items() if "eps" in name}
    assert list(found.values()) == [0.0, 0.05, 0.1, 0.2, 0.35, 0.5]
    assert [config.ppo.ent_coef for name, config in rates.items() if "entropy" in name] == [0.001, 0.01, 0.1]
    regimes = configs("regimes")
    assert regimes["hybrid"].phases() == (("supervised", 10.0), ("reinforce", 40.0))
    assert (regimes["hybrid"].passes, regimes["SL"].passes) == (None, 10.0)
    assert regimes["SL-long"].passes == regimes["RL"].passes == 50
    assert regimes["RL-TRADES"].adversarial.rule == "trades"
    long = configs("cifar10-long")
    assert long["SL-long"].passes == long["RL-long"].passes == 600
    assert sum(passes for _, passes in long["hybrid"].phases()) == 600
    networks = {cell.network: cell.config for cell in cells_of(preset("cifar10-networks"))}
    assert list(networks) == ["cnn4", "resnet18", "resnet50", "densenet121", "wrn16-4", "vit"]
    assert all(config.network == name for name, config in networks.items())
    assert {config.image_size for config in configs("imagenet100").values()} == {32}
    assert {config.dataset for config in configs("stl10").values()} == {"stl10"}


def test_every_named_study_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "study.md").read_text()
    assert [name for name in PRESETS if f"`{name}`" not in page] == []


def test_one_length_replaces_another():
    lengths = {"A": {"schedule": "supervised:1,reinforce:2"}, "B": {"total_images": 500}, "C": {}}
    regimes = {
        name: {"algo": "reinforce", "preset": "digits-rl", **length} for name, length in lengths.items()
    }
    found = {cell.regime: cell.config for cell in cells_of(tiny(regimes=regimes, train={"passes": 7.0}))}
    assert (found["A"].passes, found["A"].total_images) == (None, None)
    assert (found["B"].passes, found["B"].total_images) == (None, 500)
    assert (found["C"].passes, found["C"].total_images) == (7.0, None)


def test_the_four_regimes_of_the_paper_are_its_presets():
    configs = {cell.regime: cell.config for cell in cells_of(preset("cifar10"))}
    assert set(configs) == {"SL", "SL-adv", "RL", "RL-adv"}
    assert all(config.network == "cnn6" and config.augmentation == "paper" for config in configs.values())
    assert configs["RL-adv"].adversarial.weight == 0.2
    assert configs["SL"].adversarial.method == "none"


def test_a_file_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    grid = read_grid(path)
    cells = {cell.id: cell.config for cell in cells_of(grid)}
    assert grid.name == "mine"
    assert grid.threats == (Threat("Linf", 8 / 255),)
    assert [spec.options.get("steps") for _, spec in specs(grid)] == [None, 7]
    assert len(cells) == 8
    assert cells["digits-mlp-SL-s3"].passes == 2
    assert cells["digits-small-RL-adv-s0"].passes == 3
    assert cells["digits-small-RL-adv-s0"].adversarial.eps == 0.01


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": ["digits"]}, "key of a study 'dataset'.*Did you mean 'datasets'"),
        ({"regimes": {"SL": {"algoritm": "ppo"}}}, "key of regimes.SL 'algoritm'.*Did you mean 'algo'"),
        ({"regimes": {"SL": {"adversarial": {"step": 3}}}}, "regimes.SL.adversarial 'step'.*'steps'"),
        ({"regimes": {"SL": {"algo": "superwised"}}}, "regime SL: unknown algorithm 'superwised'"),
        ({"regimes": {"SL": {"preset": "digits-ls"}}}, "unknown training preset 'digits-ls'"),
        ({"regimes": {"SL": {"seed": 4}}}, "key of regimes.SL 'seed'"),
        ({"regimes": {}}, "regimes is missing or empty"),
        ({"threats": ["L2"]}, "threat 'L2'; expected a norm and a radius"),
        ({"threats": ["L3 1.0"]}, "unknown norm 'L3'"),
        ({"threats": ["Linf 8"]}, "eps is 8 for Linf"),
        ({"attacks": ["pdg"], "attack": {}}, "unknown attack 'pdg'.*Did you mean 'pgd'"),
        ({"attack": {"pgd": {"stepz": 5}}}, "pgd takes no option 'stepz'"),
        ({"attacks": ["pgd"]}, "attack.pgd-cleverhans is described but not listed"),
        ({"images": 0}, "images is 0 in a study: expected int >= 2"),
        ({"images": "many"}, "images is 'many' in a study: expected int"),
        ({"seeds": 3}, "seeds is 3; expected a list"),
        ({"seeds": [1, 1]}, "seeds names one twice"),
        ({"audit": {"mode": "brief"}}, "unknown audit mode 'brief'"),
        ({"audit": {"image": 3}}, "key of audit 'image'.*Did you mean 'images'"),
        ({"transfer": {"crafts": ["papers"]}}, "unknown way to make transfer images 'papers'"),
        ({"train": {"passes": "two", "total_images": None}}, "passes='two'"),
        ({"regimes": {"A": {"algo": "epg"}, "B": {"algo": "epg"}}}, "same training"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(changes, words):
    with pytest.raises(InputError, match=words) as caught:
        cells_of(parse_grid(TINY | changes))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_grid(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("datasets = [")
    with pytest.raises(InputError, match="not valid TOML"):
        read_grid(tmp_path / "bad.toml")


def test_a_cell_is_named_by_what_decides_over_its_weights():
    first = cells_of(tiny())[0]
    other_questions = cells_of(tiny(images=50, threats=["Linf 0.1"], attacks=["fgsm"], attack={}))[0]
    assert other_questions.hash == first.hash
    renamed = cells_of(tiny(regimes={"Supervised": {"algo": "supervised"}}))[0]
    assert renamed.hash == first.hash
    for option in ({"device": "cuda"}, {"progress": True}, {"pictures_every": 100}):
        moved = dataclasses.replace(first, config=dataclasses.replace(first.config, **option))
        assert moved.hash == first.hash
    longer = cells_of(tiny(train=TINY["train"] | {"total_images": 1250}))[0]
    assert len({first.hash, longer.hash, cells_of(tiny(seeds=[1]))[0].hash, cells_of(tiny())[1].hash}) == 4


def test_cost_is_counted_in_passes(tmp_path):
    grid = tiny(
        regimes={
            "SL": {"algo": "supervised"},
            "AT": {"algo": "supervised", "adversarial": {"method": "pgd", "steps": 4}},
        }
    )
    plain, hardened = (estimate(study(grid, tmp_path), cell, 1000, 0.001) for cell in cells_of(grid))
    assert plain.training == 1200 * 3
    assert hardened.training == 1200 * (3 + 4 * 3)
    assert plain.examination == 24 * (2 * 5 * 3 + 2 * 3 * 3)
    assert plain.seconds == pytest.approx(0.001 * (3600 + 24 * 48))
