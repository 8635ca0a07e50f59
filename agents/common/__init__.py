"""Command lines, devices and run directories."""
