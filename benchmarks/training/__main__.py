import tyro

from benchmarks.training.cpu import main

if __name__ == "__main__":
    tyro.cli(main)
