"""Training entry points, run inside each launched process."""
