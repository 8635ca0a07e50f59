"""Command line: ``python -m agents.train --algo ppo``, or ``--preset NAME``."""

import sys
from collections.abc import Sequence

from agents.common.command_line import run_cli
from agents.config import TrainConfig
from agents.hyperparameters import start_from
from agents.presets import print_presets


def main(config: TrainConfig) -> None:
    """Train an image classifier as a policy, attack it, and print the table."""
    if config.list_presets:
        print_presets()
        return
    from agents.training.run import train

    train(config)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit status."""
    return run_cli(main, TrainConfig, prog="python -m agents.train", argv=argv, defaults=start_from)


if __name__ == "__main__":
    sys.exit(run())
