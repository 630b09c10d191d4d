"""Capabilities of the installed Unsloth, torch, transformers, TRL and others, found without importing them."""
