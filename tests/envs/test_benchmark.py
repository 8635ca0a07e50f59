from pathlib import Path

import pytest
import torch

from benchmarks import common, envs


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    seconds = common.interleave({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}


def test_the_benchmark_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # which the benchmark sets, and keeps
    envs.main(num_envs=3, steps=2, repeats=2, images=20)
    text = (tmp_path / "results" / "envs.md").read_text()
    assert text.count("| ImageVecEnv | ") == len(envs.SHAPES)
    assert "stable-baselines3" in text
    data = common.read_results("envs")
    assert {row["env"] for row in data["rows"]} >= {"ImageVecEnv", envs.PEER}
    assert all(row["images_per_second"] > 0 for row in data["rows"])
    assert data["machine"]["cores"] >= 1
