"""What users get wrong, and the one line that each gets: value, expectation, remedy."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from envs.datasets import load_dataset, load_splits
from envs.errors import InputError
from tests.support.data_files import image_tree
from tests.support.wrong_data import (
    IMAGES,
    LABELS,
    cut,
    digits,
    eps_script,
    fewer_labels,
    folder,
    link,
    mnist,
    named,
    npy_header,
    npz,
    npz_bytes,
    npz_member,
    one_class_missing,
    other_size,
    png_bomb,
    remove_all,
    replace_labels,
    root_is_a_file,
    save,
    split_folder,
    write,
)

WRONG = {
    # names and options
    "unknown name": (named("minst"), r"unknown data set 'minst'; valid: digits, .* Did you mean 'mnist'\?"),
    "no name": (named(""), "unknown data set ''; valid: digits"),
    "not a string": (named(None), "unknown data set None"),
    "unknown kind": (named("zip:/tmp/x"), "unknown data set 'zip:/tmp/x'.*npz:PATH"),
    "no path": (named("folder:"), "'folder:' names no path; expected folder:PATH"),
    "size zero": (digits(image_size=0), "image size 0; expected a whole number of pixels, 1 to 4096"),
    "size negative": (digits(image_size=-8), "image size -8; expected"),
    "size not whole": (digits(image_size=8.0), "image size 8.0; expected"),
    "size huge": (digits(image_size=100_000), "image size 100000; expected"),
    "device": (digits(device="gpu"), "device 'gpu' is not one; expected cpu, cuda or cuda:N"),
    "root is a file": (root_is_a_file, "data root .*file is a file; expected a directory; set --data-root"),
    # archives
    "no archive": (named("npz:/nowhere/x.npz"), r"no file or folder /nowhere/x\.npz"),
    "archive is a folder": (named("npz:/"), "cannot read /: .*directory.*np.savez"),
    "not a zip": (
        npz_bytes(lambda content: b"not a zip file"),
        "not a zip file; write it again with np.savez",
    ),
    "archive cut off": (npz_bytes(lambda content: content[:-50]), "made.npz.*not a zip file"),
    "archive with a flipped bit": (npz_bytes(lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:]), "CRC-32"),
    "no labels": (npz(labels=None), "has the keys 'images'; expected images and labels, or x_train"),
    "no test arrays": (
        npz(images=None, labels=None, x_train=IMAGES, y_train=LABELS),
        "keys 'x_train', 'y_train'; expected",
    ),
    "objects": (
        npz(images=np.array([{}] * 30, dtype=object)),
        "holds Python objects, which are never loaded",
    ),
    "label objects": (npz(labels=np.array([{}] * 30, dtype=object)), "labels .* holds Python objects"),
    "NaN": (npz(images=np.full((30, 5, 5), np.nan)), r"NaN or infinite.*\[0, 1\]"),
    "infinity": (npz(images=np.full((30, 5, 5), np.inf, np.float32)), "NaN or infinite"),
    "floats to 255": (
        npz(images=np.full((30, 5, 5), 255.0)),
        "floats from 255 to 255; expected .*uint8 for 0..255",
    ),
    "negative floats": (npz(images=np.full((30, 5, 5), -0.1)), "floats from -0.1 to -0.1"),
    "int64 images": (npz(images=IMAGES.astype(np.int64)), "images is int64; expected uint8 or floats"),
    "boolean images": (npz(images=IMAGES.astype(bool)), "images is bool; expected uint8"),
    "flat images": (npz(images=IMAGES.reshape(30, 25)), r"shape \(30, 25\); expected \(N, H, W\)"),
    "video": (npz(images=np.zeros((30, 2, 5, 5, 3), np.uint8)), r"shape \(30, 2, 5, 5, 3\)"),
    "no channels anywhere": (
        npz(images=np.zeros((30, 5, 6, 7), np.uint8)),
        "neither end could be the channels",
    ),
    "channels everywhere": (
        npz(images=np.zeros((30, 3, 6, 3), np.uint8)),
        "either end could be the channels",
    ),
    "no images": (
        npz(images=IMAGES[:0], labels=LABELS[:0]),
        r"shape \(0, 5, 5\)",
    ),
    "empty images": (npz(images=np.zeros((30, 0, 5), np.uint8)), r"shape \(30, 0, 5\)"),
    "fewer labels": (npz(labels=LABELS[:29]), "29 labels for 30 images; expected as many"),
    "one-hot labels": (npz(labels=np.eye(3, dtype=int)[LABELS]), r"labels are int64 \(30, 3\); .*argmax"),
    "float labels": (npz(labels=LABELS.astype(float)), "labels are float64 .*expected one integer"),
    "negative labels": (npz(labels=LABELS - 1), r"labels span -1\.\.1; expected 0\.\.K-1"),
    "a gap in the labels": (npz(labels=LABELS * 2), r"class 1 \('1'\) has no training image"),
    "huge labels": (
        npz(labels=LABELS + 10**12),
        r"labels span 1000000000000\.\.1000000000002; expected 0\.\.K-1",
    ),
    "labels beyond uint63": (
        npz(labels=np.full(30, 2**64 - 1, np.uint64)),
        r"labels span .*\.\.18446744073709551615",
    ),
    "labels beyond the names": (npz(classes=np.array(["x", "y"])), r"labels reach 2; expected 0\.\.1"),
    "a name without images": (npz(classes=np.array(list("wxyz"))), r"class 3 \('z'\) has no training image"),
    "numbers for names": (npz(classes=np.arange(3)), r"classes is int64 \(3,\); expected names"),
    "more classes than images": (npz(labels=LABELS + 100), "labels up to 102 for 30 images"),
    "one class": (npz(labels=LABELS * 0), "1 class; expected at least two"),
    "control characters": (
        npz(classes=np.array(["a", "b", "\x1b[2J"])),
        r"class name '.x1b\[2J'; expected printable characters; rename",
    ),
    "too few images": (
        npz(images=IMAGES[:4], labels=np.array([0, 0, 1, 1])),
        "no image is left for the val split",
    ),
    "splits that differ": (
        npz(images=None, labels=None, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:, :4], y_test=LABELS),
        r"differ in shape, \[\(1, 4, 5\), \(1, 5, 5\)\]",
    ),
    "Fortran order": (npz(images=np.asfortranarray(np.zeros((30, 5, 6), np.uint8))), "np.ascontiguousarray"),
    "no .npy inside": (npz_member(b"hello"), "cannot read .*made.npz"),
    "header that lies": (
        npz_member(
            npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (30, 900, 900)}\n") + bytes(99)
        ),
        "cut off or has a false header",
    ),
    "header that runs": (
        npz_member(
            npy_header("{'descr': __import__('os').mkdir('x'), 'fortran_order': False, 'shape': (1,)}\n")
        ),
        "cannot read .*made.npz",
    ),
    "header of the future": (npz_member(npy_header("{}", (9, 0))), r"format \(9, 0\)|9"),
    "a name of two lines": (
        npz(labels=None, **{"a\nb": LABELS}),
        r"has the keys 'a\\nb', 'images'; expected",
    ),
    # folders
    "no folder": (named("folder:/nowhere"), "no file or folder /nowhere; expected folders PATH/CLASS"),
    "folder is a file": (named(f"folder:{__file__}"), "cannot read .*Not a directory; expected folders"),
    "no class folders": (folder(lambda tree: None, classes=()), "no file or folder"),
    "empty tree": (folder(lambda tree: tree.mkdir(), classes=()), "holds no class folders with images"),
    "images without classes": (
        folder(lambda tree: (tree.mkdir(), Image.new("RGB", (6, 6)).save(tree / "x.png")), classes=()),
        "holds no class folders with images; expected folders PATH/CLASS",
    ),
    "empty class": (
        folder(remove_all("b")),
        r"tree/b holds no image \(\.bmp .*add images or remove the folder",
    ),
    "one folder": (folder(lambda tree: None, classes=("a",)), "1 class; expected at least two"),
    "two images a class": (folder(lambda tree: None, count=2), "no image is left for the val split"),
    "truncated image": (
        folder(cut("a/000.png", 90)),
        r"cannot read .*a/000\.png: .*truncated.*replace or remove",
    ),
    "empty file": (folder(write("a/000.png", b"")), r"a/000\.png: cannot identify image file"),
    "text as image": (folder(write("b/003.png", b"hello")), r"b/003\.png: cannot identify image file"),
    "PostScript as image": (folder(eps_script), r"a/000\.png: cannot identify image file"),
    "another size": (
        folder(save("b/004.png", Image.new("RGB", (7, 6)))),
        r"b/004\.png is 7 x 6 pixels, the first image 6 x 6; expected one size; give --image-size",
    ),
    "decompression bomb": (folder(png_bomb), r"a/000\.png.*(60000 x 60000|decompression bomb|exceeds limit)"),
    "16 bits": (
        folder(save("a/000.png", Image.new("I;16", (6, 6)))),
        r"kind 'I;16'; expected 8 bits a channel",
    ),
    "colour among gray": (
        folder(lambda tree: [Image.open(f).convert("L").save(f) for f in tree.rglob("00[0-3].png")]),
        r"004\.png is in colour; expected gray like the first images",
    ),
    "broken link": (
        folder(link("a/x.png", "/nowhere.png")),
        r"a/x\.png is a broken link or not a regular file",
    ),
    "device file": (folder(link("a/x.png", "/dev/zero")), r"a/x\.png is a broken link or not a regular file"),
    "pipe": (folder(lambda tree: os.mkfifo(tree / "a/x.png")), "not a regular file"),
    "link in a circle": (folder(link("a/x.png", "x.png")), r"cannot read .*a/x\.png: Too many levels"),
    "train alone": (
        split_folder(lambda tree: (tree / "test").rename(tree / "extra")),
        "has train/ but neither test/ nor val/",
    ),
    "class unknown to train": (
        split_folder(lambda tree: (tree / "test/b").rename(tree / "test/c")),
        "has a class folder 'c' that train/ lacks",
    ),
    "empty test class": (split_folder(remove_all("test/b")), "test/b holds no image"),
    # published files
    "cut idx": (
        mnist(cut("train-images-idx3-ubyte", 999)),
        "announces 31,360 values but holds 983; delete it",
    ),
    "wrong magic": (
        mnist(write("t10k-labels-idx1-ubyte", b"hello")),
        "begins with 68656c6c; expected 00000801",
    ),
    "label ten": (mnist(replace_labels), r"train-labels-idx1-ubyte: labels span 10\.\.10; expected 0\.\.9"),
    "labels missing": (mnist(fewer_labels), "3 labels for 20 images"),
    "class missing": (mnist(one_class_missing), r"mnist: class 9 \('9'\) has no training image"),
    "idx of another size": (mnist(other_size), r"images of \(20, 20\); expected \(28, 28\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_uses_end_with_one_clear_line(case, tmp_path, monkeypatch):
    make, words = WRONG[case]
    name, options = make(tmp_path)
    options = {"data_root": tmp_path / "root"} | options
    with pytest.raises(InputError, match=words) as caught:
        load_splits(name, **options)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "root").rglob("decoded/*") if path.suffix != ".lock"]


def test_unknown_split():
    with pytest.raises(
        InputError, match=r"unknown split 'tets'; valid: train, val, test.* Did you mean 'test'"
    ):
        load_dataset("digits", "tets")


def test_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="device 'cuda': this PyTorch sees no CUDA device; use cpu"):
        load_dataset("digits", device="cuda")


def test_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match=r"device 'cuda:2'; expected cuda:0 to cuda:1 here"):
        load_dataset("digits", device="cuda:2")


def as_plain_user(check):
    """Run ``check`` in a process without root's right to read everything; return whether it succeeded."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            check()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("what", ["archive", "image", "folder"])
def test_no_permission(tmp_path, what):
    np.savez(tmp_path / "made.npz", images=IMAGES, labels=LABELS)
    tree = image_tree(tmp_path / "tree", {"a": 5, "b": 5})
    locked = {"archive": tmp_path / "made.npz", "image": tree / "a/000.png", "folder": tree / "b"}[what]
    locked.chmod(0)
    parents = [
        parent for parent in tmp_path.parents if parent != Path("/") and not parent.stat().st_mode & 0o001
    ]

    def check():
        name = f"npz:{tmp_path / 'made.npz'}" if what == "archive" else f"folder:{tree}"
        with pytest.raises(InputError, match=rf"no permission to read {locked}; make it readable \(chmod"):
            load_splits(name, data_root=tmp_path / "root")

    for parent in [tmp_path, *parents]:
        parent.chmod(parent.stat().st_mode | 0o055)
    try:
        assert as_plain_user(check)
    finally:
        locked.chmod(0o755)
