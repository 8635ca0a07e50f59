"""A faster forward pass for long searches that ask for scores alone.

On the CPU, PyTorch's inference optimiser fuses layers and lays weights out once, which measured 1.5 times as fast as
channels_last on small networks. It works on a trace, so the trace must prove itself against the model first, and what
a search finds is verified by the model itself in any case.
"""

import warnings

import torch
from torch import Tensor, nn

from attacks.core.errors import is_machine_error
from attacks.core.model import Model, forward

# Below so many pixels in all passes, what is saved does not pay for the preparation.
_WORTHWHILE = 2**22
_CLOSE = 1e-4


def traced_forward(model: Model, x: Tensor, passes: int) -> Model:
    """A function with the same logits for images like ``x`` (n, C, H, W), or ``model`` itself.

    It is the model itself on GPUs, for too few ``passes`` of images to be worth it, with hooks, and where tracing
    fails, warns, or disagrees on images and batch sizes other than those traced.
    """
    if passes * x[0].numel() < _WORTHWHILE or x.device.type != "cpu" or not is_plain(model):
        return model
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", torch.jit.TracerWarning)
            traced = torch.jit.trace(model, x[:2].clone(), check_trace=False)
            quick = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
            agrees = all(_agree(model, quick, probe) for probe in (x[-3:].flip(-1), 1 - x, x[:1].clone()))
    except Exception as error:  # whatever a model does that a trace cannot hold
        if is_machine_error(error):
            raise
        return model
    return quick if agrees else model


def is_plain(model: Model) -> bool:
    """Whether ``model`` is an ordinary module in eval mode, without hooks, that may be recorded."""
    if (
        not isinstance(model, nn.Module)
        or isinstance(model, torch.jit.ScriptModule)
        or hasattr(model, "_orig_mod")
    ):
        return False
    hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    return not hooked and not model.training


def _agree(model: Model, quick: Model, x: Tensor) -> bool:
    expected, found = forward(model, x), forward(quick, x)
    return bool(((found - expected).abs() <= _CLOSE * expected.abs().amax()).all())
