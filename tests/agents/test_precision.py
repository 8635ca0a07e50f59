"""Half precision is warned of where it is slower."""

import pytest
import torch

from agents.common import precision
from agents.common.precision import emulates_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "emulated"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "arm64"}, False),
        ({}, False),
    ],
)
def test_only_processors_known_to_lack_it_emulate_bf16(capabilities, emulated, monkeypatch):
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert emulates_bf16(CPU) is emulated


def test_training_warns_of_emulated_bf16(tmp_path, monkeypatch, capsys):
    from agents.config import TrainConfig
    from agents.training import run as training

    monkeypatch.setattr(training, "emulates_bf16", lambda device: True)
    options = {"run_dir": tmp_path / "run", "network": "mlp", "progress": False, "total_images": 256}
    training.train(TrainConfig(algo="reinforce", precision="bf16", **options))
    assert "only emulates bf16; --precision fp32 is faster" in capsys.readouterr().err
