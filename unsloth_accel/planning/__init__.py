"""Planning: strategy, batch, precision and memory, each with its reason."""
