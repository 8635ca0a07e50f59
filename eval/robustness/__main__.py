"""The command line ``python -m eval.robustness``."""

import sys

from eval.robustness.options import main

if __name__ == "__main__":
    sys.exit(main())
