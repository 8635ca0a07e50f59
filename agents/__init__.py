"""Policies, algorithms and the training of image classifiers by reinforcement learning."""
