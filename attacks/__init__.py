"""Adversarial attacks as functions; needs PyTorch alone."""
