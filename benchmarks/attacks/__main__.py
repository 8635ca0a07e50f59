import tyro

from benchmarks.attacks.cpu import main
from envs.errors import InputError

if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from None
