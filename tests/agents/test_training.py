import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import attacks
from agents import load_classifier
from agents.common.run_dir import RunDir
from agents.config import ExplorationConfig, TrainConfig
from agents.models.classifier import new_classifier
from agents.training.run import resume, train
from agents.training.schedule import LearningRate
from agents.training.summary import first_attacks
from envs import load_dataset
from envs.errors import InputError
from tests.support.agent_runs import CASES, assert_same_runs, metrics, scalars, short, stopping, summary

FILES = {"config.json", "model.safetensors", "policy.zip", "checkpoint.pt", "metrics.jsonl", "summary.json"}


def weights(path):
    return (path / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_run_directory_is_complete_and_repeatable(case, tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    run = train(short(first, case))
    train(short(again, case))
    train(short(other, case, seed=1))
    assert_same_runs(again, first)
    assert weights(other) != weights(first)
    assert metrics(other) != metrics(first)

    names = {entry.name for entry in first.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names - events - {".lock"} == FILES
    assert len(events) == 1
    found = summary(first)
    assert found["images"] == metrics(first)[-2]["step"] >= 900
    assert 0 < found["test_accuracy"] <= 1
    assert found["val_accuracy"] == max(
        line["val/accuracy"] for line in metrics(first) if "val/accuracy" in line
    )
    assert run.config["dataset"]["fingerprint"] == load_dataset("digits").fingerprint
    assert TrainConfig.from_dict(run.config["config"]) == short(first, case)
    assert torch.__version__.startswith(run.config["versions"]["torch"])
    check_the_kept_classifier(first, found)


def check_the_kept_classifier(path, found):
    test = load_dataset("digits", "test")
    classifier = load_classifier(path)
    logits = classifier(test.images / 255)
    assert (logits.argmax(1) == test.labels).double().mean() == pytest.approx(found["test_accuracy"])
    assert torch.equal(load_classifier(path / "policy.zip")(test.images / 255), logits)
    assert all(value.is_cpu for value in load_file(path / "model.safetensors").values())


@pytest.mark.parametrize("case", ["ppo", "schedule", "dqn"])
def test_tensorboard_and_metrics_tell_the_same(case, tmp_path):
    train(short(tmp_path, case))
    curves, lines = scalars(tmp_path), metrics(tmp_path)
    assert {"train/reward", "train/accuracy", "train/loss", "val/accuracy", "val/loss"} <= curves.keys()
    for tag, points in curves.items():
        expected = [(line["step"], line[tag]) for line in lines if tag in line]
        assert [step for step, _ in points] == [step for step, _ in expected], tag
        assert np.allclose([value for _, value in points], [value for _, value in expected]), tag
        assert len({step for step, _ in points}) == len(points)
    steps = [line["step"] for line in lines if "train/reward" in line]
    assert steps == sorted(set(steps))
    if case == "ppo":
        assert {"train/approx_kl", "train/clip_fraction", "train/explained_variance"} <= lines[-2].keys()


def test_validations_and_selection_follow_the_clock_of_images(tmp_path):
    train(short(tmp_path, "supervised"))
    validated = [line["step"] for line in metrics(tmp_path) if "val/accuracy" in line]
    assert validated == [300, 600, 900, 1_000]
    logged = [line["step"] for line in metrics(tmp_path) if "train/loss" in line]
    assert logged == [100, 150, 250, 300, 400, 450, 550, 600, 700, 750, 850, 900, 1_000]


def test_the_learning_rate_falls_to_its_end_and_never_below_zero(tmp_path):
    train(short(tmp_path, "ppo", total_images=950, learning_rate=1e-2, lr_end=0.0))
    rates = [line["train/learning_rate"] for line in metrics(tmp_path) if "train/learning_rate" in line]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) == 0.0
    assert max(rates) < 1e-2
    assert summary(tmp_path)["images"] == 1_000  # the last rollout overruns


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_learning_rate_schedules(shape):
    rate = LearningRate(2.0, shape, end=0.1)
    assert rate(1) == pytest.approx(2.0)
    assert rate(0) == pytest.approx(0.2)
    assert rate(0.5) == pytest.approx(1.1)


def test_a_linear_schedule_with_a_floor():
    rate = LearningRate(2.0, "linear-floor", end=0.1)
    assert [rate(share) for share in (1, 0.5, 0.1, 0.05, 0)] == pytest.approx([2.0, 1.0, 0.2, 0.2, 0.2])


def test_a_schedule_is_one_run(tmp_path):
    train(short(tmp_path, "schedule"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    phases = [line["time/phase"] for line in lines if "time/phase" in line]
    assert phases == sorted(phases)
    assert set(phases) == {0.0, 1.0, 2.0}
    rates = [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]
    assert rates == sorted(rates, reverse=True)  # one fall over the whole run


@pytest.mark.slow
def test_phases_hand_on_weights_and_optimiser(tmp_path):
    """Two phases of an algorithm that draws nothing are one long phase, bit by bit."""
    options = {"total_images": None, "lr_schedule": "constant"}
    train(short(tmp_path / "two", "supervised", schedule="supervised:0.5,supervised:0.5", **options))
    train(short(tmp_path / "one", "supervised", schedule="supervised:1", **options))
    train(
        short(
            tmp_path / "reset",
            "supervised",
            schedule="supervised:0.5,supervised:0.5",
            schedule_optimizer="reset",
            **options,
        )
    )
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["algorithm"]["optimizer"]["state"]
        for name in ("two", "one", "reset")
    ]
    assert states[0][0]["step"] == states[1][0]["step"] == 26
    assert states[2][0]["step"] == 13
    assert torch.equal(states[0][0]["exp_avg"], states[1][0]["exp_avg"])


OPTIONS = {
    "label noise": {"label_noise": 0.3},
    "signed": {"reward": "signed"},
    "episodes": {"episode_length": 4, "stop_on_error": True},
    "paper": {"augmentation": "paper"},
    "list": {"augmentation": "hflip,translate:0.2,crop:1"},
    "bf16": {"precision": "bf16"},
    "constant": {"lr_schedule": "constant"},
    "clipping off": {"max_grad_norm": 0.0},
    "mixture": {"exploration": ExplorationConfig(eps=0.3, mode="mixture")},
    "batch": {"exploration": ExplorationConfig(eps=1.0, mode="batch")},
    "resized": {"image_size": 12},
    "network": {"network": "small"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["reinforce", "ppo"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_run_and_matter(option, case, tmp_path, baselines):
    train(short(tmp_path, case, total_images=200, **OPTIONS[option]))
    harmless = {"episodes", "clipping off"}  # at gamma 0; gradients are short at first
    if case == "reinforce":
        harmless.add("paper")  # the case has it already
    assert (weights(tmp_path) == baselines[case]) == (option in harmless)


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
    found = {}
    for case in ("reinforce", "ppo"):
        path = tmp_path_factory.mktemp(case)
        train(short(path, case, total_images=200))
        found[case] = weights(path)
    return found


def test_a_reward_matrix_from_a_file(tmp_path):
    """Only the next label is paid, so it is what is learnt; validation goes by the true one."""
    rewards = tmp_path / "rewards.json"
    rewards.write_text(json.dumps(np.roll(np.eye(10), 1, axis=1).tolist()))
    train(short(tmp_path / "run", "supervised", algo="epg", reward=str(rewards), total_images=3_000))
    lines = [line for line in metrics(tmp_path / "run") if "val/accuracy" in line]
    assert max(line["train/reward"] for line in lines[-5:]) > 0.6
    assert lines[-1]["val/accuracy"] < 0.05


def test_a_changed_reward_matrix_is_noticed(tmp_path, monkeypatch):
    rewards = tmp_path / "rewards.json"
    rewards.write_text(json.dumps(np.eye(10).tolist()))
    with stopping(monkeypatch, 3), pytest.raises(KeyboardInterrupt):
        train(short(tmp_path / "run", "supervised", algo="epg", reward=str(rewards)))
    rewards.write_text(json.dumps((2 * np.eye(10)).tolist()))
    with pytest.raises(
        InputError, match=r"rewards\.json have changed since the run began; restore them or train"
    ):
        resume(tmp_path / "run", progress=False)
    rewards.write_text(json.dumps(np.eye(10).tolist(), indent=1))
    resume(tmp_path / "run", progress=False)


def test_the_callers_settings_of_pytorch_come_back(tmp_path, monkeypatch):
    seen = []

    def failing(*_):
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        raise RuntimeError("stop here")

    monkeypatch.setattr("agents.training.run.build_algorithm", failing)
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop here"):
        train(short(tmp_path / "run", "supervised", threads=threads + 1, deterministic=True))
    assert seen == [(threads + 1, True)]
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_label_noise_only_concerns_rewards(tmp_path):
    """With 90 % of the labels wrong, validation still goes by the true ones."""
    train(short(tmp_path / "noisy", "supervised", label_noise=0.9))
    train(short(tmp_path / "clean", "supervised"))
    noisy, clean = (summary(tmp_path / name) for name in ("noisy", "clean"))
    assert noisy["val_accuracy"] < 0.4 < clean["val_accuracy"]


@pytest.mark.slow
def test_the_whole_idea_end_to_end(digits_run, capsys):
    """The defaults on digits: the table has clean accuracy and the four attacks, each weaker than no attack."""
    found = json.loads((digits_run / "summary.json").read_text())
    assert found["test_accuracy"] > 0.95
    assert found["test_images"] == 359


@pytest.mark.slow
def test_the_closing_table(tmp_path, capsys):
    train(short(tmp_path / "run", "supervised", attack=True, total_images=2_000))
    found = summary(tmp_path / "run")
    rows = {(row["attack"], row["norm"], row["protocol"]): row for row in found["attacks"]}
    names = [("fgsm", "Linf", None), ("pgd", "Linf", "normalized")]
    assert list(rows) == [*names, ("pgd", "L2", "normalized"), ("pgd", "L2", "cleverhans")]
    for row in rows.values():
        assert 0 <= row["accuracy"] <= found["test_accuracy"]
        assert row["images"] == 359
    assert rows[names[1]]["accuracy"] <= rows[names[0]]["accuracy"] + 0.01
    assert 0 <= rows["pgd", "L2", "cleverhans"]["shortened"] <= 1
    printed = capsys.readouterr().out
    for part in (f"{found['test_accuracy']:.2%}", "FGSM", "PGD-100", "cleverhans", "normalized", "next:"):
        assert part in printed
    assert str(tmp_path / "run") in printed.replace("\n", "")


def test_run_directories_are_named_and_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [train(short(None, "supervised", total_images=100)).path for _ in range(2)]
    assert [str(name) for name in names] == [
        "runs/digits-supervised-mlp-s0",
        "runs/digits-supervised-mlp-s0-2",
    ]
    data = load_dataset("digits").take(list(range(60)))
    np.savez("toy.npz", images=data.images.numpy(), labels=data.labels.numpy() % 3)
    run = train(short(None, "schedule", dataset="npz:toy.npz", seed=4))
    assert str(run.path) == "runs/toy-supervised+ppo+reinforce-mlp-s4"


def test_names_with_markup_are_printed_as_they_are(tmp_path, capsys):
    path = tmp_path / "a[bold]b[/red]"
    train(short(path, "supervised", total_images=100, progress=True))
    assert "a[bold]b[/red]" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow
def test_a_training_set_smaller_than_a_batch(tmp_path):
    data = load_dataset("digits").take(list(range(60)))
    np.savez(tmp_path / "toy.npz", images=data.images.numpy(), labels=data.labels.numpy() % 3)
    for case in ("ppo", "supervised", "dqn"):
        config = short(tmp_path / case, case, dataset=f"npz:{tmp_path / 'toy.npz'}", batch_size=100)
        assert train(config).model_path.is_file()


def test_a_constant_channel_is_no_obstacle(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    images[..., 1] = 7
    np.savez(tmp_path / "toy.npz", images=images, labels=np.arange(60) % 3)
    run = train(short(tmp_path / "run", "supervised", dataset=f"npz:{tmp_path / 'toy.npz'}", batch_size=10))
    assert load_classifier(run.path).body.std[1] == 1


def test_a_bad_configuration_leaves_nothing_behind(tmp_path):
    rewards = tmp_path / "rewards.json"
    rewards.write_text("[[1, 0], [0, 1]]")
    for options in (
        {"reward": str(rewards)},
        {"label_noise": 1.0},
        {"network": "nature"},
        {"device": "cuda:99"},
    ):
        with pytest.raises(InputError):
            train(short(tmp_path / "run", "supervised", **options))
        assert not (tmp_path / "run").exists(), options


def test_the_run_directory_type(digits_run, tmp_path):
    run = RunDir.open(digits_run)
    assert run.results_dir == digits_run / "results"
    with pytest.raises(InputError, match=r"is not empty; continue it with --resume"):
        RunDir.create(digits_run, "unused")
    with pytest.raises(InputError, match="no run at"):
        RunDir.open(tmp_path / "none")
    with pytest.raises(InputError, match=r"has no config\.json"):
        RunDir.open(tmp_path)
    with run.lock(), pytest.raises(InputError, match="another process"), RunDir.open(digits_run).lock():
        pass


def test_the_closing_table_attacks_images_of_every_class_of_sorted_data(tmp_path, monkeypatch):
    """Folders are stored class by class; the first images would be of one or two of them."""
    data = load_dataset("digits", "test")
    test = data.take(data.labels.argsort())
    monkeypatch.setattr("agents.training.summary.ATTACKED_IMAGES", 50)
    seen = []

    def fgsm(classifier, images, labels, **options):
        seen.append(labels)
        return attacks.fgsm(classifier, images, labels, **options)

    with monkeypatch.context() as patch:
        patch.setattr("agents.training.summary.attacks", SimpleNamespace(fgsm=fgsm, pgd=attacks.pgd))
        rows = first_attacks(new_classifier((1, 8, 8), 10, "mlp").eval(), test, progress=False)
    assert [row["images"] for row in rows] == [50] * 4
    assert len(seen[0].unique()) == 10
    assert test.labels[:50].max() == 1
