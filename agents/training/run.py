"""One training run from configuration to run directory."""

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam
from stable_baselines3.common.vec_env import VecEnv

from agents.common.precision import emulates_bf16, tf32
from agents.common.run_dir import RunDir, device_name, resolve_device, versions
from agents.config import TrainConfig
from agents.models.classifier import extract_classifier
from agents.pictures import picture_callbacks
from agents.training.callback import TrainingCallback
from agents.training.checkpoint import load_checkpoint, restoring, set_random_state
from agents.training.factory import (
    Algorithm,
    build_algorithm,
    build_env,
    check_names,
    plan_regime,
    reward_fingerprint,
    try_out,
)
from agents.training.logs import make_logger, quiet_writer_threads
from agents.training.robustness_probe import Probe
from agents.training.schedule import phase_ends, validation_interval
from agents.training.signals import stop_on_interrupt
from agents.training.snapshots import SnapshotCallback, snapshot_moments
from agents.training.summary import print_stored_summary, print_summary, summarise
from envs import ImageDataset, Splits, load_splits
from envs.errors import InputError
from envs.files import write_atomic, write_json

SMALL_IMAGE = 256  # pixels, up to which a second thread waits more than it works


def train(config: TrainConfig) -> RunDir:
    """Train, validate, select, attack, and return the run directory.

    Raises:
        InputError: anything in the configuration or the data is wrong; nothing has been trained then.
        KeyboardInterrupt: the run was stopped cleanly; its message tells how to continue.
    """
    if config.resume is not None:
        return resume(config.resume, config.progress, config.network)
    config.validate()
    check_names(config)
    splits = _load(config)
    try_out(config, splits.train)
    Probe.from_config(config, splits.val)
    name = "-".join(
        (
            _dataset_slug(config.dataset),
            _algorithm_slug(config),
            config.network.replace(":", "."),
            f"s{config.seed}",
        )
    )
    run = RunDir.create(config.run_dir, name)
    with run.lock():
        run.remove_leftovers()
        run.write_config(_describe(config, splits.train))
        _run(config, splits, run)
    return run


def resume(path: Path, progress: bool = True, network: str | None = None) -> RunDir:
    """Continue the run at ``path`` exactly where its last checkpoint left it; a finished run only prints its table.

    Args:
        path: the run directory.
        progress: show a progress bar.
        network: the import path of the run's network, where it has one: files are not trusted to name code.

    Raises:
        InputError: there is no run, its data has changed, or its checkpoint is damaged.
        KeyboardInterrupt: as in :func:`train`.
    """
    run = RunDir.open(path)
    with run.lock():
        run.remove_leftovers()
        fingerprint, config = _stored(run, network)
        checkpoint = load_checkpoint(run)
        pretrained = config.pretrained and checkpoint is None  # a checkpoint has all weights
        config = dataclasses.replace(config, progress=progress, pretrained=pretrained)
        if checkpoint is not None and checkpoint["done"]:
            print_stored_summary(run)
            return run
        splits = _load(config)
        if splits.train.fingerprint != fingerprint:
            raise InputError(f"the training data of {path} has changed since the run began; train a new run")
        _run(config, splits, run, checkpoint)
    return run


def _stored(run: RunDir, network: str | None) -> tuple[str, TrainConfig]:
    """Return the fingerprint of the training data and the configuration in ``config.json``, checked."""
    stored = run.config
    try:
        fingerprint, config = stored["dataset"]["fingerprint"], stored["config"]
    except (KeyError, TypeError):
        raise InputError(f"{run.config_path} lacks dataset or config; train the run anew") from None
    config = TrainConfig.from_dict(config)
    if ":" in config.network and config.network != network:
        raise InputError(
            f"{run.config_path} names the network {config.network!r}, and code named by a file is not imported; "
            f"if you trust it, add --network {config.network}"
        )
    config.validate()
    check_names(config)
    reward = reward_fingerprint(config.reward)
    if stored.get("reward_fingerprint", reward) != reward:
        raise InputError(
            f"the rewards in {config.reward} have changed since the run began; restore them or train a new run"
        )
    return fingerprint, config


