"""The command line ``python -m eval.distributed``; the code is in `eval.robustness.distributed`."""

from eval.robustness.distributed import main

if __name__ == "__main__":
    raise SystemExit(main())
