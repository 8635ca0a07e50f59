"""Command line: ``python -m agents.train --algo ppo``, or ``--preset NAME``."""

import sys
from collections.abc import Sequence

from agents.common.command_line import run_cli
from agents.config import TrainConfig
from agents.hyperparameters import start_from


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit status."""
    return run_cli(
        "agents.training.run:train_command", TrainConfig, "python -m agents.train", argv, start_from
    )


if __name__ == "__main__":
    sys.exit(run())
