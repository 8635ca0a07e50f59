"""Trajectories: snapshots attacked alike, kept per image, recomputed from the file, refused where wrong."""

import dataclasses
import json
import lzma

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import load_classifier
from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.training.run import train
from agents.training.snapshots import snapshot_paths
from attacks import pgd
from envs.errors import InputError
from eval.attack import runner
from eval.core.records import bits, interval, share
from eval.core.targets import load_samples
from eval.core.threats import Threat
from eval.trajectory.command import main
from eval.trajectory.measure import follow, regime_name, snapshots
from eval.trajectory.outputs import scalars, summary_rows, write_outputs
from eval.trajectory.record import Outcome, Point, read_trajectories, worst, write_trajectories
from tests.support.nan_models import NanNear

THREAT = Threat("L2", 0.5)
ATTACKS = ("pgd-cleverhans", "fgsm")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with three snapshots of 100, 1,000 and 3,000 images."""
    path = tmp_path_factory.mktemp("trajectory") / "run"
    passes = [images / 1_293 for images in (100, 1_000, 3_000)]
    config = TrainConfig(
        algo="reinforce",
        network="mlp",
        total_images=3_000,
        batch_size=50,
        snapshots=",".join(map(str, passes)),
        attack=False,
        progress=False,
        run_dir=path,
    )
    return train(config)


@pytest.fixture(scope="module")
def trajectory(run):
    targets = snapshots(run)
    return follow(run, targets, load_samples(targets[100], n=24), THREAT, ATTACKS)


@pytest.mark.slow
def test_every_snapshot_is_attacked_as_it_is(run, trajectory):
    assert [point.images for point in trajectory.points] == [100, 1_000, 3_000]
    point = trajectory.points[-1]
    model = load_classifier(snapshot_paths(run)[3_000])
    samples = load_samples(snapshots(run)[3_000], n=24)
    x, y = samples.batch(slice(None), torch.device("cpu"))
    right = model(x).argmax(1) == y
    assert point.clean == bits(right.numpy())
    options = point.attacks["pgd-cleverhans"].attack
    attacked = pgd(
        model,
        x,
        y,
        norm="L2",
        eps=0.5,
        protocol="cleverhans",
        averaged_over=options["averaged_over"],
        sample_ids=samples.indices,
    )
    assert point.attacks["pgd-cleverhans"].robust == bits((~attacked.success).numpy())
    assert point.shortened("pgd-cleverhans") == pytest.approx(
        float(attacked.trace["shortened"].mean()), rel=1e-2, abs=1e-12
    )
    assert point.shortened("fgsm") is None


@pytest.mark.slow
def test_training_shows(trajectory):
    first, last = trajectory.points[0], trajectory.points[-1]
    assert share(last.clean) > share(first.clean) + 0.2
    for point in trajectory.points:
        assert point.clean == bits(np.asarray(point.indicators["margin"]) > 0)
    assert last.indicator("entropy", "mean") < first.indicator("entropy", "mean")
    assert trajectory.regime == "RL"


def test_nothing_is_attacked_twice(run, trajectory, monkeypatch):
    monkeypatch.setattr(runner, "run_function", lambda *args, **kwargs: pytest.fail("attacked again"))
    monkeypatch.setattr("eval.trajectory.measure.indicators", lambda *args: pytest.fail("measured again"))
    targets = snapshots(run)
    again = follow(run, targets, load_samples(targets[100], n=24), THREAT, ATTACKS)
    assert again == trajectory


def test_the_worst_case_leaves_out_points_outside_the_box():
    outcomes = {
        "pgd": Outcome("1101", {}),
        "fast": Outcome("1011", {}),
        "pgd-paper": Outcome("0001", {}),
    }
    point = Point(1, "", "1111", outcomes, {})
    assert point.left == "1001" == worst(["1101", "1011"])
    assert share(point.left) == 0.5
    assert interval(point.left) == pytest.approx((0.15, 0.85), abs=0.01)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"algo": "supervised"}, "SL"),
        ({"algo": "reinforce", "method": "fgsm"}, "RL-adv"),
        ({"algo": "reinforce", "method": "pgd"}, "RL-PGD"),
        ({"algo": "epg", "method": "trades"}, "EPG-TRADES"),
        ({"algo": "ppo", "schedule": "supervised:5, reinforce:20"}, "SL+RL"),
    ],
)
def test_regimes_have_names(options, name):
    method = options.pop("method", "none")
    assert regime_name(options | {"adversarial": {"method": method}}) == name


def test_the_file_keeps_everything(trajectory, tmp_path):
    path = tmp_path / "trajectory.json.xz"
    write_trajectories(path, [trajectory])
    assert read_trajectories(path) == [trajectory]
    text = lzma.decompress(path.read_bytes()).decode()
    for secret in ("run_dir", "data_root", str(tmp_path.parent)):
        assert secret not in text


@pytest.mark.parametrize("damage", ["cut", "short row", "letters", "unknown field", "format", "no xz"])
def test_damaged_files_are_refused(damage, trajectory, tmp_path):
    path = tmp_path / "trajectory.json.xz"
    write_trajectories(path, [trajectory])
    content = path.read_bytes()
    plain = json.loads(lzma.decompress(content))
    point = plain["trajectories"][0]["points"][1]
    if damage == "short row":
        point["attacks"]["fgsm"]["robust"] = "1" * 23
    elif damage == "letters":
        point["clean"] = "x" * 24
    elif damage == "unknown field":
        point["extra"] = 1
    elif damage == "format":
        plain["format"] = 99
    content = lzma.compress(json.dumps(plain).encode())
    path.write_bytes({"cut": content[:-20], "no xz": b"{}"}.get(damage, content))
    with pytest.raises(InputError, match=r"trajectory\.json\.xz"):
        read_trajectories(path)


def test_a_seed_more_is_a_mean_and_a_range(trajectory):
    other = type(trajectory)(**{name: getattr(trajectory, name) for name in trajectory.__struct_fields__})
    (row,) = summary_rows([trajectory, other])
    values = scalars(trajectory.points[-1])
    assert row["mean"]["left"] == pytest.approx(values["left"])
    assert row["range"]["clean"] == [values["clean"]] * 2


@pytest.mark.slow
def test_the_command_shows_what_the_file_shows(run, trajectory, tmp_path, capsys):
    options = ["--eps", "0.5", "--n", "24", "--no-progress", "--attacks", *ATTACKS]
    assert main([str(run.path), *options, "--out", str(tmp_path / "first")]) == 0
    first = capsys.readouterr().out
    again = str(tmp_path / "first" / "trajectory.json.xz")
    assert main([again, "--out", str(tmp_path / "second")]) == 0
    assert capsys.readouterr().out.splitlines()[:-2] == first.splitlines()[:-2]
    found, expected = (
        json.loads((tmp_path / name / "trajectory.json").read_text()) for name in ("second", "first")
    )
    assert found == expected
    assert found["trajectories"][0]["points"][1]["images"] == 1_000
    assert (tmp_path / "second" / "trajectory.png").stat().st_size > 10_000
    events = EventAccumulator(str(run.path / "trajectory")).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("trajectory/fgsm")]
    shares = [share(point.attacks["fgsm"].robust) for point in trajectory.points]
    assert [step for step, _ in curve] == [100, 1_000, 3_000]
    assert np.allclose([value for _, value in curve], shares)


def test_runs_without_snapshots_are_refused(digits_run, capsys):
    assert main([str(digits_run)]) == 2
    assert "has no snapshots; train with --snapshots" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run at nowhere"),
        (["nowhere.json.xz"], "cannot read nowhere.json.xz"),
        (["nowhere", "--attacks", "pdg"], "pdg"),
    ],
)
def test_wrong_commands_are_refused(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_snapshot_is_refused(run, tmp_path):
    copy = RunDir(tmp_path / "copy")
    copy.snapshots_dir.mkdir(parents=True)
    copy.config_path.write_bytes(run.config_path.read_bytes())
    (copy.snapshots_dir / "000000000100.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"000000000100\.safetensors"):
        snapshots(copy)


def test_points_are_spread_from_first_to_last(run, capsys):
    assert list(snapshots(run, points=2)) == [100, 3_000]
    assert list(snapshots(run, points=1)) == [3_000]
    assert list(snapshots(run, points=9)) == [100, 1_000, 3_000]
    assert main([str(run.path), "--points", "0"]) == 2
    assert "--points is 0" in capsys.readouterr().err


def test_a_folder_is_named_without_its_path(run):
    targets = snapshots(run, points=1)
    samples = dataclasses.replace(load_samples(targets[3_000], n=24), name="folder:/somewhere/digits")
    assert follow(run, targets, samples, THREAT, ATTACKS).data["dataset"] == "digits"


@pytest.mark.slow
def test_a_snapshot_that_answers_nan_is_followed(run, tmp_path, monkeypatch):
    targets = snapshots(run, points=1)
    samples = load_samples(targets[3_000], n=24)
    first = samples.batch(slice(0, 1), torch.device("cpu"))[0]
    target = dataclasses.replace(
        targets[3_000], model=NanNear(targets[3_000].model, first[0]), sha256="nan", results_dir=tmp_path
    )
    found = follow(run, {3_000: target}, samples, THREAT, ATTACKS)
    point = found.points[0]
    assert {point.clean[0], point.left[0]} == {"0"}
    assert {values[0] for name, values in point.indicators.items() if not name.startswith("clamp")} == {None}
    write_outputs(tmp_path, [found])
    text = (tmp_path / "trajectory.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert read_trajectories(tmp_path / "trajectory.json.xz") == [found]
