"""The command line ``python -m eval.report``."""

import sys

from eval.report.options import main

if __name__ == "__main__":
    sys.exit(main())
