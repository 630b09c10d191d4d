"""Frozen weights fetched from the other GPUs' memory by copy engines, in place of FSDP2's all-gather."""
