"""The command line ``python -m eval.export``."""

import sys

from eval.export.options import main

if __name__ == "__main__":
    sys.exit(main())
