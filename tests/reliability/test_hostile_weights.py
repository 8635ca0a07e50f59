"""Files made to do harm: loading them executes nothing, writes nothing, takes little memory, and says one line."""

import json
import os
import struct
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.models.classifier import new_classifier
from agents.models.classifier_files import FORMAT, load_classifier, save_classifier
from agents.models.extraction import extract_classifier
from envs.errors import InputError
from tests.support.hostile_files import (
    CLASSES,
    PICKLE,
    SHAPE,
    header_of,
    load_or_refuse,
    refused,
    spec_tensor,
    torch_bytes,
    weights,
    with_header,
    with_spec,
    zip_bytes,
)

pytestmark = [
    pytest.mark.usefixtures("nothing_happens"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor"),
]


@pytest.fixture
def valid(tmp_path):
    """Return the bytes of a valid weights file."""
    torch.manual_seed(0)
    save_classifier(new_classifier(SHAPE, CLASSES, "mlp"), tmp_path / "valid.safetensors")
    return (tmp_path / "valid.safetensors").read_bytes()


def test_the_valid_files_of_this_corpus_load(valid, tmp_path):
    (tmp_path / "valid.zip").write_bytes(zip_bytes())
    images = torch.rand(5, *SHAPE)
    loaded = [load_classifier(tmp_path / f"valid.{suffix}") for suffix in ("zip", "safetensors")]
    assert torch.equal(loaded[0](images), loaded[1](images))


@pytest.fixture
def canary_module(tmp_path, monkeypatch):
    """Return the name of a module that can be imported and must not be."""
    (tmp_path / "canary_module.py").write_text("open('canary', 'w').close()\n\ndef build(shape): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "canary_module"
    assert "canary_module" not in sys.modules


@pytest.mark.parametrize(
    "path", ["canary_module:build", "os:system", "builtins:exec", "agents.models.image_network:small"]
)
def test_import_paths_in_files_are_not_imported(path, valid, canary_module, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "network": path}))
    (tmp_path / "model.safetensors").write_bytes(with_spec(valid, network=path))
    refused(tmp_path, "never imported")
    spec = {"version": 1, "network": path, "shape": SHAPE}
    state = weights() | {"features_extractor.spec": spec_tensor(json.dumps(spec))}
    (tmp_path / "model.zip").write_bytes(zip_bytes(policy=torch_bytes(state)))
    refused(tmp_path / "model.zip", "never imported")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "version '2', expected 1; use the labelbandit"),
        ({"version": None}, "version"),
        ({"version": [1]}, "version"),
        ({"network": 3}, "network is '3'"),
        ({"network": ""}, "network is"),
        ({"network": "x" * 10_000}, "network is"),
        ({"network": "../../etc/passwd"}, "unknown network"),
        ({"network": "resnet18"}, "of another network"),
        ({"shape": [1, 4]}, "shape is"),
        ({"shape": [1, 4, -4]}, "shape is"),
        ({"shape": [1, 4, 4.0]}, "shape is"),
        ({"shape": [True, 4, 4]}, "shape is"),
        ({"shape": [1, 2**40, 2**40]}, "shape is"),
        ({"shape": [2**11, 2**11, 2**11]}, "shape is"),
        ({"shape": [3, 1000, 1000]}, r"expects torch.float32 \((3,|128, 3000000)\)"),
        ({"shape": [3, 1000, 1000], "network": "cnn4"}, "of another network"),
        ({"num_classes": 0}, "num_classes is '0'"),
        ({"num_classes": 10**12}, "num_classes is"),
        ({"num_classes": 4}, "head.bias|head.weight"),
        ({"num_classes": "3"}, "num_classes is"),
        ({"hidden": "ReLU"}, "hidden is"),
        ({"hidden": [2**20]}, "hidden is"),
        ({"hidden": [2**16] * 32}, "lacks tensor"),
        ({"hidden": ["Transformer"]}, "hidden is"),
        ({"hidden": [[["ReLU"]]]}, "hidden is"),
        ({"hidden": [8] * 33}, "hidden is"),
    ],
)
def test_wrong_descriptions(fields, message, valid, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(with_spec(valid, **fields))
    refused(tmp_path, message)


def test_wrong_headers(valid, tmp_path):
    header, tail = header_of(valid)
    metadata = header["__metadata__"]
    name = "head.bias"
    corpus = [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**24) + b"{}",
        with_header(b"[" * 100_000, b""),
        with_header(b"\xff\xff", b""),
        with_header(b"{}", b""),
        with_header(b"[]", b""),
        with_header({"__metadata__": metadata}, tail),
        with_header({key: value for key, value in header.items() if key != "__metadata__"}, tail),
        with_header(header | {"__metadata__": {"format": "pt"}}, tail),
        with_header(header | {"__metadata__": metadata | {"format": "labelbandit-classifier-9"}}, tail),
        with_header(header | {"__metadata__": metadata | {"spec": "{"}}, tail),
        with_header(header | {"__metadata__": metadata | {"spec": "[" * 100_000}}, tail),
        with_header(header | {"__metadata__": 3}, tail),
        with_header(header, tail[:-1]),
        with_header(header, tail + b"\0"),
        with_header(header | {name: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, tail),
        with_header(
            header | {name: {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 12]}}, tail
        ),
        with_header(header | {name: {"dtype": "F32", "shape": [-3], "data_offsets": [0, 12]}}, tail),
        with_header(header | {name: {"dtype": "F32", "shape": [3], "data_offsets": [12, 0]}}, tail),
        with_header(header | {name: {"dtype": "PICKLE", "shape": [3], "data_offsets": [0, 12]}}, tail),
        with_header(header | {"copy": header[name]}, tail),
        with_header(json.dumps(header).encode().replace(b'"head.bias"', b'"head.weight"'), tail),
        PICKLE,
        zip_bytes(),
    ]
    for content in corpus:
        (tmp_path / "model.safetensors").write_bytes(content)
        refused(tmp_path, "is no safetensors file")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.bool, torch.complex64]
)
def test_other_number_formats(dtype, valid, tmp_path):
    header, _ = header_of(valid)
    state = safetensors.torch.load(valid)
    state["head.bias"] = state["head.bias"].to(dtype)
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(state, header["__metadata__"]))
    refused(tmp_path, r"head.bias is .*expects torch.float32 \(3,\)")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["head.bias", "body.mean", "body.network.1.weight"])
