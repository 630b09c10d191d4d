"""Models: their shapes, and where their files lie, without loading them."""
