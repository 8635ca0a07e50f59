"""Command lines read their options before PyTorch is imported: help must not wait for it."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys
from agents.presets import preset_from
for name in ("attack", "audit", "export", "mechanism", "report", "robustness", "study", "trajectory", "transfer"):
    importlib.import_module(f"eval.{name}.options")
import agents, agents.train, attacks, envs, eval.audit
preset_from(["--preset", "digits-ppo"])
print(*({"torch", "stable_baselines3", "matplotlib", "scipy", "sklearn", "tensorboard"} & set(sys.modules)))
from attacks.autoattack.versions import VERSIONS
from attacks import autoattack
assert autoattack.__name__ == "autoattack" and autoattack is attacks.autoattack is not sys.modules["attacks.autoattack"]
assert {"autoattack", "pgd"} <= set(dir(attacks))
"""


@pytest.mark.slow
def test_options_are_read_without_pytorch():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == ""


def test_a_name_that_a_package_lacks_is_an_attribute_error():
    import agents
    import attacks
    import envs

    for package in (agents, attacks, envs):
        with pytest.raises(AttributeError, match="nonsense"):
            package.nonsense  # noqa: B018
