"""One training run from configuration to run directory."""

import contextlib
import dataclasses
import importlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms.base import ImageAlgorithm
from agents.common.precision import emulates_bf16, tf32
from agents.common.run_dir import RunDir, device_name, resolve_device, versions
from agents.config import TrainConfig
from agents.models.extraction import extract_classifier
from agents.presets import print_presets
from agents.training.callback import TrainingCallback, stop_on_interrupt
from agents.training.checkpoint import load_checkpoint, refuse_divergence, restoring, set_random_state
from agents.training.factory import (
    build_algorithm,
    build_env,
    build_probe,
    check_names,
    reward_fingerprint,
    try_out,
)
from agents.training.logs import make_logger, quiet_writer_threads
from agents.training.progress import TrainingProgress
from agents.training.resolve import ResolvedConfig, resolve
from agents.training.snapshots import SnapshotCallback
from agents.training.summary import print_stored_summary, print_summary, summarise
from agents.training.validation import Validator
from envs import ImageDataset, Splits, load_splits
from envs.errors import InputError
from envs.files import write_atomic, write_json


def train_command(config: TrainConfig) -> None:
    """Carry out ``python -m agents.train``: list the presets, or train."""
    if config.list_presets:
        print_presets()
    else:
        train(config)


def train(config: TrainConfig) -> RunDir:
    """Train, validate, select, attack, and return the run directory.

    Raises:
        InputError: anything in the configuration or the data is wrong; nothing has been trained then.
        KeyboardInterrupt: the run was stopped cleanly; its message says how to continue.
    """
    if config.resume is not None:
        return resume(config.resume, config.progress, config.network, config.algo)
    config.validate()
    check_names(config)
    splits = _load(config)
    settings = resolve(config, splits.train)
    # The bar is shown before the first optimiser, for which PyTorch imports its compiler.
    with _progress(settings) as progress:
        try_out(settings, splits.train)
        build_probe(settings, splits.val)
        spec = settings.phases[0].spec
        if notes := spec.notes(config, spec.algorithm):
            progress.say(f"note: {notes}")
        network, (kind, _, path) = config.network.replace(":", "."), config.dataset.partition(":")
        name = f"{Path(path).stem if path else kind}-{_algorithm_slug(config)}-{network}-s{config.seed}"
        run = RunDir.create(config.run_dir, name)
        with run.lock():
            run.remove_leftovers()
            run.write_config(_describe(settings, splits.train))
            _run(settings, splits, run, progress)
    return run


def resume(path: Path, progress: bool = True, network: str | None = None, algo: str | None = None) -> RunDir:
    """Continue the run at ``path`` exactly where its last checkpoint left it; a finished run only prints its table.

    ``network`` and ``algo``: import paths of the run's network and algorithm, where it has such: files are not trusted
    to name code.

    Raises:
        InputError: there is no run, its data has changed, or its checkpoint is damaged.
        KeyboardInterrupt: as in :func:`train`.
    """
    run = RunDir.open(path)
    with run.lock():
        run.remove_leftovers()
        fingerprint, config = read_stored(run, network, algo)
        checkpoint = load_checkpoint(run)
        pretrained = config.pretrained and checkpoint is None  # a checkpoint has all weights
        config = dataclasses.replace(config, progress=progress, pretrained=pretrained)
        if checkpoint is not None and checkpoint["done"]:
            print_stored_summary(run)
            return run
        splits = _load(config)
        if splits.train.fingerprint != fingerprint:
            raise InputError(f"the training data of {path} has changed since the run began; train a new run")
        settings = resolve(config, splits.train)
        _run(settings, splits, run, _progress(settings), checkpoint)
    return run


