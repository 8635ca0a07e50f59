"""Options given as NumPy's numbers or tensors of a single number, kept as Python's own."""

import dataclasses


class PlainNumbers:
    """Base of frozen dataclasses, whose fields JSON and the command line must be able to hold."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if getattr(value, "ndim", None) == 0:
                object.__setattr__(self, field.name, value.item())
