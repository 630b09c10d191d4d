"""What the installed Unsloth, torch, transformers, TRL and others offer, found without importing them."""
