"""Threat models as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.common.protocols import default_eps
from attacks.core.norms import NORMS
from envs.errors import InputError
from eval.core.threats import Threat, default_threats, format_eps, parse_eps, parse_norm


@given(st.integers(1, 255))
def test_radii_survive_writing_and_reading(step):
    assert parse_eps(format_eps(step / 255), "Linf") == pytest.approx(step / 255, abs=1e-9)


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (1.0, "1"), (0.2, "0.2"), (1.5, "1.5"), (12.0, "12")]
)
def test_radii_are_written_the_usual_way(eps, text):
    assert format_eps(eps) == text


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1/0", "eight", "8/", "", "1e400"])
def test_bad_radii_are_refused(text):
    with pytest.raises(InputError, match="eps is"):
        parse_eps(text)


def test_pixel_units_are_caught_for_linf_only():
    with pytest.raises(InputError, match="8/255"):
        parse_eps("8", "Linf")
    assert parse_eps("8", "L2") == 8.0


@pytest.mark.parametrize(
    ("text", "norm"), [("linf", "Linf"), ("INF", "Linf"), ("l2", "L2"), ("2", "L2"), ("L1", "L1")]
)
def test_norm_spellings(text, norm):
    assert parse_norm(text) == norm


def test_unknown_norm_lists_the_valid_ones():
    with pytest.raises(InputError, match="Linf, L2, L1"):
        parse_norm("L0")


@pytest.mark.parametrize("channels", [1, 3])
def test_defaults_lead_with_the_default_radius(channels):
    threats = default_threats(channels)
    assert {threat.norm for threat in threats} == {"Linf", "L2"}
    for norm in ("Linf", "L2"):
        first = next(threat for threat in threats if threat.norm == norm)
        assert first == Threat(norm, default_eps(norm, channels))
    assert all(default_eps(norm, channels) > 0 for norm in NORMS)


def test_threats_read_well():
    assert [str(threat) for threat in default_threats(3)] == ["Linf 8/255", "L2 1", "L2 0.5"]
