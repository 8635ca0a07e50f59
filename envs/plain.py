"""Numbers of NumPy and PyTorch as Python's own, without importing either."""

from typing import Any


def plain(value: Any) -> Any:
    """Return NumPy's numbers, and tensors and arrays of a single number (), as Python's own; all else as it is."""
    return value.item() if not getattr(value, "ndim", 1) else value
