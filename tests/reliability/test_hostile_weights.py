"""Files made to do harm: loading them executes nothing, writes nothing, takes little memory, and says one line."""

import base64
import collections
import io
import json
import os
import pickle
import resource
import stat
import struct
import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from agents.models.classifier import new_classifier
from agents.models.classifier_files import FORMAT, load_classifier, save_classifier
from agents.models.extraction import extract_classifier
from envs.errors import InputError

SHAPE, CLASSES = (1, 4, 4), 3


class Payload:
    """Unpickled, it creates the file ``canary`` in the working directory."""

    def __reduce__(self):
        return os.system, ("touch canary",)


pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor"),
]


@pytest.fixture(autouse=True)
def nothing_happens(tmp_path, monkeypatch):
    """Run in an empty directory; afterwards nothing was executed there, and memory has not exploded."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert not (tmp_path / "canary").exists()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 * 2**10, f"{grown} KiB"


def refused(path, message="."):
    with pytest.raises(InputError, match=message) as caught:
        load_classifier(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def load_or_refuse(path):
    try:
        classifier = load_classifier(path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert classifier(torch.rand(2, *classifier.shape)).shape == (2, classifier.num_classes)


def weights():
    """Return the state dict of an SB3 actor-critic policy with an ImageNetwork of kind mlp."""
    torch.manual_seed(0)
    classifier = new_classifier(SHAPE, CLASSES, "mlp")
    names = {"body.": "features_extractor.", "head.": "action_net."}
    state = {}
    for name, tensor in classifier.state_dict().items():
        prefix = name.split(".")[0] + "."
        state[names[prefix] + name.removeprefix(prefix)] = tensor
    return state | {"value_net.weight": torch.zeros(1, 128), "value_net.bias": torch.zeros(1)}


def torch_bytes(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zip_bytes(members=None, compression=zipfile.ZIP_STORED, **replaced):
    """Return an SB3 zip of the members; ``policy`` and ``data`` replace those of a valid one, None leaves out."""
    contents = {"data": b"{}", "policy.pth": torch_bytes(weights()), "_stable_baselines3_version": b"2.9.2"}
    contents |= members or {}
    for name, key in (("data", "data"), ("policy.pth", "policy")):
        contents[name] = replaced.get(key, contents[name])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)
    return file.getvalue()


def header_of(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, tail):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tail


@pytest.fixture
def valid(tmp_path):
    """Return the bytes of a valid weights file."""
    torch.manual_seed(0)
    save_classifier(new_classifier(SHAPE, CLASSES, "mlp"), tmp_path / "valid.safetensors")
    return (tmp_path / "valid.safetensors").read_bytes()


def with_spec(valid, **fields):
    header, tail = header_of(valid)
    spec = json.loads(header["__metadata__"]["spec"]) | fields
    header["__metadata__"]["spec"] = json.dumps(spec)
    return with_header(header, tail)


def test_the_valid_files_of_this_corpus_load(valid, tmp_path):
    (tmp_path / "valid.zip").write_bytes(zip_bytes())
    images = torch.rand(5, *SHAPE)
    loaded = [load_classifier(tmp_path / f"valid.{suffix}") for suffix in ("zip", "safetensors")]
    assert torch.equal(loaded[0](images), loaded[1](images))


PICKLE = pickle.dumps({"a": Payload()})
POLICIES = {
    "bare pickle": PICKLE,
    "payload in a torch archive": torch_bytes({"features_extractor.spec": Payload()}),
    "payload beside tensors": torch_bytes(weights() | {"x": Payload()}),
    "payload in the old format": torch_bytes(Payload(), _use_new_zipfile_serialization=False),
    "payload as pickle protocol 4": torch_bytes(Payload(), pickle_protocol=4),
    "whole module": torch_bytes(nn.Linear(2, 2)),
    "not a dictionary": torch_bytes([torch.zeros(3)]),
    "numbers for tensors": torch_bytes({"action_net.weight": 3}),
    "numbers for names": torch_bytes({3: torch.zeros(3)}),
    "nothing": b"",
    "text": b"hello",
    "meta tensors": torch_bytes({"action_net.weight": torch.zeros(2, 2, device="meta")}),
    "sparse tensors": torch_bytes({"action_net.weight": torch.eye(3).to_sparse()}),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_policies_that_are_no_tensors(kind, tmp_path):
    (tmp_path / "model.zip").write_bytes(zip_bytes(policy=POLICIES[kind]))
    refused(tmp_path / "model.zip", r"policy\.pth in")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    (tmp_path / "model.zip").write_bytes(zip_bytes(policy=file.getvalue()))
    refused(tmp_path / "model.zip", r"policy\.pth in")


def test_other_pickles_in_the_zip_are_never_read(tmp_path):
    serialised = {":type:": "dict", ":serialized:": base64.b64encode(PICKLE).decode()}
    data = dict.fromkeys(("policy_class", "policy_kwargs", "observation_space", "lr_schedule"), serialised)
    members = dict.fromkeys(("policy.optimizer.pth", "pytorch_variables.pth", "tensors.pth"), PICKLE)
    (tmp_path / "model.zip").write_bytes(zip_bytes(members, data=json.dumps(data)))
    assert load_classifier(tmp_path / "model.zip").network == "mlp"


def test_paths_in_the_zip_lead_nowhere(tmp_path):
    inside = tmp_path / "deep"
    inside.mkdir()
    members = dict.fromkeys(
        ("../canary", "/canary", "a/../../canary", "..\\canary", "policy.pth/canary"), b"x"
    )
    (inside / "model.zip").write_bytes(zip_bytes(members))
    load_classifier(inside / "model.zip")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["deep", "model.zip"]
    (inside / "model.zip").write_bytes(zip_bytes({"../policy.pth": zip_bytes()}, policy=None))
    refused(inside / "model.zip", "0 entries called 'policy.pth'")


def test_symbolic_links_in_the_zip_are_plain_bytes(tmp_path):
    save = tmp_path / "real.pth"
    save.write_bytes(torch_bytes(weights()))
    link = zipfile.ZipInfo("policy.pth")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr(link, str(save))
        archive.writestr("data", "{}")
    refused(tmp_path / "model.zip", r"policy\.pth in")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_policies_are_one_too_many(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for content in (torch_bytes(weights()), PICKLE):
            archive.writestr("policy.pth", content)
    refused(tmp_path / "model.zip", "2 entries called 'policy.pth'")


@pytest.mark.parametrize("member", ["policy", "data"])
def test_zip_bombs(member, tmp_path):
    bomb = zip_bytes(compression=zipfile.ZIP_DEFLATED, **{member: b"\0" * 2**25})
    assert len(bomb) < 2**18
    (tmp_path / "model.zip").write_bytes(bomb)
    refused(tmp_path / "model.zip", "would grow from")


def test_zip_bombs_in_the_archive_of_tensors(tmp_path):
    plain = zipfile.ZipFile(io.BytesIO(torch_bytes({"x": torch.zeros(2**23)})))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry))
    (tmp_path / "model.zip").write_bytes(zip_bytes(policy=file.getvalue()))
    refused(tmp_path / "model.zip", "compressed records")


@pytest.mark.slow
def test_crowded_zips(tmp_path):
    (tmp_path / "model.zip").write_bytes(zip_bytes({str(number): b"" for number in range(40_000)}))
    refused(tmp_path / "model.zip", "over 32768 entries")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compressions(method, tmp_path):
    (tmp_path / "model.zip").write_bytes(zip_bytes(compression=method))
    refused(tmp_path / "model.zip", "compression method")


def test_lies_about_sizes(tmp_path):
    content = bytearray(zip_bytes())
    # In the table of contents the uncompressed size stands 22 bytes before the name.
    at = content.rindex(b"policy.pth") - 22
    for size in (2**31, 2**24, 10):
        content[at : at + 4] = struct.pack("<I", size)
        (tmp_path / "model.zip").write_bytes(content)
        load_or_refuse(tmp_path / "model.zip")
    refused(tmp_path / "model.zip", "is damaged")


def test_encrypted_members(tmp_path):
    content = bytearray(zip_bytes())
    at = content.index(b"PK\x01\x02")
    while at >= 0:
        content[at + 8] |= 1
        at = content.find(b"PK\x01\x02", at + 4)
    (tmp_path / "model.zip").write_bytes(content)
    refused(tmp_path / "model.zip")


class Storage:
    """Stands for the memory of a tensor in a hand-made archive."""


class Tensor:
    """A tensor with a size and strides that its memory need not allow."""

    def __init__(self, size, stride, offset=0):
        self.arguments = (Storage(), offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def forged(value, numel=4):
    """Return a torch archive of ``value`` with one storage of 16 bytes, said to hold ``numel`` floats."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(thing, Storage) else None

    stream, file = io.BytesIO(), io.BytesIO()
    Pickler(stream, protocol=2).dump(value)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", stream.getvalue()), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/data/0", b"\0" * 16)
    return file.getvalue()


