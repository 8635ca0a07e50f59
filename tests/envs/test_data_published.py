import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from envs.data.cifar import read_batch
from envs.data.published import read_idx
from envs.datasets import load_dataset, load_splits
from envs.errors import InputError
from tests.support.data_files import (
    cifar_arrays,
    idx_bytes,
    list_sums,
    mnist_arrays,
    same_images,
    write_cifar10,
    write_cifar100,
    write_mnist,
)

# MNIST and Fashion-MNIST


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_is_read_packed_or_not(tmp_path, name, folder, packed):
    parts = mnist_arrays()
    write_mnist(tmp_path, parts, folder, packed)
    splits = load_splits(name, data_root=tmp_path)
    assert [len(split) for split in splits] == [30, 10, 20]
    assert splits.train.shape == (1, 28, 28)
    assert same_images(splits[:2], *parts["train"])
    assert same_images(splits[2:], *parts["t10k"])
    assert splits.train.num_classes == 10


def test_mnist_in_a_read_only_root_is_left_as_it_was(tmp_path):
    root = write_mnist(tmp_path / "root")
    for path in (root, root / "MNIST", root / "MNIST/raw"):
        path.chmod(0o555)
    before = sorted(root.rglob("*"))
    assert len(load_dataset("mnist", "test", data_root=root)) == 20
    assert sorted(root.rglob("*")) == before
    assert (tmp_path / "user/.cache/labelbandit/data/decoded").is_dir()


def test_torchvision_reads_the_same_mnist(tmp_path):
    write_mnist(tmp_path, packed=False)
    theirs = torchvision.datasets.MNIST(tmp_path, train=False)
    ours = load_dataset("mnist", "test", data_root=tmp_path)
    assert torch.equal(ours.images[:, 0], theirs.data)
    assert torch.equal(ours.labels, theirs.targets)


def test_mnist_can_be_resized_and_its_own_size_needs_no_second_copy(tmp_path):
    write_mnist(tmp_path)
    assert load_dataset("mnist", data_root=tmp_path, image_size=32).shape == (1, 32, 32)
    load_dataset("mnist", data_root=tmp_path)
    load_dataset("mnist", data_root=tmp_path, image_size=28)
    assert len([path for path in (tmp_path / "decoded").iterdir() if path.is_dir()]) == 2


@pytest.mark.skipif(
    "LABELBANDIT_TEST_MNIST" not in os.environ, reason="LABELBANDIT_TEST_MNIST names no data root with MNIST"
)
def test_real_mnist():
    splits = load_splits("mnist", data_root=os.environ["LABELBANDIT_TEST_MNIST"])
    assert [len(split) for split in splits] == [54_000, 6_000, 10_000]
    assert splits.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begins with nothing; expected 00000803"),
        (b"\x00\x00\x08\x01" + b"\0" * 40, "begins with 00000801; expected 00000803"),
        (b"PK\x03\x04", "begins with 504b0304"),
        (idx_bytes(np.zeros((2, 28, 28), np.uint8))[:-1], "announces 1,568 values but holds 1,567"),
        (idx_bytes(np.zeros((2, 28, 28), np.uint8)) + b"x", "announces 1,568 values but holds more"),
        (idx_bytes(np.zeros((2, 28, 28), np.uint8))[:9], "requires a buffer of 12 bytes"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "expected at most 4 GiB"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_idx_files(tmp_path, content, words, packed):
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match=rf"{path.name}.*{words}"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-9], lambda b: b[:30], lambda b: b"not gzip", lambda b: b[:40] + b"\0" * 20 + b[60:]],
)
def test_damaged_gzip(tmp_path, damage):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(idx_bytes(mnist_arrays()["train"][0]))))
    with pytest.raises(InputError, match=r"images\.gz"):
        read_idx(path, 3)


def test_a_gzip_bomb_is_read_no_further_than_its_header_says(tmp_path):
    path = tmp_path / "images.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes((0, 0, 8, 1, 0, 0, 0, 9)))
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(InputError, match="announces 9 values but holds more"):
        read_idx(path, 1)


