"""Which GPU works, in which precision and memory layout."""

import multiprocessing

import pytest
import torch
from torch import nn

import attacks
from agents.common.precision import tf32, uses_tf32
from agents.common.run_dir import device_name, resolve_device
from attacks.core.model_state import takes_channels_last
from eval.study.run.engines import even_share, prepare_worker
from tests.support.pretend_cuda import PretendCuda


@pytest.fixture(autouse=True)
def _pytorchs_own_precision():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_tf32_is_set_inside_and_restored():
    torch.backends.cudnn.allow_tf32 = True
    with tf32(False):
        assert not uses_tf32()
        with tf32(True):
            assert torch.backends.cuda.matmul.allow_tf32
        assert not uses_tf32()
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_record_of_a_gpu_says_whether_tf32_was_on(gpu):
    with tf32(False):
        assert device_name("cuda") == "Pretend GPU, TF32 off"
        assert device_name("cuda", tf32=True) == "Pretend GPU, TF32 on"
    assert "TF32" not in device_name("cpu")


def test_auto_is_the_gpu_where_there_is_one(gpu):
    assert resolve_device("auto").type == "cuda"


def test_workers_of_a_pool_get_the_gpus_in_turn():
    counter, found = multiprocessing.get_context("spawn").Value("i", 0), []
    for _ in range(5):
        with PretendCuda(devices=2):
            prepare_worker(1, counter)
            found.append(torch.cuda.current_device())
    assert found == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("gpus", "jobs", "share"), [(0, 8, 0), (1, 1, 1), (4, 2, 1), (2, 3, 1 / 2), (1, 4, 1 / 4), (1, 64, 1 / 4)]
)
def test_ray_deals_gpus_evenly_and_at_most_four_jobs_to_one(gpus, jobs, share):
    assert even_share(gpus, jobs) == share


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def test_attacks_on_a_gpu_lay_the_model_out_for_tensor_cores(gpu):
    seen = set()
    model, x = network().cuda(), torch.rand(4, 1, 8, 8, device="cuda")
    hook = model[0].register_forward_hook(
        lambda layer, images, output: seen.add(layer.weight.is_contiguous(memory_format=torch.channels_last))
    )
    y = model(x).argmax(1)
    seen.clear()
    with tf32(True):
        assert takes_channels_last(model, x)
        attacks.pgd(model, x, y, norm="Linf", eps=0.1, steps=3)
    assert True in seen
    hook.remove()
    with tf32(False):
        assert not takes_channels_last(model, x)  # without tensor cores nothing is known to be gained
    assert takes_channels_last(network().cuda().bfloat16(), x.bfloat16())
