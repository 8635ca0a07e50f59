"""The pretend GPU itself: what CUDA refuses it refuses, what CUDA waits for it counts."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.pretend_cuda import DeviceError, PretendCuda


def test_tensors_of_two_devices_are_refused_where_cuda_refuses_them(gpu):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(DeviceError, match="same device"):
        here + there
    with pytest.raises(DeviceError):
        torch.cat([here, there])
    with pytest.raises(DeviceError):
        nn.Linear(3, 2)(there)
    with pytest.raises(DeviceError):
        here.add_(torch.ones((), device="cuda"))  # would write a GPU's number into the host's memory


def test_mixtures_that_cuda_allows_are_allowed(gpu):
    there = torch.arange(4.0, device="cuda")
    assert (there + torch.tensor(1.0)).is_cuda  # a CPU scalar
    assert there[torch.tensor([1, 2])].is_cuda
    there[1] = torch.tensor(5.0)
    assert there.tolist() == [0, 5, 2, 3]


def test_marks_pass_through_views_results_modules_and_gradients(gpu):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)).cuda()
    x = torch.rand(2, 1, 4, 4, device="cuda", requires_grad=True)
    model(x).sum().backward()
    assert x.grad.is_cuda
    assert all(parameter.grad.is_cuda for parameter in model.parameters())
    assert x[0].mT.device == torch.device("cuda", 0)
    assert x.detach().flatten(1)[:, None].is_cuda
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    assert all(value.is_cuda for state in optimizer.state.values() for value in state.values() if value.ndim)
    assert model.cpu()[0].weight.device.type == "cpu"


def test_numpy_refuses_what_lies_on_the_gpu(gpu):
    there = torch.ones(3, device="cuda")
    for convert in (there.numpy, lambda: there.__array__(), lambda: np.asarray(there, np.float32)):
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            convert()
    assert there.cpu().numpy().sum() == 3


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        ("item", lambda t: t.sum().item()),
        ("bool", lambda t: bool((t > 0).any())),
        ("float", lambda t: float(t.max())),
        ("tolist", lambda t: t.tolist()),
        ("cpu", lambda t: t.cpu()),
        ("to cpu", lambda t: t.to("cpu")),
        ("nonzero", lambda t: t.nonzero()),
        ("mask", lambda t: t[t > 0]),
        ("masked write", lambda t: t.__setitem__(t > 0, t[:1])),
        ("from the host", lambda t: t.copy_(torch.ones(3))),
        ("new from a list", lambda t: torch.tensor([1.0, 2.0], device="cuda")),
        ("as_tensor", lambda t: torch.as_tensor(np.ones(3), device=t.device)),
        ("unique", lambda t: t.unique()),
        ("equal", lambda t: torch.equal(t, t + 1)),
        ("multinomial", lambda t: t.multinomial(1)),
        ("synchronize", lambda t: torch.cuda.synchronize()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wait_is_counted_and_can_be_forbidden(gpu, kind, ask):
    tensor = torch.ones(3, device="cuda")
    with gpu.counting() as events:
        ask(tensor)
    assert events.wait_count >= 1, kind
    with gpu.waits_forbidden(), pytest.raises(AssertionError, match="waits for the GPU"):
        ask(tensor)


def test_arithmetic_masks_and_asynchronous_copies_do_not_wait(gpu):
    tensor = torch.ones(3, device="cuda")
    with gpu.waits_forbidden():
        torch.where(tensor > 0, tensor, 0).masked_fill_(tensor > 1, 2.0)
        tensor[tensor > 1] = 0.0
        tensor.index_select(0, torch.zeros(2, dtype=torch.int64, device="cuda")).sort()
        torch.ones(3).to("cuda", non_blocking=True)
        torch.full((3,), 2.0, device=tensor.device).uniform_().argmax()


def test_waits_are_charged_to_the_line_of_the_project(gpu):
    from agents.training.validation import evaluate
    from envs import load_dataset

    data = load_dataset("digits", "test").to("cuda")
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).cuda()
    with gpu.counting() as events:
        evaluate(classifier, data)
    assert [place.rpartition(":")[0] for _, place in events.waits] == ["agents/training/validation.py"]
    with gpu.waits_forbidden(), pytest.raises(AssertionError, match=r"validation\.py:\d+"):
        evaluate(classifier, data)


def test_launches_count_kernels_and_not_views(gpu):
    tensor = torch.ones(4, device="cuda")
    with gpu.counting() as events:
        tensor.view(2, 2).t()[None].expand(3, 2, 2).add(1).mul_(2)
    assert dict(events.launches) == {"add": 1, "mul_": 1}


def test_results_are_the_cpus(gpu):
    x = torch.rand(5, 3)
    model = nn.Linear(3, 2)
    expected = model(x)
    assert torch.equal(model.cuda()(x.cuda()).cpu(), expected)


def test_nothing_stays_behind():
    with PretendCuda():
        assert torch.cuda.is_available()
        tensor = torch.ones(2, device="cuda")
    assert tensor.device.type == "cpu"
    assert not tensor.is_cuda
    assert not isinstance(vars(torch.Tensor).get("device"), property)


def test_an_unknown_gpu_is_refused():
    with PretendCuda(devices=2), pytest.raises(RuntimeError, match="invalid device"):
        torch.ones(1, device="cuda:2")
