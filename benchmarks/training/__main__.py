import sys

from benchmarks.training.cpu import main

if __name__ == "__main__":
    sys.exit(main())
