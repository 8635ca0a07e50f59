"""Files made to do harm, and the assertion that loading them does none."""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch

from agents.models.classifier import new_classifier
from agents.models.classifier_files import load_classifier
from envs.errors import InputError

SHAPE, CLASSES = (1, 4, 4), 3


class Payload:
    """Unpickled, it creates the file ``canary`` in the working directory."""

    def __reduce__(self):
        return os.system, ("touch canary",)


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


def with_spec(valid, **fields):
    header, tail = header_of(valid)
    spec = json.loads(header["__metadata__"]["spec"]) | fields
    header["__metadata__"]["spec"] = json.dumps(spec)
    return with_header(header, tail)


PICKLE = pickle.dumps({"a": Payload()})


def spec_tensor(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
