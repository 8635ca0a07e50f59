"""The export formats: how each is written, loaded without the original model, and compared with it."""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from agents.models.classifier import Classifier
from agents.models.classifier_files import load_classifier, save_classifier
from attacks.core.errors import is_machine_error
from envs.errors import InputError
from eval.export.layers import LayerNetwork, describe_layers

Run = Callable[[Tensor], Tensor]
_MOST_IMAGES = 2**20
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Float32 sums in another order differ in the last bits; a wrong layer, image range or order of channels does not hide
# under a ten-thousandth of the largest logit.
TOLERANCE = 1e-4
BATCHES = (1, 7)


@dataclass(frozen=True)
class Format:
    """One way to store a model, by its name on the command line and the file that it writes.

    ``write`` stores the model, given example images (2, C, H, W), at a path; ``load`` returns a function from images
    (N, C, H, W) to logits (N, K), for any N. It needs ``packages`` beyond those of the project.
    """

    name: str
    file: str
    write: Callable[[nn.Module, Tensor, Path], None]
    load: Callable[[Path], Run]
    packages: tuple[str, ...] = field(default=())

    def check_packages(self) -> None:
        """Raise an InputError where a package is missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            needed = ", ".join(missing)
            raise InputError(f'--format {self.name} needs {needed}; install with: pip install -e ".[onnx]"')


def _write_safetensors(model: nn.Module, example: Tensor, path: Path) -> None:
    if not isinstance(model, Classifier):
        raise InputError(
            f"--format safetensors describes classifiers of this project, not a {type(model).__name__}; "
            "use torch-export or onnx"
        )
    save_classifier(model, path)


def _load_safetensors(path: Path) -> Run:
    """Rebuild from weights and layers, as JSON has them, where the network is a chain, else by its name."""
    classifier = load_classifier(path)
    layers = json.loads(json.dumps(describe_layers(classifier)))
    return classifier if layers is None else LayerNetwork(layers, safetensors.torch.load_file(path))


def _program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    try:
        with _quietly():
            return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # tracing runs the model's own code, and fails in many ways
        raise InputError(
            f"torch.export cannot trace the model ({_reason(error)}); its forward must not branch on pixel values "
            "or on the number of images"
        ) from error


def _write_program(model: nn.Module, example: Tensor, path: Path) -> None:
    torch.export.save(_program(model, example), path)


def _load_program(path: Path) -> Run:
    module: Any = torch.export.load(path).module()
    return module


def _write_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    program = _program(model, example)
    try:
        with _quietly():
            names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
            converted = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False, **names)
            assert converted is not None  # with dynamo=True it is a program
            converted.save(path, external_data=False)
    except Exception as error:  # an operation without an ONNX counterpart, and much else
        reason = f"the model cannot be converted to ONNX ({_reason(error)})"
        raise InputError(f"{reason}; use torch-export") from error


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run([logits.name], {images.name: x.numpy()})[0])

    return run


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:160]}" if lines else type(error).__name__


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporters' progress and deprecations off the screen."""
    level, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


_ALL = (
    Format("safetensors", "model.safetensors", _write_safetensors, _load_safetensors),
    Format("torch-export", "model.pt2", _write_program, _load_program),
    Format("onnx", "model.onnx", _write_onnx, _load_onnx, _ONNX_PACKAGES),
)
FORMATS = {found.name: found for found in _ALL}
FILES = (*(found.file for found in FORMATS.values()), "model.json")


@dataclass(frozen=True)
class Agreement:
    """How far an export is from its model, on so many ``images``, run with several ``batch_sizes``.

    ``difference``: largest of a logit, absolute; ``tolerance``: largest that passes: `TOLERANCE` times the largest
    absolute logit, at least 1; ``changed``: images whose decision differs.
    """

    images: int
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float
    changed: int


@torch.inference_mode()
def compare(
    model: Callable[[Tensor], Tensor], export: Callable[[Tensor], Tensor], images: Tensor, origin: str
) -> Agreement:
    """Compare on all ``images``, floats in [0, 1], (n, C, H, W): one by one at first, then in larger batches.

    Raises InputError where the export, which came from ``origin``, gives other shapes or logits, or fails.
    """
    tolerance, difference, changed = TOLERANCE, 0.0, 0
    sizes = tuple(dict.fromkeys(min(size, len(images)) for size in (*BATCHES, len(images))))
    for size in sizes:
        expected = model(images[:size])  # the batch size moves the last bits of the model itself
        unanswered = expected.isnan()  # an export answers NaN where its model does
        tolerance = max(tolerance, TOLERANCE * float(expected.masked_fill(unanswered, 0).abs().max()))
        try:
            found = export(images[:size])
        except Exception as error:  # whatever a foreign runtime raises
            if is_machine_error(error):
                raise
            reason = f"does not run on {size} images ({error})"
            raise InputError(f"{origin} {reason}; nothing was written") from error
        if found.shape != expected.shape:
            raise InputError(
                f"{origin} gives logits {tuple(found.shape)} for {size} images, the model "
                f"{tuple(expected.shape)}; nothing was written"
            )
        gap = (found - expected).masked_fill(unanswered & found.isnan(), 0).abs().max()
        difference = max(difference, float(gap)) if gap.isfinite() else float("inf")
        changed = int((found.argmax(1) != expected.argmax(1)).sum())
    if not difference <= tolerance:
        gaps = f"differ by {difference:.2g} from the model's, more than {tolerance:.2g}"
        raise InputError(f"the logits of {origin} {gaps}; nothing was written")
    return Agreement(len(images), sizes, difference, tolerance, changed)
