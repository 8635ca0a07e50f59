"""Command line: ``python -m agents.train --algo ppo``."""

import sys

from agents.cli import run_cli
from agents.config import TrainConfig


def main(config: TrainConfig) -> None:
    """Train an image classifier as a policy, attack it, and print the table."""
    from agents.training import train

    train(config)


if __name__ == "__main__":
    sys.exit(run_cli(main, TrainConfig, prog="python -m agents.train"))
