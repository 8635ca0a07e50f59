"""Damaged files of every format end in a clear error or in images, never in anything else."""

import gzip
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from envs.data.cifar import read_batch, read_class_names
from envs.data.images import decode, read_header
from envs.data.npz import npz_source
from envs.data.published import read_idx
from envs.errors import InputError
from tests.support.data_files import idx_bytes

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(9) % 3


def archive(save: Callable) -> bytes:
    buffer = io.BytesIO()
    save(buffer, images=PIXELS, labels=LABELS, classes=np.array(["a", "b", "c"]))
    return buffer.getvalue()


def image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, kind)
    return buffer.getvalue()


def load_npz(path: Path) -> None:
    npz_source("made", path, None).decode(lambda split, shape: np.empty(shape, dtype=np.uint8))


def load_image(path: Path) -> None:
    if max(read_header(str(path))[:2]) < 5000:
        decode(str(path), 3, 4)


def load_batch(path: Path) -> None:
    read_batch(path, "labels", 3)


VALID = {
    "npz": (archive(np.savez), load_npz),
    "npz packed": (archive(np.savez_compressed), load_npz),
    "idx": (idx_bytes(PIXELS[..., 0]), lambda path: read_idx(path, 3)),
    "idx.gz": (gzip.compress(idx_bytes(LABELS.astype(np.uint8))), lambda path: read_idx(path, 1)),
    "batch": (
        pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 2]}, protocol=2),
        load_batch,
    ),
    "batch 4": (
        pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 2]}, protocol=4),
        load_batch,
    ),
    "meta": (pickle.dumps({"names": ["a", "b"]}, protocol=2), lambda path: read_class_names(path, "names")),
    **{kind: (image(kind), load_image) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")},
}


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """The content with bytes changed, removed, inserted or cut off; mostly near the start, where headers are."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        reach = len(result) if draw(st.booleans()) else min(len(result), 300)
        place = draw(st.integers(0, max(reach - 1, 0)))
        match draw(st.sampled_from(["change", "number", "insert", "remove", "cut"])):
            case "change":
                result[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                result[place : place + 4] = draw(
                    st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
                )
            case "insert":
                result[place:place] = draw(st.binary(max_size=8))
            case "remove":
                del result[place : place + draw(st.integers(1, 40))]
            case "cut":
                del result[place:]
    return bytes(result)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", VALID)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_end_in_clear_errors(kind, data, tmp_path):
    content, load = VALID[kind]
    path = tmp_path / ("x.gz" if kind.endswith("gz") else "x")
    path.write_bytes(data.draw(damaged(content)))
    with suppress(InputError):
        load(path)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=400), kind=st.sampled_from(sorted(VALID)))
def test_noise_ends_in_clear_errors(content, kind, tmp_path):
    path = tmp_path / ("x.gz" if kind.endswith("gz") else "x")
    path.write_bytes(content)
    with pytest.raises(InputError):
        VALID[kind][1](path)


@pytest.mark.parametrize("kind", VALID)
def test_what_is_damaged_was_sound(kind, tmp_path):
    path = tmp_path / ("x.gz" if kind.endswith("gz") else "x")
    path.write_bytes(VALID[kind][0])
    VALID[kind][1](path)
