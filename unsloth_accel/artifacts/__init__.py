"""Artifacts: the files that a run leaves behind, read and checked without torch."""
