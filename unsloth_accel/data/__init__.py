"""Data: checking and loading training rows."""
