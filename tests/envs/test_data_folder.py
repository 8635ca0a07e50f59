import os

import numpy as np
import pytest
import torch
from PIL import Image

from envs.data import images as image_files
from envs.datasets import load_dataset, load_splits
from envs.errors import InputError
from tests.support.data_files import image_tree


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def load(path, root, **options):
    return load_splits(f"folder:{path}", data_root=root, **options)


def pixels_of(splits):
    return sorted(image.numpy().tobytes() for split in splits for image in split.images)


def test_flat_tree_is_split_and_every_pixel_kept(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"cat": 20, "ant": 10, "bee": 10})
    splits = load(tree, root)
    assert [len(split) for split in splits] == [28, 4, 8]
    assert splits.train.classes == ("ant", "bee", "cat")
    assert splits.train.shape == (3, 6, 6)
    files = sorted(tree.rglob("*.png"))
    expected = sorted(np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in files)
    assert pixels_of(splits) == expected
    label_of = {np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes(): file.parent.name for file in files}
    for split in splits:
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            assert label_of[image.numpy().tobytes()] == split.classes[label]


def test_split_tree_with_validation(tmp_path, root):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        image_tree(tmp_path / "tree" / split, {"a": count, "b": count}, seed=count)
    assert [len(split) for split in load(tmp_path / "tree", root)] == [8, 4, 6]


def test_validation_is_held_out_of_train(tmp_path, root):
    image_tree(tmp_path / "tree/train", {"a": 20, "b": 20})
    image_tree(tmp_path / "tree/test", {"a": 3, "b": 3}, seed=1)
    assert [len(split) for split in load(tmp_path / "tree", root)] == [36, 4, 6]


def test_val_is_the_test_split_where_there_is_no_other(tmp_path, root):
    image_tree(tmp_path / "tree/train", {"a": 20, "b": 20})
    image_tree(tmp_path / "tree/val", {"a": 3, "b": 3}, seed=1)
    assert [len(split) for split in load(tmp_path / "tree", root)] == [36, 4, 6]


def test_a_class_may_be_called_train(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"train": 5, "tram": 5})
    assert load(tree, root).train.classes == ("train", "tram")


def test_gray_files_give_one_channel(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5}, mode="L")
    splits = load(tree, root)
    assert splits.train.shape == (1, 6, 6)
    assert pixels_of(splits) == sorted(np.asarray(Image.open(file)).tobytes() for file in tree.rglob("*.png"))


def test_gray_files_among_colour_become_rgb(tmp_path, root):
    image_tree(tmp_path / "tree", {"a": 5}, mode="L")
    image_tree(tmp_path / "tree", {"b": 5})
    splits = load(tmp_path / "tree", root)
    assert splits.train.shape == (3, 6, 6)
    gray = splits.train.images[splits.train.labels == 0]
    assert torch.equal(gray[:, 0], gray[:, 2])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".webp", ".gif", ".JPG", ".jpeg"])
def test_formats(tmp_path, root, suffix):
    tree = image_tree(tmp_path / "tree", {"a": 4, "b": 4}, suffix=suffix)
    assert len(load(tree, root).train) == 4


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK"])
def test_kinds_of_pixels(tmp_path, root, mode):
    tree = image_tree(tmp_path / "tree", {"a": 4, "b": 4}, suffix=".tif")
    for file in tree.rglob("*.tif"):
        Image.open(file).convert("L" if mode == "LA" else "RGB").convert(mode).save(file)
    assert load(tree, root).train.shape[0] == (1 if mode in ("1", "LA") else 3)


def test_resizing_crops_the_centre_and_keeps_shapes(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"a": 3, "b": 3}, size=(8, 8))
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the central square alone is bright
    Image.fromarray(wide).save(tree / "a/000.png")
    splits = load(tree, root, image_size=4)
    inner = [image[:, :, 1:3] for split in splits for image in split.images]
    assert sum(bool((columns == 200).all()) for columns in inner) == 1
    assert splits.train.shape == (3, 4, 4)


def test_size_of_its_own_leaves_pixels_alone(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    assert pixels_of(load(tree, root, image_size=6)) == pixels_of(load(tree, root))


def test_downscaling_averages(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"a": 3, "b": 3}, size=(64, 64), mode="L")
    for image in load(tree, root, image_size=8).train.images:
        assert 110 < image.float().mean() < 145
        assert image.float().std() < 25, "an average of 64 random pixels varies by 74 / 8"


