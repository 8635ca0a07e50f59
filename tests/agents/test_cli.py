"""Wrong uses of ``python -m agents.train``: each ends with one line that names value, expectation and remedy."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from agents.common.command_line import parse_number, run_cli
from agents.common.run_dir import RunDir
from agents.models.architectures import BUILT_IN
from agents.train import run
from tests.support.agent_runs import QUICK, error_of, metrics, state, stopping

# What is typed, and what the line must say: value, expectation, remedy.
OPTIONS = {
    "--algo pppo": r"unknown algorithm 'pppo'; valid: a2c, dqn, .*package\.module:Class.* Did you mean 'ppo'\?",
    "--algo": r"Missing value for argument '.*--algo.*see python -m agents\.train --help",
    "--algo Ppo": r"unknown algorithm 'Ppo'",
    "--algo nomodule:PPO": r"cannot import algorithm 'nomodule:PPO': .*; expected package\.module:Class",
    "--algo math:sqrt": r"math:sqrt is no Stable-Baselines3 algorithm; expected the class of one",
    "--algo stable_baselines3:SAC": r"cannot build SAC .*; expected an algorithm for images and discrete actions",
    "--algo stable_baselines3:PPO --precision bf16": r"bf16 is not offered for stable_baselines3:PPO; use fp32",
    "--algo stable_baselines3:DQN --adversarial pgd": r"--adversarial pgd is not offered for stable_baselines3:DQN",
    "--algo stable_baselines3:PPO --adversarial trades": r"trades needs the logits of clean images in the loss",
    "--network cnn5": r"unknown network 'cnn5'; valid: .*cnn4, cnn6.*Did you mean 'cnn\d'\?",
    "--network nomodule:f": r"cannot import network 'nomodule:f': .*expected package\.module:Callable",
    "--network json:nothing": r"cannot import network 'json:nothing': .*expected package\.module:Callable",
    "--network math:pi": r"network 'math:pi' is a float; expected a callable",
    "--network math:sqrt": r"network 'math:sqrt' .*\(1, 8, 8\).*choose another",
    "--network nature": r"network 'nature' does not fit images of shape \(1, 8, 8\).*larger image size",
    "--dataset digitz": r"unknown data set 'digitz'; valid: digits, .* Did you mean 'digits'\?",
    "--dataset folder:": r"data set 'folder:' names no path; expected folder:PATH",
    "--dataset folder:nowhere": r"nowhere.*",
    "--dataset npz:nowhere.npz": r"nowhere\.npz.*",
    "--dataset npz:broken.npz": r"broken\.npz.*",
    "--dataset imagenet100 --data-root empty": r"imagenet100.*empty.*|empty.*imagenet100.*",
    "--data-root file": r"data root .*file is a file; expected a directory; set --data-root",
    "--image-size 0": r"--image-size is 0; expected a number above 0",
    "--image-size 100000": r"image size 100000; expected a whole number of pixels, 1 to \d+",
    "--reward acuracy": r"unknown reward 'acuracy'; valid: accuracy, signed.*Did you mean 'accuracy'\?",
    "--reward nowhere.json": r"no file nowhere\.json; expected a JSON file there",
    "--reward broken.json": r"broken\.json is not valid JSON .*; restore it",
    "--reward two.json": r"the reward matrix is \(2, 2\); expected \(10, 10\)",
    "--reward words.json": r"reward is .*; expected .*\(K, K\) array of numbers",
    "--reward nan.json": r"the reward matrix holds NaN or infinity; expected finite numbers",
    "--augmentation papr": r"unknown augmentation 'papr'; valid: none, paper.*Did you mean 'paper'\?",
    "--augmentation translate:x": r"augmentation 'translate:x' lacks a number; write it like 'translate:0\.1'",
    "--augmentation translate:2": r"translate is 2\.0; expected a fraction",
    "--augmentation crop:-1": r"crop_padding is -1; expected a whole number",
    "--augmentation hflip:2": r"augmentation 'hflip:2' takes no number; write 'hflip'",
    "--device gpu": r"unknown device 'gpu'; expected auto, cpu, cuda or cuda:N",
    "--device mps": r"device 'mps' is not supported; expected auto, cpu, cuda or cuda:N",
    "--device cuda:99": r"no device 'cuda:99': \d GPUs are visible; use --device cpu",
    "--total-images 0": r"--total-images is 0; expected a number above 0",
    "--total-images abc": r"--total-images.*'abc'.*see python -m agents\.train --help",
    "--batch-size 0": r"--batch-size is 0; expected a number above 0",
    "--learning-rate -1": r"--learning-rate is -1\.0; expected a number above 0",
    "--learning-rate nan": r"--learning-rate is nan; expected a number above 0",
    "--learning-rate inf": r"--learning-rate is inf; expected a number above 0",
    "--lr-end 2": r"--lr-end is 2\.0; expected a number from 0 to 1",
    "--lr-schedule step": r"'step'.*'constant', 'linear', 'linear-floor', 'cosine'",
    "--weight-decay -1": r"--weight-decay is -1\.0; expected 0 or more",
    "--max-grad-norm -1": r"--max-grad-norm is -1\.0; expected 0 or more",
    "--label-noise 1.5": r"--label-noise is 1\.5; expected",
    "--label-noise 1": r"label.noise is 1\.0; expected",
    "--episode-length 0": r"--episode-length is 0; expected a number above 0",
    "--eval-every 0": r"--eval-every is 0; expected a number above 0",
    "--threads 0": r"--threads is 0; expected a number above 0",
    "--seed -1": r"--seed is -1; expected 0 or more",
    "--seed 4294967296": r"--seed is 4294967296; expected less than 2\*\*32",
    "--seed 1.5": r"--seed: .*'1\.5'",
    "--precision fp16": r"'fp16'.*'fp32', 'bf16'",
    "--algo dqn --precision bf16": r"--precision bf16 is not offered for dqn; use fp32",
    "--exploration.eps 2": r"--exploration\.eps is 2\.0; expected a number from 0 to 1",
    "--exploration.mode some": r"'some'.*--exploration\.mode.*'batch'",
    "--ppo.gamma 1.1": r"--ppo\.gamma is 1\.1; expected a number from 0 to 1",
    "--ppo.epochs 0": r"--ppo\.epochs is 0; expected a number above 0",
    "--ppo.clip-range 0": r"--ppo\.clip-range is 0\.0; expected a number above 0",
    "--ppo.rollout 100": r"--ppo\.rollout is 100; expected a multiple of --batch-size \(64\), such as 128",
    "--ppo.rolout 5": r"Unrecognized options: --ppo\.rolout.*see python -m agents\.train --help",
    "--no-atack": r"Unrecognized options: --no-atack.*see python -m agents\.train --help",
    "extra": r"Unrecognized options: extra; see python -m agents\.train --help",
    "--batch-size 1 --ppo.rollout 8": r"--batch-size is 1; ppo and a2c scale advantages.*at least 2",
    "--algo a2c --batch-size 1": r"--batch-size is 1; ppo and a2c scale advantages.*at least 2",
    "--algo supervised --batch-size 1 --network tests.support.agent_runs:normed": r"--batch-size is 1.*BatchNorm",
    "--dqn.buffer-size 0 --algo dqn": r"--dqn\.buffer-size is 0; expected a number above 0",
    "--schedule supervised": r"cannot read the phase 'supervised' of --schedule; expected algorithm:passes",
    "--schedule supervised:x": r"cannot read the phase 'supervised:x' of --schedule; expected",
    "--schedule supervised:0": r"cannot read the phase 'supervised:0' of --schedule; expected",
    "--schedule supervised:1,,ppo:1": r"cannot read the phase '' of --schedule; expected algorithm:passes",
    "--schedule dqn:1": r"unknown algorithm in --schedule 'dqn'; valid: a2c, epg, ppo, reinforce, supervised",
    "--schedule suprvised:1": r"unknown algorithm in --schedule 'suprvised'.*Did you mean 'supervised'\?",
    "--run-dir file": r"cannot make the run directory file: .*; choose another",
    "--run-dir file/run": r"cannot make the run directory file/run: .*; choose another",
    "--run-dir full": r"full is not empty; continue it with --resume full or choose another --run-dir",
    f"--run-dir {'x' * 300}": r"cannot make the run directory x+: File name too long; choose another",
    "--resume nowhere": r"no run at nowhere; train one with: python -m agents\.train --run-dir nowhere",
    "--resume full": r"full is not a run directory: it has no config\.json; give the path of a run",
    "--resume file": r"file is not a run directory: it has no config\.json; give the path of a run",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("empty").mkdir()
    Path("broken.json").write_text("[[1, 0], [0")
    Path("two.json").write_text("[[1, 0], [0, 1]]")
    Path("words.json").write_text('[["a", "b"], ["c", "d"]]')
    Path("nan.json").write_text(json.dumps(np.full((10, 10), np.nan).tolist()))
    Path("broken.npz").write_bytes(b"PK\x03\x04 no archive")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("line", OPTIONS)
def test_wrong_options(line, folder, capsys):
    before = sorted(folder.rglob("*"))
    message = error_of(capsys, [*QUICK, *line.split()])
    assert re.search(OPTIONS[line], message), message
    assert sorted(folder.rglob("*")) == before  # nothing was begun


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_read_only_directories(tmp_path, capsys):
    tmp_path.chmod(0o500)
    message = error_of(capsys, [*QUICK, "--run-dir", str(tmp_path / "run")])
    assert re.search(r"cannot make the run directory .*: Permission denied; choose another", message)


def test_a_full_disk_is_one_line_and_leaves_the_last_state(tmp_path, capsys, monkeypatch):
    path, calls = tmp_path / "run", []
    replace = os.replace

    def full(*args):
        calls.append(1)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        replace(*args)

    options = [
        *QUICK,
        "--run-dir",
        str(path),
        "--total-images",
        "1000",
        "--eval-every",
        "250",
        "--algo",
        "epg",
    ]
    with monkeypatch.context() as patch:
        patch.setattr("envs.files.os.replace", full)
        message = error_of(capsys, options)
    assert message == "No space left on device; check the path, its permissions and the free space"
    assert not list(path.glob(".*.tmp"))
    assert state(path)["algorithm"]["counters"]["num_timesteps"] == 256
    assert run(["--resume", str(path)]) == 0


def test_debug_shows_the_traceback(capsys):
    assert run(["--algo", "pppo", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: unknown algorithm 'pppo'")


def test_help_lists_every_option_network_and_algorithm(capsys):
    assert run(["--help-all"]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    text = " ".join(re.split(r"[│\s]+", output))
    assert "default: None" not in text  # the texts say what None stands for
    assert "(default: digits)" in text
    for name in (*BUILT_IN, "ppo", "a2c", "dqn", "reinforce", "epg", "supervised"):
        assert re.search(rf"\b{name}\b", text), name
    for option in ("--algo", "--dataset", "--run-dir", "--resume", "--ppo.clip-range", "--exploration.eps"):
        assert option in output


def test_interrupts_and_closed_pipes_have_their_status(capsys, monkeypatch):
    @dataclass(frozen=True)
    class Options:
        raised: str = ""

    errors = {
        "interrupt": KeyboardInterrupt("stopped"),
        "bare": KeyboardInterrupt(),
        "pipe": BrokenPipeError(),
    }

    def main(options):
        raise errors[options.raised]

    assert run_cli(main, Options, "prog", ["--raised", "interrupt"]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert run_cli(main, Options, "prog", ["--raised", "bare"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = ["--raised", "bare"]
    assert run_cli(main, Options, "prog", shown, first_line=lambda options: f"{options.raised} begins") == 130
    assert capsys.readouterr().err == "bare begins\ninterrupted\n"
    monkeypatch.setattr("agents.common.command_line.os.dup2", lambda *_: None)
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1)
    assert run_cli(main, Options, "prog", ["--raised", "pipe"]) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), ("8/255", 8 / 255), (" 1 / 4 ", 0.25), ("1e-3", 1e-3)]
)
def test_numbers_may_be_fractions(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "a", "1/0", "1/2/3", "1/"])
def test_other_texts_are_no_numbers(text):
    with pytest.raises(ValueError, match=r"is not a number; expected e\.g\. 0\.1 or 8/255"):
        parse_number(text)


def test_the_command_line_trains(tmp_path, capsys):
    assert run([*QUICK, "--run-dir", str(tmp_path / "run"), "--algo", "epg", "--seed", "3"]) == 0
    assert "clean test" in capsys.readouterr().out
    assert len(metrics(tmp_path / "run")) > 0
    assert RunDir.open(tmp_path / "run").config["seed"] == 3


def test_a_network_by_import_path_is_named_again_to_resume(tmp_path, capsys, monkeypatch):
    """Files do not name code to be run: the user does, and the line that a stopped run prints has it."""
    path = tmp_path / "my run"
    network = "tests.support.agent_runs:normed"
    with stopping(monkeypatch, 3):
        argv = [
            *QUICK,
            "--algo",
            "epg",
            "--total-images",
            "640",
            "--network",
            network,
            "--run-dir",
            str(path),
        ]
        assert run(argv) == 130
    assert capsys.readouterr().err.endswith(f"agents.train --resume '{path}' --network {network}\n")
    assert "names the network 'tests.support.agent_runs:normed'" in error_of(capsys, ["--resume", str(path)])
    assert run(["--resume", str(path), "--network", network, "--no-progress"]) == 0
    assert "clean test" in capsys.readouterr().out