def read_stored(run: RunDir, network: str | None, algo: str | None) -> tuple[str, TrainConfig]:
    """Return the fingerprint of the training data and the configuration in ``config.json``, checked.

    Raises:
        InputError: they are damaged, or name code other than that of ``network`` and ``algo``, as in :func:`resume`.
    """
    stored = run.config
    try:
        fingerprint, config = stored["dataset"]["fingerprint"], stored["config"]
    except (KeyError, TypeError):
        raise InputError(f"{run.config_path} lacks dataset or config; train the run again") from None
    config = TrainConfig.from_dict(config)
    named = (("network", "network", config.network, network), ("algorithm", "algo", config.algo, algo))
    for kind, option, found, given in named:
        if ":" in found and found != given:
            raise InputError(
                f"{run.config_path} names the {kind} {found!r}, and code named by a file is not imported; "
                f"if you trust it, add --{option} {found}"
            )
    config.validate()
    check_names(config)
    reward = reward_fingerprint(config.reward)
    if stored.get("reward_fingerprint", reward) != reward:
        remedy = "restore them or train a new run"
        raise InputError(f"the rewards in {config.reward} have changed since the run began; {remedy}")
    return fingerprint, config


def _load(config: TrainConfig) -> Splits:
    splits = load_splits(config.dataset, data_root=config.data_root, image_size=config.image_size)
    device = resolve_device(config.device)
    if config.precision == "bf16" and emulates_bf16(device):
        name = device_name(device)
        print(f"warning: {name} only emulates bf16; --precision fp32 is faster", file=sys.stderr)
    return Splits(*(part.to(device) for part in splits))


def _progress(settings: ResolvedConfig) -> TrainingProgress:
    config = settings.options
    return TrainingProgress(f"{_algorithm_slug(config)} on {config.dataset}", settings.total, config.progress)


def _run(
    settings: ResolvedConfig,
    splits: Splits,
    run: RunDir,
    progress: TrainingProgress,
    checkpoint: dict[str, Any] | None = None,
) -> None:
    """Train from the start or from ``checkpoint``, then close the run; ``progress`` ends with the training."""
    config, attacks = settings.options, settings.attacks
    env = build_env(settings, splits.train)
    with contextlib.ExitStack() as logs:
        logs.enter_context(_torch_settings(settings))
        logs.enter_context(tf32(False))  # all but the updates
        logs.enter_context(quiet_writer_threads())
        with stop_on_interrupt() as stop, progress:
            begin = None if attacks is None else attacks.begins
            probe = build_probe(settings, splits.val)
            validator = Validator(splits.val, probe, config.select, begin, progress.say)
            callback = TrainingCallback(run, settings, validator, stop, progress)
            logs.callback(callback.close)
            model = _learn(settings, splits, env, callback, checkpoint)
        try:
            _close(config, splits.test, run, model, callback)
        except KeyboardInterrupt:
            raise callback.stopped() from None


