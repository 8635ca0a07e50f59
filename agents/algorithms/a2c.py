"""A2C: Stable-Baselines3's update over rollouts on the device."""

from stable_baselines3 import a2c

from agents.algorithms.rollouts import TensorRollouts


class A2C(TensorRollouts, a2c.A2C):
    """SB3's A2C (Mnih et al. 2016, arXiv 1602.01783) with device-resident rollouts."""
