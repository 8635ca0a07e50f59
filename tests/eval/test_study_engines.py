"""Engines end with the same figures as one process, workers killed or not."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.errors import InputError
from eval.attack.results import read_results
from eval.attack.runner import AttackSpec, attack_rows, run_attack
from eval.core.targets import load_samples, load_target
from eval.core.threats import Threat
from eval.study.plan.cells import CellFolder
from eval.study.results.cell_results import read_cells
from eval.study.results.writer import locked
from eval.study.run.engines import InProcess, Pool, RayEngine, carry_out
from eval.study.run.jobs import Outcome
from eval.study.run.stages import execute
from tests.support.study_toys import study, tiny

pytestmark = pytest.mark.usefixtures("pictures_undrawn")

ROOT = Path(__file__).parents[2]
BOMB = {"networks": ["tests.support.study_toys:bomb"], "regimes": {"SL": {"algo": "supervised"}}}


@pytest.fixture(autouse=True)
def armed(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_BOMB", str(tmp_path / "exploded"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "exploded"


def carried_out(item, engine):
    lines = []
    try:
        with locked(item.directory):
            counts = carry_out(item, engine, lines.append)
    finally:
        engine.close()
    return counts, lines


def outcomes(item):
    """Everything that must not depend on the engine: weights, and what every attack did to every image."""
    found = {}
    for row in read_cells(item):
        weights = CellFolder.open(item.directory, row.cell.hash).run.model_path.read_bytes()
        attacks = {
            (str(threat), name): (result.success.tolist(), result.broken_by, result.label.tolist())
            for threat, results in row.attacks.items()
            for name, result in results.items()
        }
        transfer = {source: {k: v.tolist() for k, v in rows.items()} for source, rows in row.transfer.items()}
        found[row.cell.id] = (weights, attacks, transfer)
    return found


def undisturbed(tmp_path, armed, **changes):
    armed.touch()
    whole = study(tiny(**changes), tmp_path / "whole")
    assert carried_out(whole, InProcess(0))[0]["missing"] == 0
    armed.unlink()
    return outcomes(whole)


@pytest.mark.slow
def test_a_pool_survives_a_killed_worker(tmp_path, armed):
    """The worker dies in the middle of a training; the next attempt goes on from its checkpoint."""
    expected = undisturbed(tmp_path, armed, **BOMB)
    item = study(tiny(**BOMB), tmp_path / "pool", shards=2)
    counts, lines = carried_out(item, Pool(1))
    assert counts == {"finished": 1, "failed": 0, "missing": 0}
    assert armed.exists()
    assert any("the worker died" in line and "once more" in line for line in lines)
    assert outcomes(item) == expected


class Unlucky(InProcess):
    """Fails every job so many times."""

    def __init__(self, failures, retry, retries):
        super().__init__(retries)
        self.failures, self.retry = failures, retry

    def outcomes(self, jobs):
        self.failures -= 1
        for job in jobs:
            yield job, Outcome("bad luck", self.retry) if self.failures >= 0 else execute(job)


@pytest.mark.slow
@pytest.mark.parametrize(("failures", "retry", "finished"), [(1, True, 1), (2, True, 0), (1, False, 0)])
def test_another_attempt_is_made_where_it_may_help(tmp_path, failures, retry, finished):
    item = study(tiny(regimes={"SL": {"algo": "supervised"}}), tmp_path)
    counts, lines = carried_out(item, Unlucky(failures, retry, retries=1))
    assert counts["finished"] == finished
    assert counts["failed"] == 1 - finished
    assert sum("once more" in line for line in lines) == int(retry)
    if not finished:  # it is tried again the next time
        assert carried_out(item, InProcess(0))[0]["finished"] == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'")
def test_a_local_ray_cluster_survives_a_killed_worker(tmp_path, armed):
    changes = BOMB | {"seeds": [0, 1]}
    expected = undisturbed(tmp_path, armed, **changes)
    item = study(tiny(**changes), tmp_path / "ray", shards=2)
    counts, _ = carried_out(item, RayEngine(workers=2))
    assert counts == {"finished": 2, "failed": 0, "missing": 0}
    assert armed.exists()
    assert outcomes(item) == expected


def test_ray_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install -e \"\.\[ray\]\""):
        RayEngine(2)


@pytest.fixture
def trained(tmp_path):
    item = study(tiny(regimes={"SL": {"algo": "supervised"}}), tmp_path / "one")
    carried_out(item, InProcess(0))
    return CellFolder.open(item.directory, item.cells[0].hash).run.path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd", "square", "autoattack"])
def test_shares_of_the_images_make_up_the_whole(tmp_path, trained, name):
    options = {
        "pgd": {"steps": 10},
        "square": {"queries": 50},
        "autoattack": {"version": ["apgd-ce"]},
    }
    target = load_target(str(trained))
    samples = load_samples(target, n=12)
    spec = AttackSpec(name, Threat("L2", 0.3), options[name])
    whole = run_attack(target, samples, spec, batch_size=4)
    for rows in (slice(8, 12), slice(0, 4), slice(4, 8)):
        attack_rows(target, samples, spec, rows, results_dir=tmp_path, batch_size=4)
    joined = run_attack(target, samples, spec, results_dir=tmp_path, batch_size=4)
    assert joined.success.tolist() == whole.success.tolist()
    assert joined.broken_by == whole.broken_by
    if name == "pgd":  # the others gather survivors in batches of other sizes, where kernels round otherwise
        assert joined.distance.tolist() == whole.distance.tolist()
        assert joined.queries.tolist() == whole.queries.tolist()


@pytest.mark.slow
def test_two_processes_attack_one_model(tmp_path, trained):
    """As torchrun starts them: each knows its rank, and where to meet the other."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = "--images 21 --norm L2 --eps 0.5 --attacks pgd --device cpu"
    command = [
        sys.executable,
        "-m",
        "eval.distributed",
        str(trained),
        *options.split(),
        "--out",
        str(tmp_path / "out"),
    ]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [output.count("worst case per image") for output, _ in outputs] == [1, 0]  # the first alone speaks
    assert not (tmp_path / "out" / ".partial").exists()
    target = load_target(str(trained))
    expected = run_attack(target, load_samples(target, n=21), AttackSpec("pgd", Threat("L2", 0.5)))
    found = read_results(next((tmp_path / "out").glob("pgd-*.json")))
    assert found.attack == expected.attack
    assert found.success.tolist() == expected.success.tolist()
    np.testing.assert_allclose(
        found.distance, expected.distance, atol=1e-6
    )  # batches of other sizes round otherwise