def test_changed_files_are_read_anew(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    before = load(tree, root)
    Image.fromarray(np.full((6, 6, 3), 7, np.uint8)).save(tree / "a/000.png")
    os.utime(tree / "a/000.png", ns=(1, 1))
    after = load(tree, root)
    assert pixels_of(before) != pixels_of(after)
    assert bytes([7]) * 108 in pixels_of(after)
    (tree / "b/004.png").unlink()
    assert sum(map(len, load(tree, root))) == 9


def test_options_have_copies_of_their_own(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    sizes = [
        load_dataset(f"folder:{tree}", data_root=root, image_size=size).shape[1]
        for size in (None, 3, 12, None)
    ]
    assert sizes == [6, 3, 12, 6]


def test_second_load_decodes_nothing(tmp_path, root, monkeypatch):
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    first = load(tree, root)
    monkeypatch.setattr(image_files, "open_image", None)
    assert [split.fingerprint for split in load(tree, root)] == [split.fingerprint for split in first]


def test_other_files_are_ignored_and_told(tmp_path, root, caplog):
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    (tree / "a/notes.txt").write_text("hello")
    (tree / "a/.DS_Store").write_bytes(b"x")
    (tree / "b/Thumbs.db").write_bytes(b"x")
    (tree / "README.md").write_text("hello")
    assert sum(map(len, load(tree, root))) == 10
    assert "ignored 1 files" in caplog.text
    assert "notes.txt" in caplog.text


def test_files_at_any_depth_count(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"a/images": 5, "b/x/y": 5})
    splits = load(tree, root)
    assert splits.train.classes == ("a", "b")
    assert sum(map(len, splits)) == 10


def test_links_are_followed_and_told(tmp_path, root, caplog):
    store = image_tree(tmp_path / "store", {"a": 5, "b": 5})
    (tmp_path / "tree/a").mkdir(parents=True)
    for file in (store / "a").iterdir():
        (tmp_path / "tree/a" / file.name).symlink_to(file)
    (tmp_path / "tree/b").symlink_to(store / "b", target_is_directory=True)
    assert sum(map(len, load(tmp_path / "tree", root))) == 10
    assert "6 links lead out of the folder" in caplog.text


def test_links_to_folders_inside_a_class_are_not_followed(tmp_path, root):
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    (tree / "a/loop").symlink_to(tree, target_is_directory=True)
    assert sum(map(len, load(tree, root))) == 10


def test_home_and_relative_paths(tmp_path, root, monkeypatch):
    image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fingerprints = {
        load_dataset(f"folder:{path}", data_root=root).fingerprint for path in ("~/tree", "tree", "./tree/")
    }
    assert len(fingerprints) == 1
    assert len([path for path in (root / "decoded").iterdir() if path.is_dir()]) == 1


def test_imagenet100_is_a_tree_under_the_data_root(root):
    for split, count in (("train", 2), ("val", 1)):
        image_tree(
            root / "imagenet100" / split, {f"n{number:08d}": count for number in range(100)}, size=(9, 7)
        )
    splits = load_splits("imagenet100", data_root=root, image_size=8)
    assert [len(split) for split in splits] == [100, 100, 100]
    assert splits.test.shape == (3, 8, 8)
    default = load_dataset("imagenet100", "val", data_root=root)
    assert default.shape == (3, 224, 224)


def test_imagenet100_wants_100_classes(root):
    with pytest.raises(InputError, match=r"no file or folder .*imagenet100.*put ImageNet's folders"):
        load_dataset("imagenet100", data_root=root)
    image_tree(root / "imagenet100/train", {"a": 2, "b": 2})
    with pytest.raises(InputError, match="has 2 class folders; expected 100"):
        load_dataset("imagenet100", data_root=root)


def test_progress_appears_only_when_it_takes_time(tmp_path, root, monkeypatch, capsys):
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    load(tree, root)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(image_files, "PATIENCE", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    load(tree, root, image_size=5)
    assert "decoding train images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [("training", "testing"), ("Train", "Test"), ("TRAIN", "valid"), ("train", "Testing", "Validation")],
)
def test_usual_names_of_splits(names, tmp_path, caplog):
    root = tmp_path / "set"
    for k, part in enumerate(names):
        for label in "ab":
            (root / part / label).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((6, 6), 9 * k + i, np.uint8)).save(root / part / label / f"{i}.png")
    with caplog.at_level("INFO"):
        splits = load_splits(f"folder:{root}", data_root=tmp_path)
    assert splits.train.classes == ("a", "b")
    assert int(splits.train.images.max()) < 9 <= int(splits.test.images.min())
    assert len(splits.train) + len(splits.val) == (16 if len(names) == 3 else 8)
    assert "a 4, b 4" in caplog.text


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train/a", "Training/a", "test/a"), "expected one train split"),
        (("testing/a", "validation/a"), "no train/; add it"),
        (("train", "Test"), "without class folders"),
    ],
)
def test_doubtful_names_of_splits_are_refused(folders, message, tmp_path):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / folder / "0.png")
    with pytest.raises(InputError, match=message):
        load_splits(f"folder:{tmp_path}", data_root=tmp_path / "root")