@pytest.mark.parametrize(
    ("tensor", "numel"),
    [
        (Tensor((4,), (1,)), 2**40),
        (Tensor((2**38,), (1,)), 4),
        (Tensor((2**40,), (0,)), 4),
        (Tensor((2**17, 2**17), (0, 0)), 4),
        (Tensor((4,), (1,), 2**50), 4),
        (Tensor((4,), (2**50,)), 4),
        (Tensor((-4,), (1,)), 4),
        (Tensor((4,), (-1,)), 4),
        (Tensor((2**62, 4), (0, 0)), 4),
    ],
)
def test_tensors_larger_than_their_memory(tensor, numel, tmp_path):
    for name in ("action_net.weight", "features_extractor.spec", "other"):
        (tmp_path / "model.zip").write_bytes(zip_bytes(policy=forged({name: tensor}, numel)))
        refused(tmp_path / "model.zip", r"policy\.pth in")


def test_forging_works(tmp_path):
    (tmp_path / "model.zip").write_bytes(zip_bytes(policy=forged({"other": Tensor((2, 2), (2, 1))})))
    refused(tmp_path / "model.zip", "holds no classifier")


def spec_tensor(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features_extractor.spec": spec_tensor("{")}, "is no JSON"),
        ({"features_extractor.spec": spec_tensor("[" * 4000)}, "is no JSON"),
        ({"features_extractor.spec": spec_tensor("[]")}, "version 'None'"),
        ({"features_extractor.spec": spec_tensor('{"version": 2}')}, "version '2', expected 1"),
        ({"features_extractor.spec": torch.zeros(9000, dtype=torch.uint8)}, "no JSON text"),
        ({"features_extractor.spec": torch.zeros(5)}, "no JSON text"),
        ({"features_extractor.spec": torch.tensor(5, dtype=torch.uint8)}, "no JSON text"),
        ({"features_extractor.spec": None}, "neither ImageNetwork nor NatureCNN"),
        ({"action_net.weight": torch.tensor(3.0)}, "num_classes is '0'"),
        ({"action_net.weight": torch.zeros(3, 127)}, r"head.weight is torch.float32 \(3, 127\)"),
        ({"action_net.weight": torch.full((3, 128), torch.nan)}, "NaN or infinite"),
        ({"action_net.bias": torch.zeros(3, dtype=torch.int64)}, "expects torch.float32"),
        ({"action_net.bias": torch.zeros(3, dtype=torch.complex64)}, "expects torch.float32"),
        ({"action_net.bias": None}, "lacks tensor 'head.bias'"),
        ({"action_net.more": torch.zeros(1)}, "unexpected tensor 'head.more'"),
        ({"features_extractor.std": torch.zeros(1)}, "not positive"),
        ({"mlp_extractor.policy_net.0.weight": torch.zeros(5)}, "hidden.0"),
        ({"mlp_extractor.policy_net.99.weight": torch.zeros(5, 5)}, "hidden is"),
        ({"mlp_extractor.policy_net.0.weight": torch.zeros(0, 5)}, "hidden is"),
        ({"mlp_extractor.policy_net.99999999999.weight": torch.zeros(5, 5)}, "unexpected tensor"),
    ],
)
def test_wrong_tensors_in_a_policy(changes, message, tmp_path):
    state = {name: tensor for name, tensor in (weights() | changes).items() if tensor is not None}
    (tmp_path / "model.zip").write_bytes(zip_bytes(policy=torch_bytes(state)))
    refused(tmp_path / "model.zip", message)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1e99999}{', None, b"9" * 10_000]
)
def test_wrong_descriptions_in_a_policy(data, tmp_path):
    (tmp_path / "model.zip").write_bytes(zip_bytes(data=data))
    refused(tmp_path / "model.zip", "data in|entries called 'data'")


def test_hostile_text_in_descriptions(tmp_path):
    state = weights() | {
        "mlp_extractor.policy_net.0.weight": torch.zeros(128, 128),
        "mlp_extractor.policy_net.0.bias": torch.zeros(128),
    }
    for text in (
        "<class 'os.system'>",
        "<class 'torch.nn.modules.activation.MultiheadAttention'>",
        "__import__'>",
    ):
        data = json.dumps({"policy_kwargs": {"activation_fn": text}})
        (tmp_path / "model.zip").write_bytes(zip_bytes(policy=torch_bytes(state), data=data))
        refused(tmp_path / "model.zip", "activation_fn is")


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
