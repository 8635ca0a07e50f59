"""Robustness followed through training: every snapshot of a run attacked in the same way."""
