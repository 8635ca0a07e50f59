"""The command line ``python -m eval.mechanism``."""

import sys

from eval.mechanism.options import main

if __name__ == "__main__":
    sys.exit(main())
