"""The model under attack: from a run directory, a Stable-Baselines3 zip, or an import path; and its images."""

import hashlib
import importlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.common.plain_numbers import takes_numbers
from agents.common.run_dir import RunDir
from agents.models.classifier_files import load_classifier
from agents.models.extraction import load_trusted_zip
from attacks.core.errors import is_machine_error
from attacks.core.model_state import in_eval_mode
from envs.datasets import load_dataset
from envs.errors import InputError, cause
from envs.sampling import choose_indices

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Target:
    """A classifier under evaluation: images in [0, 1], (N, C, H, W), to logits (N, K); in eval mode, on its device.

    ``name``: for tables; ``sha256``: hex digest of the weights (and, for an import path, of the path); ``results_dir``:
    where its result files belong; ``dataset``: the run's ``config["dataset"]``, None where the data set must be named.
    """

    name: str
    model: nn.Module
    sha256: str
    results_dir: Path
    dataset: dict[str, Any] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model works; the CPU for a model without parameters and buffers."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            return tensor.device
        return torch.device("cpu")


@dataclass(frozen=True)
class Samples:
    """Images under attack: those of a split, train, val or test, of the data set ``name``.

    Attributes:
        images: of the whole split, uint8 in 0..255 or floats in [0, 1], (N, C, H, W).
        labels: of the whole split, (N,) int64.
        indices: (n,) int64 on the CPU, the images to attack, increasing.
        fingerprint: hex digest of images and labels.
        classes: their names, or () where unknown.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    name: str
    split: str
    fingerprint: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def channels(self) -> int:
        """Colour channels of an image."""
        return self.images.shape[1]

    def record(self) -> dict[str, Any]:
        """Return what a result file says of the data set."""
        return {"dataset": self.name, "split": self.split, "fingerprint": self.fingerprint}

    def batch(self, rows: slice | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images float32 in [0, 1] (n, C, H, W) and labels (n,) of some of the samples."""
        chosen = self.indices[rows].to(self.images.device)
        images = self.images[chosen].to(device)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return images, self.labels[chosen].to(device)


def load_target(
    spec: str, device: torch.device | str = "cpu", network: str | None = None, trust: bool = False
) -> Target:
    """Load the classifier that ``spec`` names.

    Args:
        spec: a run directory, a Stable-Baselines3 ``.zip`` or ``.safetensors`` of this project, or
            ``package.module:name`` of an ``nn.Module`` or of a function without arguments that returns one;
            this runs its code, so name only what you trust.
        network: for weights of your own network: ``package.module:Callable`` that builds it.
        trust: load an SB3 zip that cannot be read otherwise as SB3 does, which executes the code in it; a warning
            on standard error says so.

    Raises:
        InputError: nothing is there, or it is damaged, or it is not a classifier.
    """
    path = Path(spec)
    if os.path.isdir(path):  # unlike Path's, these tests raise for no text whatever
        run = RunDir.open(path)
        model: nn.Module = load_classifier(path, device, network)
        name, dataset = path.resolve().name, run.config.get("dataset")
        return Target(name, model, model_sha256(model), run.results_dir, dataset)
    if path.suffix in (".zip", ".safetensors") and os.path.isfile(path):
        model = _load_file(path, device, network, trust)
        run = RunDir(path.parent)
        dataset = run.config.get("dataset") if run.config_path.is_file() else None
        return Target(path.name, model, model_sha256(model), run.results_dir, dataset)
    if not _IMPORT_PATH.fullmatch(spec):
        expected = "expected a run directory, an SB3 .zip, or package.module:factory"
        raise InputError(f"no classifier at {spec!r}; {expected}")
    if network is not None:
        raise InputError(f"--network is {network!r}, but {spec} builds its own network; leave --network out")
    imported = _import_model(spec).to(device).eval()
    folder = Path("results") / re.sub(r"[^\w.]+", "-", spec)
    return Target(spec, imported, model_sha256(imported, spec), folder)


def _load_file(path: Path, device: torch.device | str, network: str | None, trust: bool) -> nn.Module:
    try:
        return load_classifier(path, device, network)
    except InputError as refused:
        if not trust or path.suffix != ".zip":
            raise
        print(f"warning: {refused}; --trust: executing the code in {path}", file=sys.stderr)
    return load_trusted_zip(path, device)


