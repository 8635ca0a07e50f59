"""Threat models: a norm and a radius, their notation, and the defaults for grey and colour images."""

import math
from dataclasses import dataclass

from agents.common.command_line import parse_number
from agents.common.plain_numbers import PlainNumbers
from agents.common.protocols import default_eps
from envs.errors import InputError, unknown_name

_SPELLINGS = {"linf": "Linf", "inf": "Linf", "l2": "L2", "2": "L2", "l1": "L1", "1": "L1"}


@dataclass(frozen=True)
class Threat(PlainNumbers):
    """All perturbations of at most ``eps`` in ``norm``, of images in [0, 1]."""

    norm: str
    eps: float

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"

    @property
    def slug(self) -> str:
        """Part of a file's name, such as ``L2-0.5``."""
        return f"{self.norm}-{self.eps:.4g}"


# Radii that the literature reports: Linf 0.1 and L2 1.5 for digits and MNIST-like greyscale images; for
# colour, Linf 8/255, L2 1.0, the radius of Zou et al. 2026 (arXiv 2606.12251), and L2 0.5 (RobustBench).
GREY_THREATS = (Threat("Linf", 0.1), Threat("L2", 1.5))
COLOUR_THREATS = (Threat("Linf", 8 / 255), Threat("L2", 1.0), Threat("L2", 0.5))


def default_threats(channels: int) -> tuple[Threat, ...]:
    """Return the threat models reported by default for images with this many channels."""
    return COLOUR_THREATS if channels == 3 else GREY_THREATS


def parse_norm(text: str) -> str:
    """Return ``Linf``, ``L2`` or ``L1`` for any usual spelling of it; an InputError names them for others."""
    norm = _SPELLINGS.get(text.strip().lower())
    if norm is None:
        raise unknown_name("norm", text, tuple(dict.fromkeys(_SPELLINGS.values())))
    return norm


def parse_eps(text: str, norm: str = "L2") -> float:
    """Return the radius written as a number or a fraction, such as ``0.5`` or ``8/255``.

    Raises InputError where it is not a finite positive number, or above 1 for Linf (pixels lie in [0, 1]).
    """
    try:
        eps = parse_number(text)
    except ValueError:
        raise InputError(f"eps is {text!r}; expected a number or a fraction such as 0.5 or 8/255") from None
    if not math.isfinite(eps) or eps <= 0:
        raise InputError(f"eps is {text}; expected a finite number above 0")
    if norm == "Linf" and eps > 1:
        raise InputError(f"eps is {text} for Linf, but pixels lie in [0, 1]; write it as a fraction, 8/255")
    return eps


def format_eps(eps: float) -> str:
    """Return a radius as people write it: multiples of 1/255 as fractions, else up to four digits."""
    steps = eps * 255
    # Radii that short decimals express (0.2, 0.4, 1.0) are multiples of 1/255 too: prefer the decimal.
    if abs(steps - round(steps)) < 1e-9 and abs(eps * 100 - round(eps * 100)) > 1e-9:
        return f"{round(steps)}/255"
    return f"{eps:.4g}"


def chosen_threat(norm: str | None, eps: str | None, channels: int) -> Threat | None:
    """Return the threat model that ``--norm`` and ``--eps`` name for images of so many channels; None if neither does.

    Raises InputError for a bad norm or radius, or a radius without a norm.
    """
    if norm is not None:
        name = parse_norm(norm)
        return Threat(name, default_eps(name, channels) if eps is None else parse_eps(eps, name))
    if eps is not None:
        raise InputError(f"--eps is {eps} but no norm is given; add --norm Linf, L2 or L1")
    return None


def chosen_threats(norm: str | None, eps: str | None, channels: int) -> tuple[Threat, ...]:
    """Return the threat models that ``--norm`` and ``--eps`` leave of the default ones; errors as `chosen_threat`."""
    chosen = chosen_threat(norm, eps, channels)
    defaults = default_threats(channels)
    if chosen is None:
        return defaults
    of_norm = tuple(threat for threat in defaults if threat.norm == chosen.norm)
    return of_norm if of_norm and eps is None else (chosen,)