@contextlib.contextmanager
def _torch_settings(settings: ResolvedConfig) -> Iterator[None]:
    """Set PyTorch's threads and determinism for a run; callers from other programs get their own settings back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(settings.threads)
    deterministic_cudnn = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = settings.options.deterministic
    # Some backward passes have no deterministic kernel on a GPU (adaptive pooling): PyTorch warns of them.
    torch.use_deterministic_algorithms(settings.options.deterministic, warn_only=True)
    if settings.options.deterministic:  # PyTorch refuses to multiply matrices on a GPU without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic = deterministic_cudnn


def _learn(
    settings: ResolvedConfig,
    splits: Splits,
    env: VecEnv,
    callback: TrainingCallback,
    checkpoint: dict[str, Any] | None,
) -> ImageAlgorithm:
    """Run every phase that is not over, and return the algorithm of the last one."""
    config, run = settings.options, callback.run
    first = checkpoint["callback"]["phase"] if checkpoint else 0
    if first >= len(settings.phases):
        raise InputError(f"{run.checkpoint_path} is of another schedule; train the run again")
    begun = checkpoint["algorithm"]["counters"]["num_timesteps"] if checkpoint else 0
    snapshots = SnapshotCallback(run, settings.snapshots, begun)
    callbacks: list[BaseCallback] = [snapshots, callback]
    if config.pictures_every is not None:
        # Upwards, by name: evaluation rests on training, and yet a run may show some of it.
        pictures = importlib.import_module("eval.mechanism.callback")
        callbacks.insert(0, pictures.PictureCallback(splits.val, config.pictures_every))
    model: ImageAlgorithm | None = None
    for phase in range(first, len(settings.phases)):
        following = build_algorithm(settings, env, splits.train, phase)
        following.progress_total = settings.total
        if model is not None:
            # The network, the counters and the environment as the last phase left them.
            following.policy.load_state_dict(model.policy.state_dict())
            if config.schedule_optimizer == "keep":
                following.policy.optimizer.load_state_dict(model.policy.optimizer.state_dict())
            following.num_timesteps = model.num_timesteps
            following._last_obs = following.present_observations()
            following._last_episode_starts = model._last_episode_starts
            following._current_progress_remaining = model._current_progress_remaining
            following.set_logger(model.logger)
        else:
            if checkpoint:
                with restoring(run):
                    following.load_training_state(checkpoint["algorithm"])
                    callback.load_state(checkpoint["callback"])
                    set_random_state(checkpoint["random"], following.device)
            following.set_logger(_logger(run, checkpoint, config))
        model, callback.phase = following, phase
        callback.init_callback(model)
        restart = phase == 0 and checkpoint is None
        remaining = settings.phases[phase].end - model.num_timesteps
        if remaining > 0:  # a run may have been stopped when a phase had ended and nothing else had begun
            try:
                with tf32(True):
                    model.learn(remaining, callbacks, log_interval=None, reset_num_timesteps=restart)  # type: ignore[arg-type]
            except (RuntimeError, ValueError):
                refuse_divergence(run, model)  # nothing can be drawn from a policy of NaN
                raise
            snapshots.keep()
            callback.on_interval(log=True, validate=model.num_timesteps >= settings.total)
    assert model is not None
    return model


def _logger(run: RunDir, checkpoint: dict[str, Any] | None, config: TrainConfig) -> Any:
    if checkpoint is not None:
        step = checkpoint["algorithm"]["counters"]["num_timesteps"]
        return make_logger(run.path, run.metrics_path, checkpoint["callback"]["metrics_bytes"], step + 1)
    logger = make_logger(run.path, run.metrics_path)
    flat = {k: value for k, value in config.to_dict().items() if isinstance(value, (bool, int, float, str))}
    logger.record("hparams", HParam(flat, {"val/accuracy": 0.0, "train/reward": 0.0}))
    return logger


def _close(
    config: TrainConfig, test: ImageDataset, run: RunDir, model: ImageAlgorithm, callback: TrainingCallback
) -> None:
    """Keep the selected weights in every format, evaluate them and print the table."""
    seconds = callback.seconds()
    model.policy.load_state_dict(callback.validator.selection.weights or {})
    model.policy.set_training_mode(False)
    buffer = io.BytesIO()
    model.save(buffer, exclude=["_last_obs", "_last_episode_starts"])
    write_atomic(run.policy_path, buffer.getvalue())
    selected = callback.validator.selection
    record: dict[str, Any] = {"dataset": config.dataset, "algo": config.schedule or config.algo}
    record |= {"network": config.network, "seed": config.seed, "images": model.num_timesteps}
    record |= {"seconds": seconds, "adversarial": config.adversarial.resolved(test.shape[0])}
    record |= {"val_accuracy": selected.accuracy, "val_robust_accuracy": selected.robust_accuracy}
    record |= {"selected_by": config.select, "selected_at": selected.step, "device": device_name(test.device)}
    summary = summarise(extract_classifier(model.policy), test, config.attack, config.progress, record)
    write_json(run.summary_path, summary)
    model.logger.record("summary/test_accuracy", summary["test_accuracy"])
    model.logger.dump(model.num_timesteps + 1)  # a step of its own, void if the run is resumed from before
    callback.checkpoint(done=True)
    print_summary(summary, run)


def _describe(settings: ResolvedConfig, dataset: ImageDataset) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    config = settings.options
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
        "compiled": settings.compile,
    }


def _algorithm_slug(config: TrainConfig) -> str:
    algorithms = "+".join(name.replace(":", ".") for name, _ in config.phases())
    method = config.adversarial.method
    return algorithms if method == "none" else f"{algorithms}-{method}"
