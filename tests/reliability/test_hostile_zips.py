"""Zips of policies made to do harm: see `tests.support.hostile_files`."""

import base64
import collections
import io
import json
import pickle
import stat
import struct
import zipfile

import pytest
import torch
from torch import nn

from agents.models.classifier_files import load_classifier
from tests.support.hostile_files import (
    PICKLE,
    Payload,
    load_or_refuse,
    refused,
    spec_tensor,
    torch_bytes,
    weights,
    zip_bytes,
)

pytestmark = [
    pytest.mark.usefixtures("nothing_happens"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor"),
]


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
