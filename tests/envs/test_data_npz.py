import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.data import npz
from envs.datasets import load_splits


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def whole(splits):
    """Images and labels of all splits, ordered by content."""
    return sorted(
        (image.numpy().tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((30, 5, 7), None, (1, 5, 7)),
        ((30, 5, 7, 1), (0, 3, 1, 2), (1, 5, 7)),
        ((30, 5, 7, 3), (0, 3, 1, 2), (3, 5, 7)),
        ((30, 3, 5, 7), (0, 1, 2, 3), (3, 5, 7)),
        ((30, 2, 5, 7), (0, 1, 2, 3), (2, 5, 7)),
        ((30, 5, 7, 4), (0, 3, 1, 2), (4, 5, 7)),
    ],
)
def test_layouts(tmp_path, root, shape, axes, expected):
    images, labels = noise(*shape), np.arange(30) % 3
    splits = load_splits(save(tmp_path / "made.npz", images=images, labels=labels), data_root=root)
    assert splits.train.shape == expected
    ours = images[:, None] if axes is None else images.transpose(axes)
    assert whole(splits) == sorted(
        (image.tobytes(), int(label)) for image, label in zip(ours, labels, strict=True)
    )
    assert [len(split) for split in splits] == [21, 3, 6]
    assert splits.train.classes == ("0", "1", "2")


@pytest.mark.parametrize("keys", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
@pytest.mark.parametrize("with_val", [False, True])
def test_split_keys(tmp_path, root, keys, with_val):
    counts = {"train": 40, "test": 10} | ({"val": 6} if with_val else {})
    arrays = {}
    for split, count in counts.items():
        arrays[keys[0].format(split)] = np.full((count, 4, 4), len(split), np.uint8)
        arrays[keys[1].format(split)] = (np.arange(count) % 2)[:, None]
    splits = load_splits(save(tmp_path / "made.npz", **arrays), data_root=root)
    assert [len(split) for split in splits] == ([40, 6, 10] if with_val else [36, 4, 10])
    assert (splits.test.images == 4).all()
    assert (splits.train.images == 5).all()


def test_class_names(tmp_path, root):
    name = save(
        tmp_path / "made.npz",
        images=noise(30, 4, 4),
        labels=np.arange(30) % 2,
        classes=np.array(["no", "yes"]),
    )
    assert load_splits(name, data_root=root).test.classes == ("no", "yes")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_become_bytes(tmp_path, root, dtype):
    values = np.arange(256).reshape(64, 2, 2)
    images = np.repeat(np.repeat((values / 255).astype(dtype), 3, axis=1), 3, axis=2)
    splits = load_splits(save(tmp_path / "made.npz", images=images, labels=np.arange(64) % 2), data_root=root)
    seen = torch.cat([split.images.reshape(-1) for split in splits])
    assert torch.equal(torch.bincount(seen.int(), minlength=256), torch.full((256,), 9))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, ">i2"])
def test_label_types(tmp_path, root, dtype):
    labels = (np.arange(30) % 3).astype(dtype)
    splits = load_splits(save(tmp_path / "made.npz", images=noise(30, 4, 4), labels=labels), data_root=root)
    assert splits.train.labels.dtype == torch.int64
    assert splits.train.labels.bincount().tolist() == [7, 7, 7]


def test_compressed_archives(tmp_path, root):
    images, labels = noise(30, 4, 4), np.arange(30) % 3
    np.savez_compressed(tmp_path / "packed.npz", images=images, labels=labels)
    plain = load_splits(save(tmp_path / "plain.npz", images=images, labels=labels), data_root=root)
    packed = load_splits(f"npz:{tmp_path / 'packed.npz'}", data_root=root)
    assert [split.fingerprint for split in plain] == [split.fingerprint for split in packed]


def test_resizing(tmp_path, root):
    images = np.full((30, 10, 8, 3), (10, 100, 250), np.uint8)
    name = save(tmp_path / "made.npz", images=images, labels=np.arange(30) % 3)
    data = load_splits(name, data_root=root, image_size=5).train
    assert data.shape == (3, 5, 5)
    assert torch.equal(
        data.images, torch.tensor([10, 100, 250], dtype=torch.uint8).view(3, 1, 1).expand_as(data.images)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(9, 60), st.integers(2, 3), st.integers(1, 2000), st.integers(0, 99), st.booleans())
def test_pieces_of_any_size_give_the_same_images(tmp_path_factory, count, num_classes, chunk, seed, packed):
    folder = tmp_path_factory.mktemp("npz")
    images, labels = noise(count, 5, 6, 3, seed=seed), np.arange(count) % num_classes
    (np.savez_compressed if packed else np.savez)(folder / "made.npz", images=images, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz, "CHUNK", chunk)
        splits = load_splits(f"npz:{folder / 'made.npz'}", data_root=folder / "root")
    expected = sorted(
        (image.tobytes(), int(label))
        for image, label in zip(images.transpose(0, 3, 1, 2), labels, strict=True)
    )
    assert whole(splits) == expected
