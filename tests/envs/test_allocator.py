"""Freed memory stays with the process, where the C library can be told so."""

import json
import os
import platform
import subprocess
import sys

import pytest

WORK = """
import json, resource
import torch
from envs.allocator import keep_freed_memory
changed = keep_freed_memory()
def work():
    for _ in range(20):
        torch.ones(8 * 2**20).add_(1)  # 32 MB, 8192 pages
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(json.dumps([changed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""

SETTINGS = """
import json
from envs.allocator import keep_freed_memory
print(json.dumps([keep_freed_memory(), 0]))
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def page_faults(work: str = WORK, **environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", work],
        capture_output=True,
        text=True,
        check=True,
        env=clean | environment,
        timeout=120,
    )
    return tuple(json.loads(done.stdout))


@pytest.mark.slow
def test_kept_memory_is_not_cleared_by_the_system_again():
    changed, faults = page_faults()
    assert changed
    assert faults < 8192  # less than one of the twenty tensors


def test_settings_of_the_environment_win():
    changed, _ = page_faults(SETTINGS, MALLOC_ARENA_MAX="2")
    assert not changed
