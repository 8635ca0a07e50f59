import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.data.splits import plan_splits, stratified_split
from envs.errors import InputError

labels_of_any_kind = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(labels_of_any_kind, st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_split_is_a_partition_that_keeps_every_class_on_both_sides(labels, fraction, seed):
    kept, held = stratified_split(labels, fraction, seed)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    for label in np.unique(labels):
        count = int((labels == label).sum())
        out = int((labels[held] == label).sum())
        if count == 1:
            assert out == 0
        else:
            assert 1 <= out <= count - 1
            assert (
                abs(out - count * fraction)
                <= max(0.5, 1 - count * fraction, count * fraction - (count - 1)) + 1e-9
            )


@settings(max_examples=50, deadline=None)
@given(labels_of_any_kind)
def test_split_depends_on_labels_and_seed_alone(labels):
    first, again = stratified_split(labels, 0.2), stratified_split(labels.copy(), 0.2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_split_never_changes():
    held = stratified_split(np.arange(20) % 2, 0.2)[1]
    assert held.tolist() == [0, 8, 15, 17]
    assert not np.array_equal(held, stratified_split(np.arange(20) % 2, 0.2, seed=1)[1])


def test_split_is_random_within_classes():
    held = stratified_split(np.zeros(10_000, dtype=np.int64), 0.5)[1]
    assert len(held) == 5000
    assert abs(held.mean() - 5000) < 200  # about 5 standard errors of a random half


def test_plan_of_one_part():
    labels = np.arange(1000) % 10
    plan = plan_splits({"all": labels}, "made")
    assert {split: len(index) for split, (_, index) in plan.items()} == {"train": 720, "val": 80, "test": 200}
    together = np.sort(np.concatenate([index for _, index in plan.values()]))
    assert np.array_equal(together, np.arange(1000))
    assert all((np.bincount(labels[index]) == len(index) // 10).all() for _, index in plan.values())


def test_plan_holds_a_tenth_of_train_out():
    plan = plan_splits({"train": np.arange(100) % 5, "test": np.arange(7) % 5}, "made")
    assert {split: (part, len(index)) for split, (part, index) in plan.items()} == {
        "train": ("train", 90),
        "val": ("train", 10),
        "test": ("test", 7),
    }


def test_plan_of_all_parts_is_theirs():
    plan = plan_splits({part: np.arange(3) for part in ("train", "val", "test")}, "made")
    assert all(part == split and index.tolist() == [0, 1, 2] for split, (part, index) in plan.items())


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"all": np.array([0, 1])}, "made: no image is left for the val split.*at least three"),
        ({"all": np.array([0, 0, 1, 1])}, "val split"),
        ({"train": np.array([0, 1]), "test": np.array([0])}, "val split.*at least two"),
    ],
)
def test_plan_refuses_empty_splits(labels, words):
    with pytest.raises(InputError, match=words):
        plan_splits(labels, "made")
