"""Lists the project's packages that are not installed: ``python -m benchmarks.packages``."""

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
NOT_INSTALLED = "not installed"


def version_of(package: str) -> str:
    """The installed version; a checkout that is used by PYTHONPATH alone has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def missing(requirements: Iterable[str] | None = None) -> list[str]:
    """Those of the ``requirements`` ("name>=1.0") that are not installed; default: what the project itself needs."""
    if requirements is None:
        requirements = tomllib.loads(_PROJECT.read_text())["project"]["dependencies"]
    return [text for text in requirements if version_of(re.split(r"[<>=!~ ]", text)[0]) == NOT_INSTALLED]


def check(requirements: Iterable[str] | None = None) -> None:
    """End the program with one line that names all missing packages and installs them."""
    if lacking := missing(requirements):
        quoted = " ".join(f'"{text}"' for text in lacking)
        raise SystemExit(f"{len(lacking)} packages are missing; install them with: pip install {quoted}")