def _load(config: TrainConfig) -> Splits:
    splits = load_splits(config.dataset, data_root=config.data_root, image_size=config.image_size)
    device = resolve_device(config.device)
    if config.precision == "bf16" and emulates_bf16(device):
        print(
            f"warning: {device_name(device)} only emulates bf16; --precision fp32 is faster", file=sys.stderr
        )
    return Splits(*(part.to(device) for part in splits))


def _run(config: TrainConfig, splits: Splits, run: RunDir, checkpoint: dict[str, Any] | None = None) -> None:
    """Train from the start or from ``checkpoint``, then close the run."""
    ends = phase_ends(config, len(splits.train))
    env = build_env(config, splits.train)
    regime = plan_regime(config, splits.train)
    with contextlib.ExitStack() as logs:
        logs.enter_context(_torch_settings(config, splits.train))
        logs.enter_context(tf32(False))  # all but the updates
        logs.enter_context(quiet_writer_threads())
        with stop_on_interrupt() as stop, _progress_bar(config, ends[-1]) as bar:
            callback = TrainingCallback(
                run,
                splits.val,
                ends[-1],
                validation_interval(config, len(splits.train), ends[-1]),
                stop,
                bar,
                probe=Probe.from_config(config, splits.val),
                select=config.select,
                attacks_begin=None if regime is None else regime.begins,
            )
            logs.callback(callback.close)
            model = _learn(config, splits, env, ends, callback, checkpoint)
        try:
            _close(config, splits.test, run, model, callback)
        except KeyboardInterrupt:
            raise callback.stopped() from None


