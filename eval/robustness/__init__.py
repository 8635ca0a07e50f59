"""Robust accuracy: the worst case per image over a suite of attacks."""
