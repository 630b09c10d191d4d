"""Configuration: a run's description, the accelerate config made from it, and the promise to its processes."""
