"""Adapters that fit an Unsloth-loaded model to Accelerate's strategies, one file per concern."""
