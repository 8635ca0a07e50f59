"""The command line ``python -m eval.transfer``."""

import sys

from eval.transfer.options import main

if __name__ == "__main__":
    sys.exit(main())
