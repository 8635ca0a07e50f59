"""Imports on demand: torchvision, and public names of packages, which command lines answer without PyTorch."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from envs.errors import InputError, cause

_REMEDY = "reinstall both from one index: pip install --force-reinstall torch torchvision"


def lazy_names(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of ``package``, whose names stand in the modules ``homes``."""

    def get(name: str) -> Any:
        for module, names in homes.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


def import_torchvision(submodule: str | None = None) -> ModuleType:
    """Return ``torchvision``, or its ``submodule`` (``"datasets"``, ``"models"``).

    Raises:
        InputError: it is not installed, or was built for another PyTorch, which shows as a RuntimeError such as
            "operator torchvision::nms does not exist", or as an undefined symbol.
    """
    name = "torchvision" if submodule is None else f"torchvision.{submodule}"
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        problem = f"torchvision does not work with the installed torch ({cause(error, 200)})"
        raise InputError(f"{problem}; {_REMEDY}") from error
