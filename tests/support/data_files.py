"""Small files in the formats that the data loaders read, for their tests."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from envs.data.source import Arrays, Decoded, Source

SPLITS = ("train", "val", "test")


def image_tree(
    root: Path, classes: dict[str, int], *, size=(6, 6), mode="RGB", suffix=".png", seed=0
) -> Path:
    """Write ``{class: number of images}`` as files of random pixels; ``size`` is (width, height)."""
    generator = np.random.default_rng(seed)
    for name, count in classes.items():
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(count):
            shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03d}{suffix}")
    return root


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_arrays(train=40, test=20):
    """Random images and labels that cover ten classes."""
    generator = np.random.default_rng(1)
    parts = {}
    for part, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        parts[part] = images, (np.arange(count) % 10).astype(np.uint8)
    return parts


def write_mnist(root: Path, parts=None, folder="MNIST", packed=True) -> Path:
    """Write MNIST's four files as torchvision lays them out; ``packed`` as .gz."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, arrays in (parts or mnist_arrays()).items():
        for what, array in zip(("images-idx3", "labels-idx1"), arrays, strict=True):
            content = idx_bytes(array)
            path = raw / f"{part}-{what}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return root


def cifar_arrays(num_classes=10, train=50, test=20):
    """Random CIFAR images and labels: five training batches and a test batch for CIFAR-10."""
    generator = np.random.default_rng(2)
    names = (
        [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
        if num_classes == 10
        else ["train", "test"]
    )
    counts = [train] * (len(names) - 1) + [test]
    return {
        name: (
            generator.integers(0, 256, (count, 3072), dtype=np.uint8),
            [i % num_classes for i in range(count)],
        )
        for name, count in zip(names, counts, strict=True)
    }


def write_cifar10(root: Path, protocol=2) -> Path:
    """Write CIFAR-10's batches as pickles."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (data, labels) in cifar_arrays().items():
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol=protocol))
    names = [f"class{number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=protocol))
    return root


def write_cifar100(root: Path) -> Path:
    """Write CIFAR-100's files as pickles, with coarse labels beside the fine ones as in the original."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, (data, labels) in cifar_arrays(100, train=300, test=100).items():
        entry = {"data": data, "fine_labels": labels, "coarse_labels": [label // 5 for label in labels]}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    names = [f"class{number}" for number in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    return root


def list_sums(monkeypatch, torchvision_class, folder: Path) -> None:
    """Make torchvision list the MD5 sums of the files in ``folder`` instead of the published ones."""

    def summed(entries):
        return [[name, md5(folder / name) if (folder / name).exists() else ""] for name, _ in entries]

    monkeypatch.setattr(torchvision_class, "train_list", summed(torchvision_class.train_list))
    monkeypatch.setattr(torchvision_class, "test_list", summed(torchvision_class.test_list))
    if hasattr(torchvision_class, "meta"):
        name = torchvision_class.meta["filename"]
        monkeypatch.setattr(torchvision_class, "meta", {**torchvision_class.meta, "md5": md5(folder / name)})


def md5(path: Path) -> str:
    """MD5 sum of a file."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def tar_gz(folder: Path) -> bytes:
    """The folder as a .tar.gz that holds it by its name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    return buffer.getvalue()


class Counted:
    """A source that counts how often it is decoded."""

    def __init__(self, stamp="1", seed=0, count=20):
        self.calls = 0
        generator = np.random.default_rng(seed)
        self.arrays = {
            split: Arrays(generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8), np.arange(count) % 2)
            for split in SPLITS
        }
        self.source = Source("made", "made", stamp, self.decode)

    def decode(self, allocate):
        self.calls += 1
        splits = {}
        for split, arrays in self.arrays.items():
            out = allocate(split, arrays.images.shape)
            out[:] = arrays.images
            splits[split] = Arrays(out, arrays.labels)
        return Decoded(("a", "b"), splits)

    def matches(self, loaded):
        return loaded.classes == ("a", "b") and all(
            np.array_equal(part.images, self.arrays[split].images)
            and np.array_equal(part.labels, self.arrays[split].labels)
            for split, part in loaded.splits.items()
        )


def same_images(splits, images, labels):
    """Whether train and validation together are these images with these labels."""
    ours = [
        (image.numpy().tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    return sorted(ours) == sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
