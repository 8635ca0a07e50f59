"""The commands that wait for a GPU, run dry on a pretended one; and that no measurement of theirs is lost."""

import json

import pytest
import torch

from benchmarks import common, packages, trainings
from envs.errors import InputError
from tests.support.agent_runs import short, stopping


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def settings():
    """PyTorch's precision as it was, whatever a benchmark sets."""
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark
    yield
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark = before


def test_a_measurement_is_made_once_and_kept(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"seconds": 1.5}

    path = tmp_path / "rows" / "one.json"
    assert common.kept(path, measure) == common.kept(path, measure) == {"seconds": 1.5}
    assert calls == [1]


def test_a_checkout_without_installed_packages_has_no_version_and_says_what_is_missing():
    assert packages.version_of("no-such-package-as-this") == packages.NOT_INSTALLED
    assert packages.missing() == []
    assert packages.missing(["torch>=2", "no-such-package-as-this>=1"]) == ["no-such-package-as-this>=1"]
    with pytest.raises(SystemExit, match=r'pip install "no-such-package-as-this>=1"'):
        packages.check(["no-such-package-as-this>=1", "torch"])


def test_a_machine_is_described_without_installed_packages(monkeypatch):
    monkeypatch.setattr(common, "PACKAGES", ("torch", "no-such-package-as-this"))
    machine = common.describe_machine()
    assert machine["versions"]["no-such-package-as-this"] == packages.NOT_INSTALLED
    assert "not installed" in common.machine_line(machine)


def test_a_gpu_is_described_with_its_precision(gpu, settings):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    assert "Pretend GPU, TF32 off" in common.machine_line(common.describe_machine())


@pytest.mark.slow
def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    config = short(tmp_path / "run", "supervised")
    with stopping(monkeypatch, 3), pytest.raises(KeyboardInterrupt):
        trainings.trained(config)
    checkpoint = (config.run_dir / "checkpoint.pt").stat().st_ino
    assert not (config.run_dir / "summary.json").exists()
    trainings.trained(config)
    assert (config.run_dir / "checkpoint.pt").stat().st_ino != checkpoint
    summary = (config.run_dir / "summary.json").stat().st_mtime_ns
    trainings.trained(config)  # nothing is left to do
    assert (config.run_dir / "summary.json").stat().st_mtime_ns == summary
    with pytest.raises(InputError, match="other settings"):
        trainings.trained(short(tmp_path / "run", "supervised", seed=1))


@pytest.mark.slow
def test_dry_run_of_the_training_benchmark(gpu, results, settings, tmp_path, monkeypatch):
    from benchmarks.training import gpu as benchmark

    monkeypatch.setattr(benchmark, "waits", lambda model, batch: {"cudaStreamSynchronize": 0.0})  # asks CUPTI

    runs = tmp_path / "runs"
    options = {"dataset": "digits", "network": "mlp", "batches": (256,), "epochs": 1, "precision": "fp32"}
    options |= {"compile": True, "cuda_graphs": True}
    benchmark.main(**options, runs=runs)
    assert len(gpu.compiled) == 1
    rows = json.loads((results / "gpu.json").read_text())["rows"]
    assert rows[0]["batch"] == 256
    assert rows[0]["images_per_second"] > 0
    (file,) = runs.glob("*.json")
    file.write_text(json.dumps(rows[0] | {"images_per_second": 1.0}))
    benchmark.main(**options, runs=runs)  # goes by what is kept
    assert "| 256 | 1 |" in (results / "gpu.md").read_text()


@pytest.mark.slow
def test_dry_run_of_the_attacks_benchmark(gpu, results, settings, tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack")
    from benchmarks.attacks import gpu as benchmark

    def contestants(model, x, y, norm, eps):
        return {"published": lambda: x, "standard": lambda: x, "fast": lambda: x}

    monkeypatch.setattr(benchmark, "autoattack_contestants", contestants)  # measured above, and slow here
    runs = tmp_path / "runs"
    benchmark.main(dataset="digits", network="mlp", passes=0.1, n=4, eps=0.1, peers=("foolbox",), runs=runs)
    rows = json.loads((results / "attacks-gpu.json").read_text())["rows"]
    assert len(rows) == 2 * (2 + 3)
    assert len(list((runs / "rows").glob("*.json"))) == len(rows)
    assert "Pretend GPU, TF32 off" in (results / "attacks-gpu.md").read_text()
