"""Robustness evaluation and the analysis of why a classifier resists."""

import attacks.starting as _starting  # noqa: F401 - before what takes long
