"""Wrong data sets: each function returns another that makes one in a folder and returns its name and options."""

import struct
import zipfile
import zlib

import numpy as np

from tests.support.data_files import idx_bytes, image_tree, mnist_arrays, write_mnist

IMAGES = np.zeros((30, 5, 5), np.uint8)


LABELS = np.arange(30) % 3


def digits(**options):
    return lambda tmp: ("digits", options)


def named(name, **options):
    return lambda tmp: (name, options)


def npz(**arrays):
    """An archive with these arrays; those given replace good images and labels, None leaves one out."""

    def make(tmp):
        content = {"images": IMAGES, "labels": LABELS} | arrays
        np.savez(tmp / "made.npz", **{key: value for key, value in content.items() if value is not None})
        return f"npz:{tmp / 'made.npz'}", {}

    return make


def npz_bytes(change):
    """A good archive with its bytes changed."""

    def make(tmp):
        np.savez(tmp / "made.npz", images=IMAGES, labels=LABELS)
        content = (tmp / "made.npz").read_bytes()
        (tmp / "made.npz").write_bytes(change(content))
        return f"npz:{tmp / 'made.npz'}", {}

    return make


def npz_member(content):
    """An archive whose ``images.npy`` holds these bytes."""

    def make(tmp):
        np.savez(tmp / "made.npz", labels=LABELS)
        with zipfile.ZipFile(tmp / "made.npz", "a") as archive:
            archive.writestr("images.npy", content)
        return f"npz:{tmp / 'made.npz'}", {}

    return make


def npy_header(text, version=(1, 0)):
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text.encode()


def folder(change, classes=("a", "b"), count=5, **options):
    """A good tree of images that ``change`` damages; it gets the tree."""

    def make(tmp):
        tree = image_tree(tmp / "tree", dict.fromkeys(classes, count))
        change(tree)
        return f"folder:{tree}", options

    return make


def split_folder(change):
    def make(tmp):
        for split in ("train", "test"):
            image_tree(tmp / "tree" / split, {"a": 5, "b": 5})
        change(tmp / "tree")
        return f"folder:{tmp / 'tree'}", {}

    return make


def mnist(change):
    """MNIST's files, unpacked, with ``change`` applied to the folder that holds them."""

    def make(tmp):
        change(write_mnist(tmp / "root", packed=False) / "MNIST/raw")
        return "mnist", {}

    return make


def root_is_a_file(tmp):
    (tmp / "file").write_text("x")
    return "mnist", {"data_root": tmp / "file"}


def cut(name, size):
    def change(tree):
        content = (tree / name).read_bytes()
        (tree / name).write_bytes(content[:size])

    return change


def write(name, content):
    return lambda tree: (tree / name).write_bytes(content)


def save(name, image):
    return lambda tree: image.save(tree / name)


def png_bomb(tree):
    """A PNG that claims 60,000 x 60,000 pixels in 60 bytes."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tree / "a/000.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    )


def remove_all(name):
    def change(tree):
        for file in (tree / name).iterdir():
            file.unlink()

    return change


def link(name, target):
    return lambda tree: (tree / name).symlink_to(target)


def replace_labels(raw):
    (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(40, 10, np.uint8)))


def fewer_labels(raw):
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))


def one_class_missing(raw):
    labels = mnist_arrays()["train"][1]
    (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.minimum(labels, 8)))


def other_size(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((40, 20, 20), np.uint8)))


def eps_script(tree):
    (tree / "a/000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n(/tmp/x) (w) file\n")
