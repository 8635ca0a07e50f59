"""Work between rollouts, where the state is complete: logs, validation, checkpoints, progress, a clean stop."""

import contextlib
import math
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.common.run_dir import RunDir
from agents.models.classifier_files import save_classifier
from agents.models.extraction import extract_classifier
from agents.training.checkpoint import diverged, refuse_divergence, save_checkpoint
from agents.training.logs import JSONLines
from agents.training.progress import TrainingProgress
from agents.training.resolve import ResolvedConfig
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


class TrainingCallback(BaseCallback):
    """Acts at the start of every rollout; see the module's docstring.

    Args:
        run, settings: the run directory and what the run does.
        validator: validates the policy and keeps the best weights.
        stop: asked to stop by Ctrl-C.
        progress: the bar.
    """

    model: Any  # one of the project's algorithms

    def __init__(
        self,
        run: RunDir,
        settings: ResolvedConfig,
        validator: Validator,
        stop: StopRequest,
        progress: TrainingProgress,
    ) -> None:
        super().__init__()
        self.run, self.settings = run, settings
        self.validator, self.stop, self.progress = validator, stop, progress
        self.log_every = max(settings.eval_every // LOGS_PER_VALIDATION, 1)
        self.phase = 0
        self.due = {"next_validation": settings.eval_every, "next_log": self.log_every}  # in images
        self._began = time.perf_counter()
        self._seconds_before = 0.0
        self._clock = (self._began, -1)  # the last log line's time, and images seen then; -1: not begun

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
        step, due = self.model.num_timesteps, self.due
        self.progress.update(self.model, force=validate)
        if self._clock[1] < 0:
            self._clock = (time.perf_counter(), step)
        if log or step >= due["next_log"]:
            validate = validate or step >= due["next_validation"]
            self._log(step, validate)
            while due["next_log"] <= step:
                due["next_log"] += self.log_every
            if validate:
                while due["next_validation"] <= step:
                    due["next_validation"] += self.settings.eval_every
                self.checkpoint()
        if self.stop.requested:
            self.checkpoint()
            raise self.stopped()

    def stopped(self) -> KeyboardInterrupt:
        """Return the exception that says how to continue."""
        command = f"python -m agents.train --resume {shlex.quote(str(self.run.path))}"
        options = self.settings.options
        for option, name in (("--algo", options.algo), ("--network", options.network)):
            if ":" in name:  # code, which resuming imports only if the user names it again
                command += f" {option} {name}"
        images = f"{self.model.num_timesteps:,} of {self.settings.total:,} images"
        return KeyboardInterrupt(f"stopped after {images}; continue with: {command}")

    def checkpoint(self, done: bool = False) -> None:
        """Write everything that an exact continuation needs, and the best classifier so far.

        Raises:
            InputError: training has diverged; the files stay as they were.
        """
        refuse_divergence(self.run, self.model)
        if (selected := self.validator.selection.weights) is not None:
            policy = self.model.policy
            present = copied(policy.state_dict())
            policy.load_state_dict(selected)
            try:
                save_classifier(extract_classifier(policy), self.run.model_path)
            finally:
                policy.load_state_dict(present)
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
            "selection": vars(self.validator.selection),
            "milestones": self.due | {"history": self.validator.history},
            "metrics_bytes": metrics.size(),
            "seconds": self.seconds(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.phase, self._seconds_before = state["phase"], state["seconds"]
        selection = state["selection"]
        self.validator.selection = Selection(**selection | {"score": tuple(selection["score"])})
        self.validator.history = state["milestones"]["history"]
        self.due = {name: state["milestones"][name] for name in self.due}

    def _log(self, step: int, validate: bool) -> None:
        refuse_divergence(self.run, self.model)
        record = self.model.log_record()
        record["train/learning_rate"] = float(self.model.policy.optimizer.param_groups[0]["lr"])
        # Since the last line; reading the statistics before has waited for the device.
        (since, images), self._clock = self._clock, (time.perf_counter(), step)
        record["time/images_per_second"] = (step - images) / max(self._clock[0] - since, 1e-9)
        record["time/fps"] = step / max(self.seconds(), 1e-9)
        if self.settings.options.schedule is not None:
            record["time/phase"] = float(self.phase)
        if validate:
            record |= self.validator(self.model.policy, step)
            if not math.isfinite(record["val/loss"]):
                raise diverged(self.run, f"the validation loss after {step:,} images")
            self.progress.validated(record["val/accuracy"])
        for name, value in record.items():
            self.model.logger.record(name, value)
        self.model.logger.dump(step)
