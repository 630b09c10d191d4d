"""What to do: strategy, batch, precision and memory, each with its reason."""
