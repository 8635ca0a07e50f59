"""Attacks that use only the outputs of a model."""
