"""Checkpoints: everything that an exact continuation needs, in one file that is read without executing anything."""

import contextlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from agents.common.run_dir import RunDir
from attacks.core.errors import is_machine_error
from envs.errors import InputError, cause
from envs.files import write_atomic

FORMAT = 1


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators of PyTorch (host and device) and NumPy, as tensors and numbers."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - SB3 draws from it
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def save_checkpoint(run: RunDir, model: Any, callback: dict[str, Any], done: bool) -> None:
    """Write ``checkpoint.pt`` atomically: the state of the algorithm ``model``, and of the callback."""
    state = {"format": FORMAT, "done": done, "algorithm": model.training_state(), "callback": callback}
    state["random"] = random_state(model.device)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(run.checkpoint_path, buffer.getbuffer())


def refuse_divergence(run: RunDir, model: Any) -> None:
    """Raise InputError if a loss, a gradient or a weight has become NaN or infinite."""
    model.watch_weights()
    bad = model.statistics.first_bad_step()
    if bad is not None:
        raise diverged(run, f"loss, gradients or weights at image {bad:,}")


def diverged(run: RunDir, where: str) -> InputError:
    """Return the error that says what was not finite, and what is kept."""
    saved = run.checkpoint_path.exists()
    kept = "the checkpoint before it is kept in" if saved else "nothing was saved yet in"
    return InputError(
        f"training diverged: NaN or infinity in {where}; {kept} {run.path}. "
        "Lower --learning-rate, or use --precision fp32"
    )


def load_checkpoint(run: RunDir) -> dict[str, Any] | None:
    """Return the checkpoint on the CPU, or None where the run stopped before its first one.

    Raises:
        InputError: the file is damaged, or of another format.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(run.checkpoint_path) as archive:
            broken = archive.testzip()  # compares check sums, which PyTorch writes and does not read
        if broken is not None:
            raise ValueError(f"the check sum of {broken} is wrong")
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(run.checkpoint_path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except pickle.UnpicklingError:  # PyTorch's own message advises to execute what is in the file
        problem = f"{run.checkpoint_path} is damaged or holds more than tensors and numbers"
        raise InputError(f"{problem}; train the run again") from None
    except Exception as error:  # damaged files raise a dozen kinds
        raise InputError(f"{run.checkpoint_path} is damaged ({cause(error)}); train the run again") from None
    found = state.get("format") if isinstance(state, dict) else None
    if type(found) is not int or found != FORMAT:
        raise InputError(f"{run.checkpoint_path} is not of format {FORMAT}; train the run again")
    with restoring(run):  # entries that are read before the algorithm exists
        algorithm, callback = state["algorithm"], state["callback"]
        counts = (callback["phase"], callback["metrics_bytes"], algorithm["counters"]["num_timesteps"])
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"counts {counts}")
        if type(state["done"]) is not bool or not isinstance(state["random"], dict):
            raise ValueError("done or random of the wrong type")
    return state


@contextlib.contextmanager
def restoring(run: RunDir) -> Iterator[None]:
    """Turn any error raised while a checkpoint is restored into one clear error.

    Raises:
        InputError: something did; what the file holds is not what this run writes.
    """
    try:
        yield
    except Exception as error:  # anything may be missing, of another type or of another shape
        if is_machine_error(error):
            raise
        problem = f"does not fit {run.config_path.name} ({cause(error)})"
        raise InputError(f"{run.checkpoint_path} {problem}; train the run again") from None
