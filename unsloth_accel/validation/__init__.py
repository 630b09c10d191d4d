"""Validation of runs and configs before any process starts."""
