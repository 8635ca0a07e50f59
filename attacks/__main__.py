"""The door of ``python -m attacks``; the command line itself lives above, in `eval.attack`."""

import sys

if __name__ == "__main__":
    from eval.attack.options import main

    sys.exit(main())
