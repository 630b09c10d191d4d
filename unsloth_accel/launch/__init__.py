"""Starting a run: from a plan, or a user's own script and config, to `accelerate launch`."""
