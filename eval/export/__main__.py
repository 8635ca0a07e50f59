"""The command line ``python -m eval.export``."""

import sys

from eval.export.command import main

if __name__ == "__main__":
    sys.exit(main())
