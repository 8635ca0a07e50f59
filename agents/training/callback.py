"""Work between rollouts, where the state is complete: logs, validation, checkpoints, progress, a clean stop."""

import math
import shlex
import time
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.models.classifier_files import save_classifier
from agents.models.extraction import extract_classifier
from agents.training.checkpoint import diverged, refuse_divergence, save_checkpoint
from agents.training.logs import JSONLines
from agents.training.progress import TrainingProgress
from agents.training.selection import Selection, Validator, copied
from agents.training.signals import StopRequest

LOGS_PER_VALIDATION = 4


@dataclass
class Milestones:
    """When the next validation and the next log line are due, in images."""

    next_validation: int
    next_log: int


class TrainingCallback(BaseCallback):
    """Acts at the start of every rollout; see the module's docstring.

    Args:
        run: the run directory.
        config: the options of the run.
        total: images of the whole run.
        validate_every: images between validations.
        validator: validates the policy and keeps the best weights.
        stop: asked to stop by Ctrl-C.
        progress: the bar.
    """

    model: Any  # one of the project's algorithms

    def __init__(
        self,
        run: RunDir,
        config: TrainConfig,
        total: int,
        validate_every: int,
        validator: Validator,
        stop: StopRequest,
        progress: TrainingProgress,
    ) -> None:
        super().__init__()
        self.run = run
        self.config = config
        self.total = total
        self.validate_every = validate_every
        self.log_every = max(validate_every // LOGS_PER_VALIDATION, 1)
        self.validator = validator
        self.stop = stop
        self.progress = progress
        self.phase = 0
        self.milestones = Milestones(validate_every, self.log_every)
        self._began = time.perf_counter()
        self._seconds_before = 0.0
        self._clock: tuple[float, int] | None = None

    @property
    def selection(self) -> Selection:
        """The best weights so far."""
        return self.validator.selection

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.on_interval()

    def on_interval(self, log: bool = False, validate: bool = False) -> None:
        """Do what is due at this number of images; ``log``, and ``validate`` with it, whether that is due or not.

        Raises:
            InputError: training has diverged.
            KeyboardInterrupt: somebody asked to stop; everything is saved.
        """
        step, due = self.model.num_timesteps, self.milestones
        self.progress.update(self.model, force=validate)
        if self._clock is None:
            self._clock = (time.perf_counter(), step)
        if log or step >= due.next_log:
            validate = validate or step >= due.next_validation
            self._log(step, validate)
            while due.next_log <= step:
                due.next_log += self.log_every
            if validate:
                while due.next_validation <= step:
                    due.next_validation += self.validate_every
                self.checkpoint()
        if self.stop.requested:
            self.checkpoint()
            raise self.stopped()

    def stopped(self) -> KeyboardInterrupt:
        """Return the exception that says how to continue."""
        command = f"python -m agents.train --resume {shlex.quote(str(self.run.path))}"
        for option, name in (("--algo", self.config.algo), ("--network", self.config.network)):
            if ":" in name:  # code, which resuming imports only if the user names it again
                command += f" {option} {name}"
        images = f"{self.model.num_timesteps:,} of {self.total:,} images"
        return KeyboardInterrupt(f"stopped after {images}; continue with: {command}")

    def checkpoint(self, done: bool = False) -> None:
        """Write everything that an exact continuation needs, and the best classifier so far.

        Raises:
            InputError: training has diverged; the files stay as they were.
        """
        refuse_divergence(self.run, self.model)
        if self.selection.weights is not None:
            self._write_selected(self.selection.weights)
        save_checkpoint(self.run, self.model, self.state(), done)

    def close(self) -> None:
        """Close the logs."""
        if hasattr(self, "model"):
            self.model.logger.close()

    def seconds(self) -> float:
        """Return the seconds spent training, those before a resumption included."""
        return self._seconds_before + time.perf_counter() - self._began

    def state(self) -> dict[str, Any]:
        """Return the callback's own part of a checkpoint."""
        metrics = next(output for output in self.model.logger.output_formats if isinstance(output, JSONLines))
        return {
            "phase": self.phase,
            "selection": vars(self.selection),
            "milestones": vars(self.milestones) | {"history": self.validator.history},
            "metrics_bytes": metrics.size(),
            "seconds": self.seconds(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.phase = state["phase"]
        self._seconds_before = state["seconds"]
        selection = state["selection"] | {"score": tuple(state["selection"]["score"])}
        self.validator.selection = Selection(**selection)
        self.validator.history = state["milestones"]["history"]
        self.milestones = Milestones(
            **{name: value for name, value in state["milestones"].items() if name != "history"}
        )

    def _log(self, step: int, validate: bool) -> None:
        refuse_divergence(self.run, self.model)
        logger = self.model.logger
        record = self.model.log_record()
        record["train/learning_rate"] = float(self.model.policy.optimizer.param_groups[0]["lr"])
        record["time/images_per_second"] = self._rate(step)
        record["time/fps"] = step / max(self.seconds(), 1e-9)
        if self.config.schedule is not None:
            record["time/phase"] = float(self.phase)
        if validate:
            record |= self.validator(self.model.policy, step)
            if not math.isfinite(record["val/loss"]):
                raise diverged(self.run, f"the validation loss after {step:,} images")
            self.progress.validated(record["val/accuracy"])
        for name, value in record.items():
            logger.record(name, value)
        logger.dump(step)

    def _rate(self, step: int) -> float:
        """Return images per second since the last call; reading the statistics before has waited for the device."""
        now = time.perf_counter()
        since, images = self._clock or (now, step)
        self._clock = (now, step)
        return (step - images) / max(now - since, 1e-9)

    def _write_selected(self, weights: dict[str, Any]) -> None:
        """Write ``model.safetensors`` with the selected weights rather than the present ones."""
        policy = self.model.policy
        present = copied(policy.state_dict())
        policy.load_state_dict(weights)
        try:
            save_classifier(extract_classifier(policy), self.run.model_path)
        finally:
            policy.load_state_dict(present)
