"""The export formats: how each is written, and how it is loaded without the original model."""

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
from envs.errors import InputError
from eval.export.layers import LayerNetwork, describe_layers

Run = Callable[[Tensor], Tensor]
_MOST_IMAGES = 2**20
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Format:
    """One way to store a model.

    Attributes:
        name: on the command line.
        file: that it writes.
        write: stores the model, given example images (2, C, H, W), at a path.
        load: returns a function from images (N, C, H, W) to logits (N, K), for any N.
        packages: that it needs beyond those of the project.
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
            raise InputError(
                f'--format {self.name} needs {", ".join(missing)}; install with: pip install -e ".[onnx]"'
            )


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
        raise InputError(
            f"the model cannot be converted to ONNX ({_reason(error)}); use torch-export"
        ) from error


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
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


FORMATS = {
    found.name: found
    for found in (
        Format("safetensors", "model.safetensors", _write_safetensors, _load_safetensors),
        Format("torch-export", "model.pt2", _write_program, _load_program),
        Format("onnx", "model.onnx", _write_onnx, _load_onnx, _ONNX_PACKAGES),
    )
}
FILES = (*(found.file for found in FORMATS.values()), "model.json")