@contextlib.contextmanager
def _torch_settings(config: TrainConfig, dataset: ImageDataset) -> Iterator[None]:
    """Set PyTorch's threads and determinism for a run; callers from other programs get their own settings back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(_threads(config, dataset))
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:  # PyTorch refuses to multiply matrices on a GPU without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _learn(
    config: TrainConfig,
    splits: Splits,
    env: VecEnv,
    ends: list[int],
    callback: TrainingCallback,
    checkpoint: dict[str, Any] | None,
) -> Algorithm:
    """Run every phase that is not over, and return the algorithm of the last one."""
    first = checkpoint["callback"]["phase"] if checkpoint else 0
    if first >= len(ends):
        raise InputError(f"{callback.run.checkpoint_path} is of another schedule; train the run anew")
    model: Algorithm | None = None
    begun = checkpoint["algorithm"]["counters"]["num_timesteps"] if checkpoint else 0
    snapshots = SnapshotCallback(callback.run, snapshot_moments(config, len(splits.train)), begun)
    callbacks: list[BaseCallback] = [*picture_callbacks(config, splits.val), snapshots, callback]
    for phase, (name, _) in enumerate(config.phases()):
        if phase < first:
            continue
        following = build_algorithm(name, config, env, splits.train)
        following.progress_total = ends[-1]
        if model is not None:
            _hand_over(model, following, config.schedule_optimizer == "keep")
            following.set_logger(model.logger)
        elif checkpoint:
            with restoring(callback.run):
                following.load_training_state(checkpoint["algorithm"])
                callback.load_state(checkpoint["callback"])
                set_random_state(checkpoint["random"], following.device)
        if model is None:
            following.set_logger(_logger(callback.run, checkpoint, config))
        model, callback.phase = following, phase
        callback.init_callback(model)
        restart = phase == 0 and checkpoint is None
        remaining = ends[phase] - model.num_timesteps
        if remaining > 0:  # a run may have been stopped when a phase had ended and nothing else had begun
            try:
                with tf32(True):
                    model.learn(remaining, callbacks, log_interval=None, reset_num_timesteps=restart)  # type: ignore[arg-type]
            except (RuntimeError, ValueError):
                callback.refuse_divergence()  # nothing can be drawn from a policy of NaN
                raise
            snapshots.keep()
            callback.boundary(log=True, validate=model.num_timesteps >= ends[-1])
    assert model is not None
    return model


def _hand_over(old: Algorithm, new: Algorithm, keep_optimizer: bool) -> None:
    """Give the next phase the network, the counters and the environment as the last one left them."""
    optimizer = new.policy.optimizer
    weights = old.policy.state_dict()
    new.policy.load_state_dict(weights)
    if keep_optimizer:
        optimizer.load_state_dict(old.policy.optimizer.state_dict())
    new.num_timesteps, new._last_obs = old.num_timesteps, new.present_observations()
    new._last_episode_starts = old._last_episode_starts
    new._current_progress_remaining = old._current_progress_remaining


def _logger(run: RunDir, checkpoint: dict[str, Any] | None, config: TrainConfig) -> Any:
    if checkpoint is not None:
        step = checkpoint["algorithm"]["counters"]["num_timesteps"]
        logger = make_logger(run.path, run.metrics_path, checkpoint["callback"]["metrics_bytes"], step + 1)
    else:
        logger = make_logger(run.path, run.metrics_path)
        flat = {
            key: value
            for key, value in config.to_dict().items()
            if isinstance(value, (bool, int, float, str))
        }
        logger.record("hparams", HParam(flat, {"val/accuracy": 0.0, "train/reward": 0.0}))
    return logger


def _close(
    config: TrainConfig, test: ImageDataset, run: RunDir, model: Algorithm, callback: TrainingCallback
) -> None:
    """Keep the selected weights in every format, evaluate them and print the table."""
    seconds = callback.seconds()
    model.policy.load_state_dict(callback.selection.weights or {})
    model.policy.set_training_mode(False)
    _save_policy(model, run)
    classifier = extract_classifier(model.policy)
    record = {
        "dataset": config.dataset,
        "algo": config.schedule or config.algo,
        "network": config.network,
        "seed": config.seed,
        "images": model.num_timesteps,
        "seconds": seconds,
        "adversarial": config.adversarial.resolved(test.shape[0]),
        "val_accuracy": callback.selection.accuracy,
        "val_robust_accuracy": callback.selection.robust_accuracy,
        "selected_by": config.select,
        "selected_at": callback.selection.step,
        "device": device_name(test.device),
    }
    summary = summarise(classifier, test, config.attack, config.progress, record)
    write_json(run.summary_path, summary)
    model.logger.record("summary/test_accuracy", summary["test_accuracy"])
    model.logger.dump(model.num_timesteps + 1)  # a step of its own, void if the run is resumed from before
    callback.checkpoint(done=True)
    print_summary(summary, run)


def _threads(config: TrainConfig, dataset: ImageDataset) -> int:
    """Return the CPU threads to use; see ``TrainConfig.threads``."""
    _, height, width = dataset.shape
    return config.threads or (1 if height * width <= SMALL_IMAGE else torch.get_num_threads())


def _save_policy(model: Algorithm, run: RunDir) -> None:
    buffer = io.BytesIO()
    model.save(buffer)
    write_atomic(run.policy_path, buffer.getvalue())


def _describe(config: TrainConfig, dataset: ImageDataset) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return {
        "algo": config.schedule or config.algo,
        "dataset": {
            "name": config.dataset,
            "data_root": None if config.data_root is None else str(config.data_root),
            "image_size": config.image_size,
            "fingerprint": dataset.fingerprint,
            "shape": list(dataset.shape),
            "classes": list(dataset.classes),
            "num_classes": dataset.num_classes,
        },
        "reward_fingerprint": reward_fingerprint(config.reward),
        "network": config.network,
        "seed": config.seed,
        "config": config.to_dict(),
        "versions": versions(),
        "device": device_name(dataset.device, tf32=True),
    }


def _dataset_slug(name: str) -> str:
    """Return a data set's name as part of a folder's name."""
    return Path(name.partition(":")[2]).stem if ":" in name else name


def _algorithm_slug(config: TrainConfig) -> str:
    algorithms = config.algo if config.schedule is None else "+".join(name for name, _ in config.phases())
    method = config.adversarial.method
    return algorithms if method == "none" else f"{algorithms}-{method}"


class _Rate(ProgressColumn):
    """Images per second over the recent past."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("- images/s" if speed is None else f"{speed:,.0f} images/s")


@contextlib.contextmanager
def _progress_bar(config: TrainConfig, total: int) -> Iterator[tuple[Progress, TaskID] | None]:
    if not config.progress:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,} images"),
        _Rate(),
        TextColumn("val {task.fields[accuracy]:.2%}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        description = escape(f"{_algorithm_slug(config)} on {config.dataset}")
        yield bar, bar.add_task(description, total=total, accuracy=0.0)
