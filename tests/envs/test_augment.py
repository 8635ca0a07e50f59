import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import Augmentation, InputError
from envs.augment import PRESETS, augment, augment_one
from envs.rng import hash_tensor

augmentations = st.builds(
    Augmentation,
    hflip=st.booleans(),
    vflip=st.booleans(),
    translate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    crop_padding=st.integers(0, 5),
)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@settings(max_examples=60, deadline=None)
@given(shapes, augmentations, st.integers(0, 2**62))
def test_a_batch_equals_its_images_one_by_one(
    shape: tuple[int, ...], augmentation: Augmentation, seed: int
) -> None:
    images, seeds = pixels(*shape), hash_tensor(seed, torch.arange(shape[0]))
    batch = augment(images, seeds, augmentation)
    assert batch.shape == images.shape
    assert batch.dtype == torch.uint8
    for image, image_seed, result in zip(images.numpy(), seeds.tolist(), batch.numpy(), strict=True):
        np.testing.assert_array_equal(augment_one(image, image_seed, augmentation), result)


@settings(max_examples=30, deadline=None)
@given(augmentations, st.integers(0, 2**62))
def test_the_result_does_not_depend_on_the_neighbours(augmentation: Augmentation, seed: int) -> None:
    images, seeds = pixels(6, 3, 8, 5), hash_tensor(seed, torch.arange(6))
    batch = augment(images, seeds, augmentation)
    order = torch.tensor([4, 0, 5])
    assert torch.equal(augment(images[order], seeds[order], augmentation), batch[order])


def test_identity_returns_the_very_images() -> None:
    images = pixels(4, 1, 5, 5)
    assert augment(images, torch.arange(4), Augmentation()) is images
    image = images[0].numpy()
    copy = augment_one(image, 0, Augmentation())
    np.testing.assert_array_equal(copy, image)
    assert not np.shares_memory(copy, image)


def test_the_input_is_left_alone() -> None:
    images = pixels(8, 3, 8, 8)
    before = images.clone()
    augment(images, torch.arange(8), PRESETS["paper"])
    assert torch.equal(images, before)


def test_flips_alone_give_the_four_mirror_images_equally_often() -> None:
    image = pixels(1, 2, 4, 6)
    batch = augment(image.expand(4000, -1, -1, -1), torch.arange(4000), Augmentation(hflip=True, vflip=True))
    for mirror in (image, image.flip(2), image.flip(3), image.flip(2, 3)):
        share = (batch == mirror).flatten(1).all(1).double().mean()
        assert abs(share - 0.25) < 0.035  # 5 standard errors


@pytest.mark.parametrize("augmentation", [Augmentation(translate=0.2), Augmentation(crop_padding=2)])
def test_shifts_are_uniform_up_to_the_bound_and_fill_with_zeros(augmentation: Augmentation) -> None:
    image = torch.zeros(1, 1, 10, 10, dtype=torch.uint8)
    image[..., 5, 5] = 9
    batch = augment(image.expand(5000, -1, -1, -1), torch.arange(5000), augmentation)
    landed = batch.double().mean((0, 1)) / 9
    assert landed[3:8, 3:8].sum() == pytest.approx(1)  # 2 pixels either way, and nowhere else
    assert (landed[3:8, 3:8] - 1 / 25).abs().max() < 0.014
    assert (augment(torch.full_like(image, 7), torch.tensor([3]), augmentation).unique() <= 7).all()


def test_a_shift_moves_the_whole_image() -> None:
    images = pixels(200, 3, 6, 7)
    batch = augment(images, torch.arange(200), Augmentation(crop_padding=2))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for source, result in zip(padded, batch, strict=True):
        crops = [source[:, y : y + 6, x : x + 7] for y in range(5) for x in range(5)]
        assert sum(torch.equal(crop, result) for crop in crops) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Augmentation()),
        ("paper", Augmentation(hflip=True, vflip=True, translate=0.1)),
        ("standard", Augmentation(hflip=True, crop_padding=4)),
        ("hflip,translate:0.1", Augmentation(hflip=True, translate=0.1)),
        (" vflip , crop:3", Augmentation(vflip=True, crop_padding=3)),
    ],
)
def test_parse(text: str, expected: Augmentation) -> None:
    assert Augmentation.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hflp", "unknown augmentation 'hflp'.*'hflip'"),
        ("", "unknown augmentation ''"),
        ("hflip:1", "takes no number"),
        ("translate", "lacks a number.*translate:0.1"),
        ("crop:x", "lacks a number.*crop:4"),
        ("translate:1.5", "translate is 1.5"),
        ("translate:nan", "translate is nan"),
        ("crop:-1", "crop_padding is -1"),
    ],
)
def test_parse_errors_are_clear(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation.parse(text)
