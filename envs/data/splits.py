"""Stratified splits that never change: the same labels and seed give the same split on any machine."""

import numpy as np

from envs.data.images import place
from envs.data.source import Allocate, Arrays, Decoded, check_classes
from envs.errors import InputError

SPLIT_SEED = 42
TEST_FRACTION = 0.2
VAL_FRACTION = 0.1
_ROWS = 8192


_Pair = tuple[np.ndarray, np.ndarray]


def stratified_split(labels: np.ndarray, fraction: float, seed: int = SPLIT_SEED) -> _Pair:
    """Hold out about ``fraction`` of every class.

    Of a class with n >= 2 images round(n * fraction) are held out, at least one and at most n - 1, so that
    both sides see it; a class with a single image stays on the kept side. ``labels`` are integers (N,); ``seed`` is of
    the shuffle. Returns indices of the kept and of the held-out images, each ascending; together they are 0..N-1.
    """
    # RandomState, not default_rng: NumPy promises that its stream stays as it is for ever (NEP 19).
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.unique(labels, return_counts=True)[1]
    wanted = np.clip((sizes * fraction + 0.5).astype(np.int64), 1, None)
    held = np.minimum(wanted, sizes - 1)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_held = rank < np.repeat(held, sizes)
    return np.sort(by_class[~is_held]), np.sort(by_class[is_held])


def plan_splits(labels: dict[str, np.ndarray], where: str) -> dict[str, tuple[str, np.ndarray]]:
    """Decide which images of which part of a data set make up train, validation and test.

    ``labels`` are those of each part, (N,): the one part ``all``, of which 20 % of every class become the test split
    and 10 % of the rest validation; or ``train`` and ``test``, where validation is 10 % of train; or all three.
    Returns, for each split, the part that it comes from and ascending indices into that; ``where`` is for messages.

    Raises:
        InputError: a split would be empty.
    """
    if "all" in labels:
        rest, test = stratified_split(labels["all"], TEST_FRACTION)
        train, val = stratified_split(labels["all"][rest], VAL_FRACTION)
        plan = {"train": ("all", rest[train]), "val": ("all", rest[val]), "test": ("all", test)}
    elif "val" in labels:
        plan = {split: (split, np.arange(len(labels[split]))) for split in ("train", "val", "test")}
    else:
        train, val = stratified_split(labels["train"], VAL_FRACTION)
        test = np.arange(len(labels["test"]))
        plan = {"train": ("train", train), "val": ("train", val), "test": ("test", test)}
    for split, (part, index) in plan.items():
        if len(index) == 0:
            raise InputError(
                f"{where}: no image is left for the {split} split; expected classes of at least"
                f" {'three' if part == 'all' else 'two'} images; add images or splits of your own"
            )
    return plan


def arrange(
    where: str, classes: tuple[str, ...], parts: dict[str, Arrays], allocate: Allocate, image_size: int | None
) -> Decoded:
    """Copy the images of parts in memory (named as for ``plan_splits``) to their splits, fitted to ``image_size``.

    Raises:
        InputError: a class has no training image, or a split would be empty.
    """
    check_classes(parts["all" if "all" in parts else "train"].labels, classes, where)
    plan = plan_splits({part: arrays.labels for part, arrays in parts.items()}, where)
    splits = {}
    for split, (part, index) in plan.items():
        images, labels, _ = parts[part]
        channels, height, width = images.shape[1:]
        out = allocate(split, (len(index), channels, image_size or height, image_size or width))
        for start in range(0, len(index), _ROWS):
            rows = index[start : start + _ROWS]
            place(out, np.arange(start, start + len(rows)), images[rows])
        splits[split] = Arrays(out, labels[index])
    return Decoded(classes, splits)
