"""Classifiers for benchmarks: trained once, kept, and resumed after an interruption."""

from dataclasses import replace
from pathlib import Path

from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.training.run import resume, train
from envs.errors import InputError

_OF_THE_MACHINE = ("run_dir", "device", "data_root", "threads", "progress")


def trained(config: TrainConfig) -> Path:
    """Return the run directory of a finished training: ``config.run_dir``, begun now or gone on with as need be.

    Raises:
        InputError: the folder holds a run of another configuration.
        KeyboardInterrupt: it was stopped; the next call continues.
    """
    path = config.run_dir
    assert path is not None
    if not (path / "config.json").is_file():
        train(config)
        return path
    stored = TrainConfig.from_dict(RunDir.open(path).config["config"])
    if stored != replace(config, **{name: getattr(stored, name) for name in _OF_THE_MACHINE}):
        raise InputError(f"{path} holds a training with other settings; remove it, or choose other --runs")
    if not (path / "summary.json").is_file():
        resume(path, config.progress, config.network)
    return path
