"""Where things lie: what a run leaves behind, read and checked without torch."""
