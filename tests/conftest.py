import os

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Without ``-n``, use up to four processes, one per core; ``-n 0`` or ``--pdb`` keep one."""
    option = config.option
    if hasattr(config, "workerinput"):
        return  # one of those processes
    if getattr(option, "numprocesses", 0) is None and not option.usepdb and not option.collectonly:
        option.numprocesses = min(len(os.sched_getaffinity(0)), 4) if hasattr(os, "sched_getaffinity") else 2


@pytest.fixture(autouse=True, scope="session")
def _data_root(tmp_path_factory):
    """Decoded copies of data sets go to a folder of the tests' own, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELBANDIT_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - Stable-Baselines3 draws from it


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
