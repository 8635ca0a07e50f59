"""Measurements against peers; each module runs as ``python -m benchmarks.NAME``."""

from benchmarks import packages

packages.check()  # before anything is imported that needs them
