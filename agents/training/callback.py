"""What happens between rollouts: validation, selection, logging, checkpoints, progress, and a clean stop."""

import math
import shlex
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from rich.progress import Progress, TaskID
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor

from agents.common.precision import tf32
from agents.common.run_dir import RunDir
from agents.models.classifier import extract_classifier, save_classifier
from agents.training.checkpoint import save_checkpoint
from agents.training.logs import JSONLines
from agents.training.robustness_probe import Probe, overfits_catastrophically
from agents.training.signals import StopRequest
from agents.training.validation import Evaluation, evaluate
from envs import ImageDataset
from envs.errors import InputError

LOGS_PER_VALIDATION = 4
_PROGRESS_SECONDS = 0.2


@dataclass
class Selection:
    """The best weights so far.

    Attributes:
        weights: the policy's state dict, copied; None before the first validation.
        score: of these weights: (accuracy, -loss), or (robust accuracy, accuracy) where robustness selects.
        step: images trained on when they were taken.
        accuracy: their validation accuracy.
        robust_accuracy: their accuracy under the probe's PGD, where there is a probe.
    """

    weights: dict[str, Tensor] | None = None
    score: tuple[float, float] = (-1.0, 0.0)
    step: int = 0
    accuracy: float = 0.0
    robust_accuracy: float | None = None

    def offer(
        self,
        evaluation: Evaluation,
        step: int,
        weights: dict[str, Tensor],
        robust_accuracy: float | None = None,
        by: Literal["clean", "robust"] = "clean",
    ) -> bool:
        """Take copies of ``weights`` if they are better; return whether they were."""
        score = (evaluation.accuracy, -evaluation.loss)
        if by == "robust" and robust_accuracy is not None:
            score = (robust_accuracy, evaluation.accuracy)
        if score <= self.score:
            return False
        self.weights = {name: value.detach().clone() for name, value in weights.items()}
        self.score, self.step = score, step
        self.accuracy, self.robust_accuracy = evaluation.accuracy, robust_accuracy
        return True


@dataclass
class Milestones:
    """When the next validation and the next log line are due, in images; and what was seen last."""

    next_validation: int
    next_log: int
    history: list[dict[str, float]] = field(default_factory=list)


