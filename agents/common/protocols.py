"""Default radii and batch size: one table for training, its closing table and evaluation."""

# Linf and L1 as in Croce and Hein (2020, 2021) and Tramer and Boneh (2019); L2 1.0 for colour as in arXiv 2606.12251.
_RADII = {
    "grey": {"Linf": 0.1, "L2": 1.5, "L1": 10.0},
    "colour": {"Linf": 8 / 255, "L2": 1.0, "L1": 12.0},
}
# Images over which the cleverhans protocol averages its loss, as Zou et al. 2026 (arXiv 2606.12251) do in Python (64 in
# their shell script). Part of the question: no number of images or size of batches changes the answer.
CLEVERHANS_BATCH = 128


def default_eps(norm: str, channels: int) -> float:
    """Return the radius that the field reports for images with so many channels: three are colour, others grey."""
    return _RADII["colour" if channels == 3 else "grey"][norm]
