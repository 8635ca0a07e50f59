"""Entry point of ``python -m eval.trajectory``."""

import sys

from eval.trajectory.options import main

sys.exit(main())
