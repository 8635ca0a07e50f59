import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # also in processes that tests start; PyTorch reads it when imported

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Without ``-n``, use up to four processes, one per core; ``-n 0`` or ``--pdb`` keep one.

    Every process begins with tests that follow each other, so that most fixtures of a file are made once.
    """
    option = config.option
    if hasattr(config, "workerinput"):
        return  # one of those processes
    if getattr(option, "numprocesses", 0) is None and not option.usepdb and not option.collectonly:
        option.numprocesses = min(len(os.sched_getaffinity(0)), 4) if hasattr(os, "sched_getaffinity") else 2
        option.dist = "worksteal" if option.dist == "no" else option.dist


@pytest.fixture(autouse=True, scope="session")
def _data_root(tmp_path_factory):
    """Decoded copies of data sets go to a folder of the tests' own, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELBANDIT_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """Files are written but not flushed: the tests kill processes, never the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - Stable-Baselines3 draws from it
    threads = torch.get_num_threads()
    yield
    # Two processes of two threads each wait for each other: all later tests of this one would take three times as long.
    assert torch.get_num_threads() == threads, "the test has left PyTorch with another number of threads"


@pytest.fixture
def pictures_undrawn(monkeypatch):
    """Figures are made, and saved as one pixel: to draw them takes seconds, and `test_pictures` does it."""
    from matplotlib.figure import Figure
    from PIL import Image

    def save(figure, buffer, **options):
        Image.new("RGB", (1, 1)).save(buffer, "PNG")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def event_files_in_order(monkeypatch):
    """Files of events that are written within one second are read in the order in which they were written."""
    from tests.support.agent_runs import name_event_files_in_order

    name_event_files_in_order(monkeypatch)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The directory of a finished run: digits, network ``small``, 95 % or more of the test images right."""
    from agents.config import TrainConfig
    from agents.training.run import train

    path = tmp_path_factory.mktemp("digits") / "run"
    config = TrainConfig(algo="supervised", total_images=8_000, attack=False, progress=False, run_dir=path)
    return train(config).path
