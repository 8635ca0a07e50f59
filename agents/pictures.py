"""Pictures in TensorBoard while training, for those who ask for them."""

from stable_baselines3.common.callbacks import BaseCallback

from agents.config import TrainConfig
from envs import ImageDataset


def picture_callbacks(config: TrainConfig, validation: ImageDataset) -> list[BaseCallback]:
    """Return what draws the pictures that ``config`` asks for, on images of ``validation``."""
    if config.pictures_every is None:
        return []
    from eval.mechanism.callback import (
        PictureCallback,  # upwards: evaluation rests on training, but a run may show it
    )

    return [PictureCallback(validation, config.pictures_every)]
