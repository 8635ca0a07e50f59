"""Robustness evaluation and the analysis of why a classifier resists."""
