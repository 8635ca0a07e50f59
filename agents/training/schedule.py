"""How long a run is and how often it is validated, in images."""

from agents.config import TrainConfig

MIN_IMAGES = 60_000
PASSES = 40
MAX_VALIDATIONS = 100


def phase_ends(config: TrainConfig, train_size: int) -> list[int]:
    """Return the number of images after which each phase ends."""
    ends: list[int] = []
    for _, passes in config.phases():
        if passes is None:
            images = config.total_images or max(PASSES * train_size, MIN_IMAGES)
        else:
            images = max(round(passes * train_size), 1)
        ends.append((ends[-1] if ends else 0) + images)
    return ends


def validation_interval(config: TrainConfig, train_size: int, total: int) -> int:
    """Return the images between validations: one pass, or more where that would be over 100 validations."""
    return config.eval_every or max(train_size, -(-total // MAX_VALIDATIONS))
