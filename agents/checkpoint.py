"""Checkpoints: everything that an exact continuation needs, in one file that is read without executing anything."""

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agents.rundir import RunDir
from envs.errors import InputError
from envs.files import write_atomic

if TYPE_CHECKING:
    from agents.callback import TrainingCallback

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


def save_checkpoint(run: RunDir, callback: "TrainingCallback", done: bool) -> None:
    """Write ``checkpoint.pt`` atomically."""
    model = callback.model
    state = {
        "format": FORMAT,
        "done": done,
        "algorithm": model.training_state(),  # type: ignore[attr-defined]
        "callback": callback.state(),
        "random": random_state(model.device),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(run.checkpoint_path, buffer.getbuffer())


def load_checkpoint(run: RunDir) -> dict[str, Any] | None:
    """Return the checkpoint on the CPU, or None where the run stopped before its first one.

    Raises:
        InputError: the file is damaged, or of another format.
    """
    try:
        state = torch.load(run.checkpoint_path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{run.checkpoint_path} cannot be read ({reason}); train the run anew") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{run.checkpoint_path} is not of format {FORMAT}; train the run anew")
    return state
