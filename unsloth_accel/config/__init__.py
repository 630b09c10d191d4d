"""What is asked: a run's description, the accelerate config that follows, and the promise to its processes."""
