"""Entry point of ``python -m eval.trajectory``."""

import sys

from eval.trajectory.command import main

sys.exit(main())
