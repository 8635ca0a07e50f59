"""Small data sets for the tests of the environments."""

import torch

from envs import ImageDataset


def random_images(
    count: int = 50, shape: tuple[int, int, int] = (3, 9, 8), num_classes: int = 4
) -> ImageDataset:
    """Random pixels; the labels go round."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return _dataset(images, num_classes)


def grey_levels(count: int = 64, num_classes: int = 4, side: int = 8) -> ImageDataset:
    """Images of one grey level each, which identifies the class."""
    labels = torch.arange(count) % num_classes
    levels = (labels * (255 // (num_classes - 1))).to(torch.uint8)
    return _dataset(levels.view(-1, 1, 1, 1).repeat(1, 1, side, side), num_classes)


def quadrants(count: int = 64, side: int = 8) -> ImageDataset:
    """Dark images with one bright quadrant, which identifies the class; easy to learn."""
    images = torch.zeros(count, 1, 2, side // 2, 2, side // 2, dtype=torch.uint8)
    for k in range(4):
        images[k::4, :, k // 2, :, k % 2] = 255
    return _dataset(images.view(count, 1, side, side), 4)


def _dataset(images: torch.Tensor, num_classes: int) -> ImageDataset:
    classes = tuple(f"class {k}" for k in range(num_classes))
    return ImageDataset("toy", "train", images, torch.arange(len(images)) % num_classes, classes)
