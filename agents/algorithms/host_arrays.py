"""Presents tensors to Stable-Baselines3's callbacks as NumPy arrays that are copied only when read."""

from typing import Any

import numpy as np
from torch import Tensor


class HostArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A tensor on an accelerator that is copied to the host when it is first read, and then acts as an array."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Tensor | None = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._tensor is not None:
            self._array, self._tensor = self._tensor.cpu().numpy(), None
        return np.array(self._array, dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = (np.asarray(value) if isinstance(value, HostArray) else value for value in inputs)
        return getattr(ufunc, method)(*arrays, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]

    def __len__(self) -> int:
        return len(np.asarray(self))

    def __bool__(self) -> bool:
        return bool(np.asarray(self))


def host_arrays(**values: Any) -> dict[str, Any]:
    """Return the values by name, tensors as arrays: those on the CPU share their memory, others wait to be read."""
    return {name: _on_host(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def _on_host(tensor: Tensor) -> Any:
    return tensor.detach().numpy() if tensor.device.type == "cpu" else HostArray(tensor)