def _import_model(spec: str) -> nn.Module:
    module, _, attribute = spec.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        if not isinstance(found, nn.Module):
            found = found()
    except Exception as error:  # foreign code may raise anything
        if is_machine_error(error):
            raise
        failed = f"cannot build a model from {spec} ({type(error).__name__}: {error})"
        raise InputError(f"{failed}; expected package.module:factory") from error
    if not isinstance(found, nn.Module):
        raise InputError(f"{spec} gave a {type(found).__name__}; expected an nn.Module from images to logits")
    return found


def model_sha256(model: nn.Module, salt: str = "") -> str:
    """Return a hex digest of ``salt`` and the name, type, shape and bytes of all parameters and buffers."""
    digest = hashlib.sha256(salt.encode())
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(_bytes(value))
        else:  # nn.Module.get_extra_state may hold anything
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logits (N, K) of images (N, C, H, W), ``batch_size`` at once, in eval mode."""
    with in_eval_mode(model):
        return torch.cat([model(part) for part in images.split(batch_size)])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@takes_numbers
def load_samples(
    target: Target,
    *,
    n: int | None = None,
    split: str = "test",
    dataset: str | None = None,
    data_root: str | Path | None = None,
    image_size: int | None = None,
) -> Samples:
    """Load the images to attack and check that they fit the model.

    Args:
        target: the classifier; its run names the data set, its place and image size unless the arguments do.
        n: how many images, spread over the split; a smaller choice is part of every larger one. Default: all.
        split: train, val or test.
        dataset: a name for `envs.datasets.load_dataset`.
        data_root: where data sets lie.
        image_size: resize to this many pixels a side.

    Raises InputError where the data set is not named, cannot be read, or does not fit the model.
    """
    if n is not None and n < 1:
        raise InputError(f"--n is {n}; expected at least 1 image")
    known = target.dataset or {}
    name = dataset or known.get("name")
    if name is None:
        raise InputError(f"{target.name} does not say which data set it is for; name one with --dataset")
    if name != known.get("name"):
        known = {}
    loaded = load_dataset(
        name,
        split,
        data_root=data_root or known.get("data_root"),
        image_size=image_size or known.get("image_size"),
        device=target.device,
    )
    about = (loaded.name, loaded.split, loaded.fingerprint, loaded.classes)
    samples = Samples(loaded.images, loaded.labels, choose_indices(len(loaded), n), *about)
    check_fit(target, samples)
    return samples


def samples_from(images: Tensor, labels: Tensor, name: str = "images") -> Samples:
    """Return all of ``images`` (N, C, H, W), floats in [0, 1] or uint8, with ``labels`` (N,) as samples.

    Raises InputError where their types or shapes are wrong.
    """
    for what, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            expected = f"expected a tensor, e.g. torch.as_tensor({what})"
            raise InputError(f"{what} are a {type(given).__name__}; {expected}")
    if images.ndim < 2 or not len(images) or not (images.is_floating_point() or images.dtype == torch.uint8):
        found = f"images are {images.dtype} of shape {tuple(images.shape)}"
        raise InputError(f"{found}; expected floats in [0, 1] or uint8, (N, C, H, W)")
    if labels.shape != (len(images),) or labels.is_floating_point() or labels.dtype == torch.bool:
        found = f"labels are {labels.dtype} of shape {tuple(labels.shape)}"
        raise InputError(f"{found}; expected integers, one for each of the {len(images)} images")
    images, labels = images.detach(), labels.long()
    digest = hashlib.sha256(f"{images.dtype} {tuple(images.shape)}".encode())
    for tensor in (images, labels):
        digest.update(_bytes(tensor))
    return Samples(images, labels, torch.arange(len(images)), name, "test", digest.hexdigest())


def check_fit(target: Target, samples: Samples) -> None:
    """Run the model on one image; InputError where it does not take it, or has other classes than the data set."""
    size = "x".join(str(length) for length in samples.images.shape[1:])
    image, _ = samples.batch(slice(0, 1), target.device)
    try:
        with torch.inference_mode():
            logits = target.model(image)
    except (RuntimeError, ValueError, TypeError) as error:
        if is_machine_error(error):
            raise
        refused = f"{target.name} does not take {size} images of {samples.name} ({cause(error)})"
        raise InputError(f"{refused}; name another --dataset") from error
    if not isinstance(logits, Tensor) or logits.shape != (1, len(samples.classes)):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        needed = f"{samples.name} needs logits of shape (1, {len(samples.classes)})"
        raise InputError(f"{target.name} gives {found} for one image; {needed}")
