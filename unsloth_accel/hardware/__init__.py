"""Hardware: the GPUs, cores and memory that a run may use, found without torch."""
