"""The command line ``python -m eval.study``."""

import sys

from eval.study.options import main

if __name__ == "__main__":
    sys.exit(main())
