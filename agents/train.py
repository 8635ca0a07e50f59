"""Command line: ``python -m agents.train --algo ppo``, or ``--preset NAME``."""

import sys
from collections.abc import Sequence

from agents.common.command_line import run_cli
from agents.config import TrainConfig
from agents.hyperparameters import start_from


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit status."""
    main = "agents.training.run:train_command"
    return run_cli(main, TrainConfig, "python -m agents.train", argv, start_from, _first_line)


def _first_line(config: TrainConfig) -> str:
    """Return what to show while PyTorch is imported, if anything."""
    if not config.progress or config.list_presets:
        return ""
    what = config.resume or f"{config.schedule or config.algo} on {config.dataset}, network {config.network}"
    return f"{what}: loading PyTorch and the data"


if __name__ == "__main__":
    sys.exit(run())
