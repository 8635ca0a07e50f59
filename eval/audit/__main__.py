"""The command line ``python -m eval.audit``."""

import sys

from eval.audit import main

if __name__ == "__main__":
    sys.exit(main())
