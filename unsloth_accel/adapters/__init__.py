"""Adapters: what makes an Unsloth-loaded model fit Accelerate's strategies, one file per concern."""
