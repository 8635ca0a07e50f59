"""Everything that evaluates, on a pretended GPU: a whole study, and each command; numbers are the CPU's."""

import json
from dataclasses import replace

import pytest

from agents.training.run import train
from eval import audit
from eval.export import command as export
from eval.mechanism import command as mechanism
from eval.robustness import command as robustness
from eval.study.plan.config import preset
from eval.study.results.writer import locked, write_study
from eval.study.run.engines import InProcess, carry_out
from eval.trajectory import command as trajectory
from eval.transfer import command as transfer
from tests.support.agent_runs import short
from tests.support.audit_budgets import TINY
from tests.support.pretend_cuda import PretendCuda
from tests.support.study_toys import shrunk, study, tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pictures_undrawn")]

PARTS = ("steps", "resolution", "average-images", "average-resolution", "plane-resolution")
COARSE = [f"--{part}=4" for part in PARTS]
COMMANDS = {
    "robustness": (robustness, ["--attacks", "fgsm", "square", "--norm", "L2", "--eps", "0.5", "--n", "8"]),
    "mechanism": (mechanism, ["--norm", "L2", "--eps", "0.5", "--n", "8", *COARSE]),
    "audit": (audit, ["--norm", "L2", "--eps", "0.5", "--n", "8"]),
    "transfer": (transfer, ["--norm", "L2", "--eps", "0.5", "--n", "8", "--steps", "5"]),
    "trajectory": (trajectory, ["--norm", "L2", "--eps", "0.5", "--n", "8", "--points", "1", "--force"]),
}


@pytest.fixture(autouse=True)
def _small_audit(monkeypatch):
    monkeypatch.setattr("eval.audit.run.QUICK", TINY)


@pytest.mark.parametrize("name", ["cifar10", "everything"])
def test_dry_run_of_a_study(name, gpu, tmp_path):
    """The regimes of `eval.study cifar10`; and attacks, transfer, mechanism, trajectories and audits."""
    plans = {"trajectory": {"snapshots": 1, "images": 3}, "audit": {"mode": "quick", "images": 4}}
    mechanism = {"images": 4, "steps": 3, "resolution": 5}
    training = {"total_images": 200, "batch_size": 50, "eval_every": 100, "threads": 1}
    everything = tiny(mechanism=mechanism, train=training, **plans, images=4)
    grid = everything if name == "everything" else shrunk(preset(name), tmp_path)
    item = study(grid, tmp_path / "study")
    item = replace(item, place=replace(item.place, device="cuda"))
    with locked(item.directory):
        counts = carry_out(item, InProcess(0), lambda line: None)
        write_study(item)
    assert counts == {"finished": len(item.grid.regimes), "failed": 0, "missing": 0}
    devices = {
        json.loads(path.read_text()).get("device") for path in item.directory.glob("cells/*/run/summary.json")
    }
    assert devices <= {"Pretend GPU, TF32 off"}
    followed = list(item.directory.glob("cells/*/run/results/trajectory/trajectory.json.xz"))
    assert len(followed) == (len(item.cells) if grid is everything else 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_on_the_gpu_what_it_prints_on_the_cpu(name, digits_run, tmp_path, capsys):
    module, options = COMMANDS[name]
    targets = [str(digits_run)]
    if name == "trajectory":
        targets = [str(train(short(tmp_path / "run", "reinforce", snapshots="2")).path)]
    if name == "transfer":
        targets += [str(train(short(tmp_path / "other", "supervised")).path)]
    capsys.readouterr()
    shown = {}
    for device in ("cpu", "cuda"):
        line = [*targets, *options, "--device", device, "--out", str(tmp_path / device)]
        if device == "cuda":
            with PretendCuda():
                status = module.main(line)
        else:
            status = module.main(line)
        output, error = capsys.readouterr()
        assert status == 0, error
        shown[device] = [word for word in output.split() if word.endswith("%")]
    assert shown["cuda"] == shown["cpu"]


def test_export(digits_run, gpu, tmp_path):
    assert export.main([str(digits_run), str(tmp_path / "export")]) == 0
