"""One training run: its phases, validation, checkpoints and logs."""
