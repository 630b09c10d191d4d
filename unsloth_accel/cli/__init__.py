"""The commands of `unsloth-accel`, one file each, imported when called.

A module has `parser()`, an argparse parser whose epilog is an example, and `run(words)`, which returns the exit status.
"""