class TrainingCallback(BaseCallback):
    """Acts at the start of every rollout, where the state is whole; see the module's docstring.

    Args:
        run: the run directory.
        validation: the data by which weights are selected.
        total: images of the whole run.
        validate_every: images between validations.
        stop: asked to stop by Ctrl-C.
        progress: a bar and its task, or None.
        probe: attacks a slice of the validation data at every validation; None: nothing does.
        select: by which validation accuracy weights are kept, clean or the probe's.
        attacks_begin: images after which training is adversarial; selection starts anew there.
    """

    model: Any  # one of the project's algorithms

    def __init__(
        self,
        run: RunDir,
        validation: ImageDataset,
        total: int,
        validate_every: int,
        stop: StopRequest,
        progress: tuple[Progress, TaskID] | None = None,
        probe: Probe | None = None,
        select: Literal["clean", "robust"] = "clean",
        attacks_begin: int | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        self.validation = validation
        self.total = total
        self.validate_every = validate_every
        self.log_every = max(validate_every // LOGS_PER_VALIDATION, 1)
        self.stop = stop
        self.progress = progress
        self.probe = probe
        self.select = select
        self.attacks_begin = attacks_begin
        self.phase = 0
        self.selection = Selection()
        self.milestones = Milestones(validate_every, self.log_every)
        self._began = time.perf_counter()
        self._seconds_before = 0.0
        self._shown = 0.0
        self._clock: tuple[float, int] | None = None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.boundary()

    def boundary(self, log: bool = False, validate: bool = False) -> None:
        """Do what is due at this number of images; ``log``, and ``validate`` with it, whether that is due or not.

        Raises:
            InputError: training has diverged.
            KeyboardInterrupt: somebody asked to stop; everything is saved.
        """
        step = self.model.num_timesteps
        self._show_progress(step, force=validate)
        if self._clock is None:
            self._clock = (time.perf_counter(), step)
        if log or step >= self.milestones.next_log:
            validate = validate or step >= self.milestones.next_validation
            self._log(step, validate)
            while self.milestones.next_log <= step:
                self.milestones.next_log += self.log_every
            if validate:
                while self.milestones.next_validation <= step:
                    self.milestones.next_validation += self.validate_every
                self.checkpoint()
        if self.stop.requested:
            self.checkpoint()
            raise self.stopped()

    def stopped(self) -> KeyboardInterrupt:
        """Return the exception that tells how to continue."""
        command = f"python -m agents.train --resume {shlex.quote(str(self.run.path))}"
        network = extract_classifier(self.model.policy).network
        if ":" in network:  # code, which resuming imports only if the user names it again
            command += f" --network {network}"
        images = f"{self.model.num_timesteps:,} of {self.total:,} images"
        return KeyboardInterrupt(f"stopped after {images}; continue with: {command}")

    def checkpoint(self, done: bool = False) -> None:
        """Write everything that an exact continuation needs, and the best classifier so far.

        Raises:
            InputError: training has diverged; the files stay as they were.
        """
        self.refuse_divergence()
        if self.selection.weights is not None:
            self._write_selected()
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
            "milestones": vars(self.milestones),
            "metrics_bytes": metrics.size(),
            "seconds": self.seconds(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.phase = state["phase"]
        self._seconds_before = state["seconds"]
        self.selection = Selection(**state["selection"])
        self.selection.score = tuple(self.selection.score)  # type: ignore[assignment]
        self.milestones = Milestones(**state["milestones"])

    def refuse_divergence(self) -> None:
        """Raise InputError if a loss, a gradient or a weight has become NaN or infinite."""
        self.model.watch_weights()
        bad = self.model.statistics.first_bad_step()
        if bad is not None:
            raise self._diverged(f"loss, gradients or weights at image {bad:,}")

    def _diverged(self, where: str) -> InputError:
        saved = self.run.checkpoint_path.exists()
        kept = "the checkpoint before it is kept in" if saved else "nothing was saved yet in"
        return InputError(
            f"training diverged: NaN or infinity in {where}; {kept} {self.run.path}. "
            "Lower --learning-rate, or use --precision fp32"
        )

    def _log(self, step: int, validate: bool) -> None:
        self.refuse_divergence()
        logger: Logger = self.model.logger
        record = {f"train/{name}": value for name, value in self.model.statistics.flush().items()}
        record["train/learning_rate"] = float(self.model.policy.optimizer.param_groups[0]["lr"])
        record["time/images_per_second"] = self._rate(step)
        record["time/phase"] = float(self.phase)
        if validate:
            record |= self._validate(step)
        for name, value in record.items():
            logger.record(name, value)
        logger.dump(step)

    @tf32(False)
    def _validate(self, step: int) -> dict[str, float]:
        """Validate, offer the weights to the selection, and return what to log."""
        policy = self.model.policy
        classifier = extract_classifier(policy)
        evaluation = evaluate(classifier, self.validation)
        if not math.isfinite(evaluation.loss):
            raise self._diverged(f"the validation loss after {step:,} images")
        robustness = self.probe(classifier) if self.probe else None
        if self.attacks_begin is not None and self.selection.step <= self.attacks_begin < step:
            self.selection = Selection()  # weights from before the attacks are another regime's
        robust_accuracy = robustness.accuracy if robustness else None
        self.selection.offer(evaluation, step, policy.state_dict(), robust_accuracy, self.select)
        point = {"images": float(step), "accuracy": evaluation.accuracy}
        if robustness:
            point |= {"robust_accuracy": robustness.accuracy, "fgsm_accuracy": robustness.fgsm_accuracy}
        self.milestones.history.append(point)
        if self.progress:
            bar, task = self.progress
            bar.update(task, accuracy=evaluation.accuracy)
        record = {
            "val/accuracy": evaluation.accuracy,
            "val/loss": evaluation.loss,
            "val/margin": evaluation.margin,
            "val/best_accuracy": self.selection.accuracy,
        }
        if robustness:
            record |= {f"probe/{name}": value for name, value in vars(robustness).items()}
            record["probe/catastrophic_overfitting"] = float(self._overfits())
        return record

    def _overfits(self) -> bool:
        """Return whether the history shows catastrophic overfitting, and say so when it does for the first time."""
        begin = self.attacks_begin
        since = [point for point in self.milestones.history if begin is not None and point["images"] > begin]
        pairs = [
            (point["fgsm_accuracy"], point["robust_accuracy"]) for point in since if "fgsm_accuracy" in point
        ]
        overfits = overfits_catastrophically(pairs)
        if overfits and not any(overfits_catastrophically(pairs[:end]) for end in range(len(pairs))):
            fgsm, robust = pairs[-1]
            self._say(
                f"warning: catastrophic overfitting at {self.model.num_timesteps:,} images: accuracy {fgsm:.1%} under "
                f"FGSM but {robust:.1%} under PGD; use --adversarial pgd or a smaller --adv-eps, or keep the weights "
                "from before by --select robust"
            )
        return overfits

    def _say(self, message: str) -> None:
        """Print a line on standard error, above the progress bar where there is one."""
        if self.progress:
            self.progress[0].print(message, soft_wrap=True)
        else:
            print(message, file=sys.stderr)

    def _rate(self, step: int) -> float:
        """Return images per second since the last call; reading the statistics before has waited for the device."""
        now = time.perf_counter()
        since, images = self._clock or (now, step)
        self._clock = (now, step)
        return (step - images) / max(now - since, 1e-9)

    def _write_selected(self) -> None:
        """Write ``model.safetensors`` with the selected weights, whatever the policy holds now."""
        assert self.selection.weights is not None
        policy = self.model.policy
        present = {name: value.detach().clone() for name, value in policy.state_dict().items()}
        policy.load_state_dict(self.selection.weights)
        try:
            save_classifier(extract_classifier(policy), self.run.model_path)
        finally:
            policy.load_state_dict(present)

    def _show_progress(self, step: int, force: bool = False) -> None:
        now = time.monotonic()
        if self.progress is None or (now - self._shown < _PROGRESS_SECONDS and not force):
            return
        self._shown = now
        bar, task = self.progress
        if torch.device(self.model.device).type == "cuda":
            torch.cuda.synchronize(self.model.device)  # five times a second: an honest rate for little
        bar.update(task, completed=min(step, self.total))