# CIFAR


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar10(tmp_path, monkeypatch, protocol):
    write_cifar10(tmp_path, protocol)
    list_sums(monkeypatch, torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py")
    splits = load_splits("cifar10", data_root=tmp_path)
    batches = cifar_arrays()
    test, test_labels = batches.pop("test_batch")
    images = np.concatenate([data for data, _ in batches.values()])
    labels = [label for _, batch in batches.values() for label in batch]
    assert [len(split) for split in splits] == [220, 30, 20]
    assert same_images(splits[:2], images, labels)
    assert np.array_equal(splits.test.images.reshape(20, -1), test)
    assert splits.test.labels.tolist() == test_labels
    assert splits.test.classes == tuple(f"class{number}" for number in range(10))


def test_torchvision_reads_the_same_cifar(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    list_sums(monkeypatch, torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py")
    theirs = torchvision.datasets.CIFAR10(tmp_path, train=False)
    ours = load_dataset("cifar10", "test", data_root=tmp_path)
    assert np.array_equal(ours.images.permute(0, 2, 3, 1), theirs.data)
    assert ours.labels.tolist() == theirs.targets
    assert list(ours.classes) == theirs.classes


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    write_cifar100(tmp_path)
    list_sums(monkeypatch, torchvision.datasets.CIFAR100, tmp_path / "cifar-100-python")
    splits = load_splits("cifar100", data_root=tmp_path)
    assert [len(split) for split in splits] == [200, 100, 100]
    assert splits.test.num_classes == 100
    assert splits.test.labels.tolist() == list(range(100))


def test_python_2_pickles_are_read(tmp_path):
    """The published batches come from Python 2, whose byte strings are not Python 3's."""
    content = bytes(range(256)) * 24
    script = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T\x00\x18\x00\x00" + content + b"tbU\x06labelsq\x08]q\t(K\x03K\x01eu."
    )
    (tmp_path / "batch").write_bytes(script)
    images, labels, _ = read_batch(tmp_path / "batch", "labels", 10)
    assert images.tobytes() == content
    assert labels.tolist() == [3, 1]
    assert np.array_equal(images.reshape(2, -1), pickle.loads(script, encoding="latin1")["data"])


class Executes:
    """Unpickling it would create a file."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


MARK = "executed-by-a-data-set"


def hostile_pickles():
    """Pickles that run something in a trusting reader, each in another way."""
    yield pickle.dumps(Executes(os.mkdir, (MARK,)))
    yield pickle.dumps({b"data": Executes(os.mkdir, (MARK,)), b"labels": [1]}, protocol=2)
    yield pickle.dumps({"labels": Executes(os.system, (f"mkdir {MARK}",))}, protocol=0)
    yield pickle.dumps(Executes(eval, (f"__import__('os').mkdir({MARK!r})",)))
    yield pickle.dumps(Executes(exec, (f"import os; os.mkdir({MARK!r})",)), protocol=4)
    yield (
        pickle.dumps(Executes(getattr, (os, "mkdir")))
        if False
        else b"cbuiltins\ngetattr\n(cos\nmkdir\nU\x04nametR."
    )
    yield b"cos\nmkdir\n(V" + MARK.encode() + b"\ntR."
    yield b"(V" + MARK.encode() + b"\nios\nmkdir\n."
    yield b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c" + bytes([len(MARK)]) + MARK.encode() + b"\x85R."
    yield b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x0c_reconstruct\x93\x8c\x02os\x8c\x05mkdir\x93)\x87R."
    yield b"cnumpy.core.multiarray\n_reconstruct.__globals__\n."
    yield b"cnumpy\ndtype.__class__\n."
    yield b"\x80\x02\x82\x01."  # an extension code
    yield b"Ppersistent\n."


@pytest.mark.parametrize("content", list(hostile_pickles()))
def test_hostile_batches_run_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("batch").write_bytes(content)
    with pytest.raises(InputError, match="batch"):
        read_batch(Path("batch"), "labels", 10)
    assert not Path(MARK).exists()


def test_a_batch_cannot_reserve_memory_without_bound(tmp_path):
    (tmp_path / "batch").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")
    with pytest.raises(InputError, match="batch: place 2147483647 after 2 instructions"):
        read_batch(tmp_path / "batch", "labels", 10)


def test_the_hostile_pickles_are_real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    harmful = 0
    for content in hostile_pickles():
        try:
            pickle.loads(content)
        except Exception:
            continue
        finally:
            if Path(MARK).exists():
                harmful += 1
                Path(MARK).rmdir()
    assert harmful >= 8


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([1, 2], "holds a list; expected CIFAR's mapping"),
        ({"labels": [1]}, r"no array data of shape \(N, 3072\)"),
        ({"data": np.zeros((2, 100), np.uint8), "labels": [1, 2]}, "no array data of shape"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, "not of bytes in C order"),
        ({"data": np.zeros((3072, 2), np.uint8).T, "labels": [1, 2]}, "not of bytes in C order"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "no list 'labels' of integers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}, "no list 'labels' of integers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "1 labels for 2 images"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, r"labels span 1\.\.10; expected 0\.\.9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [-1, 1]}, r"labels span -1\.\.1"),
        ({"data": np.array([{}], dtype=object), "labels": [1]}, "not of bytes in C order"),
    ],
)
def test_wrong_batches(tmp_path, entry, words):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(entry, protocol=2))
    with pytest.raises(InputError, match=words):
        read_batch(path, "labels", 10)


def test_unpublished_cifar_files_are_refused(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(InputError, match=r"data_batch_1 is not the published file \(MD5 .*delete it"):
        load_dataset("cifar10", data_root=tmp_path)


# STL-10


def write_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(3)
    arrays = {}
    for part, count in (("train", 40), ("test", 20)):
        images = generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        labels = np.arange(count) % 10
        images.transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")
        (labels + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
        arrays[part] = images, labels
    return arrays


def test_stl10(tmp_path, monkeypatch):
    arrays = write_stl10(tmp_path)
    list_sums(monkeypatch, torchvision.datasets.STL10, tmp_path / "stl10_binary")
    splits = load_splits("stl10", data_root=tmp_path)
    assert [len(split) for split in splits] == [30, 10, 20]
    assert same_images(splits[:2], *arrays["train"])
    assert same_images(splits[2:], *arrays["test"])
    with (tmp_path / "stl10_binary/test_X.bin").open("ab") as file:
        file.write(b"x")
    list_sums(monkeypatch, torchvision.datasets.STL10, tmp_path / "stl10_binary")
    with pytest.raises(InputError, match=r"test_X.bin has 552,961 bytes; expected a multiple of 27,648"):
        load_splits("stl10", data_root=tmp_path)
