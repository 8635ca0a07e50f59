import sys

from benchmarks.attacks.cpu import main

if __name__ == "__main__":
    sys.exit(main())
