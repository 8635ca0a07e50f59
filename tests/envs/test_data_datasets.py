import dataclasses
import hashlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from envs.datasets import DATASETS, ImageDataset, load_dataset, load_splits
from envs.errors import InputError


def make(images, labels=None, classes=("a", "b"), name="made", split="train"):
    if labels is None:
        labels = torch.arange(len(images)) % len(classes)
    return ImageDataset(name, split, images, labels, classes)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_digits_are_scikit_learns_scaled_to_bytes():
    bunch = load_digits()
    splits = load_splits("digits")
    assert [len(split) for split in splits] == [1293, 145, 359]
    ours = torch.cat([split.images[:, 0] for split in splits]).numpy()
    labels = torch.cat([split.labels for split in splits]).numpy()
    scaled = np.array([[round(value * 255 / 16) for value in image.ravel()] for image in bunch.images])
    theirs = sorted(
        (label, *pixels) for label, pixels in zip(bunch.target.tolist(), scaled.tolist(), strict=True)
    )
    assert (
        sorted((label, *image.ravel().tolist()) for label, image in zip(labels.tolist(), ours, strict=True))
        == theirs
    )
    assert splits.train.shape == (1, 8, 8)
    assert splits.train.classes == tuple("0123456789")
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.dtype == torch.int64
    assert int(splits.train.images.max()) == 255


def test_digits_splits_never_change():
    fingerprints = [split.fingerprint[:16] for split in load_splits("digits")]
    assert fingerprints == ["34d5a69a7e640c04", "f2d12f4cb3c94b39", "990e288a828f89df"]


def test_load_dataset_equals_the_split_of_load_splits():
    splits = load_splits("digits")
    for split in ("train", "val", "test"):
        alone = load_dataset("digits", split)
        assert alone.split == split
        assert alone.fingerprint == getattr(splits, split).fingerprint


def test_digits_can_be_resized():
    data = load_dataset("digits", "val", image_size=32)
    assert data.shape == (1, 32, 32)
    small = load_dataset("digits", "val")
    assert (data.images.float().mean((1, 2, 3)) - small.images.float().mean((1, 2, 3))).abs().max() < 3


def test_names_list_the_bundled_and_published_sets():
    assert DATASETS == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "stl10", "imagenet100")


def test_properties():
    data = make(noise(5, 3, 4, 6), classes=("a", "b", "c"))
    assert (len(data), data.shape, data.num_classes, data.device) == (5, (3, 4, 6), 3, torch.device("cpu"))
    assert repr(data) == "ImageDataset('made', 'train', 5 images 3x4x6, 3 classes, cpu)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


def test_fingerprint_is_of_the_content_alone():
    images, labels = noise(6, 1, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    digest = hashlib.sha256(repr(((6, 1, 4, 4), ("a", "b"))).encode())
    digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
    data = make(images, labels)
    assert data.fingerprint == digest.hexdigest()
    assert make(images.clone(), labels, name="x", split="test").fingerprint == data.fingerprint
    other = images.clone()
    other[5, 0, 3, 3] ^= 1
    changed = [
        make(other, labels),
        make(images, labels.flip(0)),
        make(images, labels, ("a", "c")),
        make(images.reshape(6, 1, 2, 8), labels),
    ]
    assert len({data.fingerprint, *(item.fingerprint for item in changed)}) == 5


def test_fingerprint_reads_strided_images_like_contiguous_ones():
    images = noise(4, 6, 6, 3).permute(0, 3, 1, 2)
    assert make(images).fingerprint == make(images.contiguous()).fingerprint


def test_chunks_do_not_change_fingerprint_or_statistics(monkeypatch):
    data, again = make(noise(7, 2, 3, 3)), make(noise(7, 2, 3, 3))
    whole = data.fingerprint, data.channel_stats()
    monkeypatch.setattr("envs.datasets.CHUNK", 40)
    assert again.fingerprint == whole[0]
    assert all(torch.equal(a, b) for a, b in zip(again.channel_stats(), whole[1], strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_channel_stats_are_exact(count, channels, side, seed):
    images = noise(count, channels, side, side, seed=seed)
    mean, std = make(images, torch.zeros(count, dtype=torch.int64)).channel_stats()
    pixels = images.double() / 255
    torch.testing.assert_close(mean, pixels.mean((0, 2, 3)).float(), rtol=0, atol=1e-7)
    torch.testing.assert_close(std, pixels.std((0, 2, 3), correction=0).float(), rtol=0, atol=1e-7)


def test_constant_channel_has_deviation_zero():
    images = torch.full((3, 2, 4, 4), 51, dtype=torch.uint8)
    mean, std = make(images).channel_stats()
    assert mean.tolist() == pytest.approx([0.2, 0.2])
    assert std.tolist() == [0, 0]


def test_take_selects_copies_in_order():
    data = make(noise(5, 1, 2, 2))
    taken = data.take([3, 0, 3])
    assert torch.equal(taken.images, data.images[[3, 0, 3]])
    assert taken.labels.tolist() == [1, 0, 1]
    assert taken.fingerprint != data.fingerprint
    taken.images.zero_()
    assert data.images.any()


def test_to_the_same_device_is_the_same_object():
    data = make(noise(2, 1, 2, 2))
    assert data.to("cpu") is data


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_changes_neither_fingerprint_nor_statistics():
    data = make(noise(9, 3, 5, 5))
    moved = dataclasses.replace(data, images=data.images.cuda(), labels=data.labels.cuda())
    assert moved.fingerprint == data.fingerprint == data.to("cuda").fingerprint
    assert all(torch.equal(a, b) for a, b in zip(moved.channel_stats(), data.channel_stats(), strict=True))
    assert moved.take([1, 0]).device.type == "cuda"


def test_pickles_for_worker_processes():
    data = make(noise(3, 1, 2, 2))
    assert pickle.loads(pickle.dumps(data)).fingerprint == data.fingerprint


IMAGES = noise(4, 1, 3, 3)
LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "classes", "words"),
    [
        (IMAGES.numpy(), LABELS, ("a", "b"), "images is a ndarray.*torch.from_numpy"),
        (IMAGES.float(), LABELS, ("a", "b"), "torch.float32.*expected uint8"),
        (IMAGES[:, 0], LABELS, ("a", "b"), r"shape \(4, 3, 3\).*\(N, C, H, W\)"),
        (IMAGES[:0], LABELS[:0], ("a", "b"), r"shape \(0, 1, 3, 3\)"),
        (IMAGES, [0, 1, 0, 1], ("a", "b"), "labels is a list"),
        (IMAGES, LABELS.int(), ("a", "b"), "torch.int32.*expected int64"),
        (IMAGES, LABELS[:3], ("a", "b"), r"\(3,\); expected int64 \(4,\)"),
        (IMAGES, LABELS + 1, ("a", "b"), r"labels span 1\.\.2; expected 0\.\.1"),
        (IMAGES, LABELS - 1, ("a", "b"), r"labels span -1\.\.0"),
        (IMAGES, LABELS, ["a", "b"], "class names .* expected a tuple"),
        (IMAGES, LABELS, ("a", "\x1b[2J"), "printable"),
        (IMAGES, LABELS.to("meta"), ("a", "b"), "labels are on meta, images on cpu"),
    ],
)
def test_wrong_tensors_are_refused(images, labels, classes, words):
    with pytest.raises(InputError, match=words):
        make(images, labels, classes)


@pytest.mark.parametrize("indices", [[], [4], [-1], [0, 99]])
def test_wrong_indices_are_refused(indices):
    with pytest.raises(InputError, match=r"expected at least one, all in 0\.\.3"):
        make(IMAGES).take(indices)