def test_weights_that_are_no_numbers(name, value, valid, tmp_path):
    header, _ = header_of(valid)
    state = safetensors.torch.load(valid)
    state[name].view(-1)[0] = value
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(state, header["__metadata__"]))
    refused(tmp_path, f"{name} has NaN or infinite values")


def test_special_files(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    refused(tmp_path, "no weights at")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("/dev/zero")
    refused(tmp_path, "no weights at")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    refused(tmp_path)
    (tmp_path / "loop.zip").mkdir()
    refused(tmp_path / "loop.zip", "no weights at")
    refused(tmp_path / "nul\0byte", "no weights at")
    refused(tmp_path / ("long" * 70), "no weights at")


def test_huge_sparse_files(tmp_path):
    for name in ("model.safetensors", "model.zip"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
        refused(tmp_path / name, "bytes; at most")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["model.safetensors", "model.zip"])
def test_unreadable_files(name, tmp_path):
    (tmp_path / name).touch(mode=0)
    refused(tmp_path / name, "check .*its permissions")


FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


@FUZZ
@given(data=st.data())
def test_fuzzed_safetensors(data, valid, tmp_path):
    content = bytearray(valid)
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.one_of(st.none(), st.integers(0, len(content)))) :]
    (tmp_path / "model.safetensors").write_bytes(content)
    load_or_refuse(tmp_path / "model.safetensors")


ZIP = zip_bytes()


@FUZZ
@given(data=st.data())
def test_fuzzed_zips(data, tmp_path):
    content = bytearray(ZIP)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.one_of(st.none(), st.integers(0, len(content)))) :]
    (tmp_path / "model.zip").write_bytes(content)
    load_or_refuse(tmp_path / "model.zip")


INNER = torch_bytes(weights())


@pytest.mark.slow
@FUZZ
@given(data=st.data())
def test_fuzzed_pickles_in_the_zip(data, tmp_path):
    # The pickled program stands at the beginning of the archive; the checksum of the outer zip stays right.
    content = bytearray(INNER)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 2500))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.zip").write_bytes(zip_bytes(policy=bytes(content)))
    load_or_refuse(tmp_path / "model.zip")


def test_extraction_of_hostile_names_is_harmless(tmp_path):
    classifier = new_classifier(SHAPE, CLASSES, "mlp")
    classifier.body.network_name = "os:system"
    save_classifier(classifier, tmp_path / "model.safetensors")
    refused(tmp_path, "never imported")
    assert FORMAT.encode() in (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(InputError):
        extract_classifier(classifier)
