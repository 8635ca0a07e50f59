"""Gymnasium and Stable-Baselines3 environments whose observations are images and whose actions are labels."""
