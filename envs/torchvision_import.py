"""Imports torchvision on demand; the error names a remedy where its build does not fit PyTorch's."""

import importlib
from types import ModuleType

from envs.errors import InputError

_REMEDY = "reinstall both from one index: pip install --force-reinstall torch torchvision"


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
        cause = " ".join(str(error).split())[:200]
        raise InputError(
            f"torchvision does not work with the installed torch ({cause}); {_REMEDY}"
        ) from error
