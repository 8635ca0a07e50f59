"""Stratified splits that never change: the same labels and seed give the same split on any machine."""

import numpy as np

SPLIT_SEED = 42
TEST_FRACTION = 0.2
VAL_FRACTION = 0.1


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int = SPLIT_SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out about ``fraction`` of every class.

    Of a class with n >= 2 images round(n * fraction) are held out, at least one and at most n - 1, so that
    both sides see it; a class with a single image stays on the kept side.

    Args:
        labels: integers (N,).
        fraction: share of each class to hold out, in (0, 1).
        seed: of the shuffle.

    Returns:
        Indices of the kept and of the held-out images, each in ascending order; together they are 0..N-1.
    """
    # RandomState, not default_rng: NumPy promises that its stream stays as it is for ever (NEP 19).
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    held = []
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        count = int(len(members) * fraction + 0.5)
        held.append(members[: min(max(count, 1), len(members) - 1)])
    held_out = np.sort(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
    kept = np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True)
    return kept, held_out


def three_way_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return indices of train, validation and test: 20 % of every class for test, then 10 % of the rest."""
    rest, test = stratified_split(labels, TEST_FRACTION)
    train, val = stratified_split(labels[rest], VAL_FRACTION)
    return rest[train], rest[val], test
