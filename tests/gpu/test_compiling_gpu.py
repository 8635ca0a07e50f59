"""Training compiles its network by default on a GPU, and goes on where it cannot."""

import pytest
import torch
from torch import nn

from agents.common import compiling
from agents.models.classifier import new_classifier
from agents.models.layers import sample_seeds
from agents.training.factory import build_algorithm, build_env
from agents.training.resolve import resolve
from agents.training.run import train
from envs import load_dataset
from envs.files import read_json
from tests.support.agent_runs import short

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)


def test_the_default_is_to_compile_on_a_gpu_alone(gpu, compiler):
    assert compiling.compiles(None, CUDA)
    assert not compiling.compiles(None, CPU)
    assert not compiling.compiles(False, CUDA)
    assert compiling.compiles(True, CPU)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("shutil.which", lambda name: None, "C compiler"),
        ("agents.common.compiling.find_spec", lambda name: None, "Triton is not installed"),
        ("torch.cuda.get_device_capability", lambda device: (6, 1), "compute capability 7.0"),
    ],
)
def test_what_hinders_the_compiler_is_said_in_one_line(gpu, compiler, monkeypatch, capsys, name, value, said):
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name)
    monkeypatch.setattr(name, value)
    assert not compiling.compiles(None, CUDA)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "--no-compile" in line


def test_a_network_whose_compilation_fails_goes_on_with_one_warning(monkeypatch):
    def failing(network):
        def run(images):
            raise torch._dynamo.exc.InternalTorchDynamoError("no such kernel")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    network = nn.Linear(3, 2)
    call = compiling.compiled(network)
    x = torch.ones(1, 3)
    with pytest.warns(UserWarning, match="without being compiled: no such kernel") as caught:
        assert torch.equal(call(x), network(x))
    assert torch.equal(call(x), network(x))
    assert len(caught) == 1


def test_errors_of_a_network_stay_its_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    with pytest.raises(RuntimeError, match="shapes"):
        compiling.compiled(nn.Linear(3, 2))(torch.ones(1, 4))


def test_policies_of_a_run_are_compiled(gpu, compiler):
    data = load_dataset("digits").to("cuda")
    for options, count in (({}, 1), ({"compile": False}, 0)):
        gpu.compiled.clear()
        settings = resolve(short(None, "ppo", network="mlp", device="cuda", **options), data)
        build_algorithm(settings, build_env(settings, data), data)
        assert len(gpu.compiled) == count


@pytest.mark.slow
def test_a_run_records_whether_it_was_compiled(gpu, compiler, tmp_path):
    run = train(short(tmp_path / "run", "supervised", device="cuda"))
    stored = read_json(run.config_path)
    assert stored["compiled"] is True
    assert stored["config"]["compile"] is None


@pytest.mark.slow
def test_compiled_networks_take_their_masks_from_the_seeds():
    """Without generating code, which would need a compiler: what is traced runs operator by operator."""
    torch._dynamo.reset()
    network = new_classifier((1, 8, 8), 10, "cnn4").train()
    traced = torch.compile(network, backend="eager")
    images = torch.rand(8, 1, 8, 8)
    for seed in range(3):
        with sample_seeds(torch.arange(8) + 100 * seed):
            assert torch.equal(traced(images), network(images))
