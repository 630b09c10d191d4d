"""FSDP2 for LoRA over a frozen model: loading by shard, sharding, gathering and generating."""
