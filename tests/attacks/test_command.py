"""AutoAttack's versions and stages by name, on the command line and in the battery."""

import pytest

from attacks.autoattack.versions import STAGES, VERSIONS
from envs.errors import InputError
from eval.attack.command import parse_version
from eval.core.threats import Threat
from eval.robustness.suite import battery


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_are_words(version):
    assert parse_version(version) == version


def test_stages_of_ones_own_are_a_list_in_their_order():
    assert parse_version("square") == ["square"]
    assert parse_version(",".join(reversed(STAGES))) == list(reversed(STAGES))


@pytest.mark.parametrize("text", ["quick", "apgd-ce,,square", "standard,square", ""])
def test_anything_else_is_told_with_what_there_is(text):
    with pytest.raises(InputError, match=r"standard.*apgd-ce"):
        parse_version(text)


@pytest.mark.parametrize("name", VERSIONS[1:])
def test_the_battery_knows_the_versions(name):
    ((label, spec),) = battery([name], [Threat("Linf", 0.1)])
    assert (label, spec.name, spec.options) == (name, "autoattack", {"version": name})


def test_standard_is_autoattack_itself():
    ((_, spec),) = battery(["autoattack"], [Threat("Linf", 0.1)])
    assert spec.record()["version"] == "standard"
