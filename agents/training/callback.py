"""Work between rollouts, where the state is complete: logs, validation, checkpoints, progress, a clean stop."""

import contextlib
import math
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.models.classifier_files import save_classifier
from agents.models.extraction import extract_classifier
from agents.training.checkpoint import diverged, refuse_divergence, save_checkpoint
from agents.training.logs import JSONLines
from agents.training.progress import TrainingProgress
from agents.training.validation import Selection, Validator, copied

LOGS_PER_VALIDATION = 4


class StopRequest:
    """Whether somebody asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, which the run honours when its state is whole.

    The second one has its default effect: the process ends at once. Outside the main thread signals stay as they are.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class Milestones:
    """When the next validation and the next log line are due, in images."""

    next_validation: int
    next_log: int


class TrainingCallback(BaseCallback):
    """Acts at the start of every rollout; see the module's docstring.

    Args:
        run, config: the run directory and the options of the run.
        total, validate_every: images of the whole run, and between validations.
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
        self.run, self.config, self.total = run, config, total
        self.validator, self.stop, self.progress = validator, stop, progress
        self.validate_every, self.log_every = validate_every, max(validate_every // LOGS_PER_VALIDATION, 1)
        self.phase = 0
        self.milestones = Milestones(validate_every, self.log_every)
        self._began = time.perf_counter()
        self._seconds_before = 0.0
        self._clock = (self._began, -1)  # the last log line's time, and images seen then; -1: not begun

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
        if self._clock[1] < 0:
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
        self.phase, self._seconds_before = state["phase"], state["seconds"]
        selection, due = dict(state["selection"]), dict(state["milestones"])
        self.validator.selection = Selection(**selection | {"score": tuple(selection["score"])})
        self.validator.history = due.pop("history")
        self.milestones = Milestones(**due)

    def _log(self, step: int, validate: bool) -> None:
        refuse_divergence(self.run, self.model)
        record = self.model.log_record()
        record["train/learning_rate"] = float(self.model.policy.optimizer.param_groups[0]["lr"])
        # Since the last line; reading the statistics before has waited for the device.
        (since, images), self._clock = self._clock, (time.perf_counter(), step)
        record["time/images_per_second"] = (step - images) / max(self._clock[0] - since, 1e-9)
        record["time/fps"] = step / max(self.seconds(), 1e-9)
        if self.config.schedule is not None:
            record["time/phase"] = float(self.phase)
        if validate:
            record |= self.validator(self.model.policy, step)
            if not math.isfinite(record["val/loss"]):
                raise diverged(self.run, f"the validation loss after {step:,} images")
            self.progress.validated(record["val/accuracy"])
        for name, value in record.items():
            self.model.logger.record(name, value)
        self.model.logger.dump(step)

    def _write_selected(self, weights: dict[str, Any]) -> None:
        """Write ``model.safetensors`` with the selected weights rather than the present ones."""
        policy = self.model.policy
        present = copied(policy.state_dict())
        policy.load_state_dict(weights)
        try:
            save_classifier(extract_classifier(policy), self.run.model_path)
        finally:
            policy.load_state_dict(present)
