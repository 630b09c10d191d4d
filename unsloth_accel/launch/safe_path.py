"""The module path of `python -m unsloth_accel.…`, which Python begins with the working directory.

A random.py or datasets/ that lies beside a user's data would run in the place of Python's or another package's: in
every rank, since accelerate and torchrun start them so, in a notebook's child, and in the command as `python -m`. The
variable PYTHONSAFEPATH would go on to all that a rank starts, and take a script's own folder from it; Python 3.10
doesn't know it.
"""

import os
import sys


def leave_out_working_directory() -> None:
    """Take the working directory from the beginning of sys.path, where Python put it to look for a module of ours."""
    words = sys.orig_argv
    # While `-m` looks for a module it imports the packages that hold it, and sys.argv begins so.
    if sys.argv[:1] != ["-m"] or "-m" not in words or getattr(sys.flags, "safe_path", False):
        return
    package, place = __name__.partition(".")[0], os.path.abspath(__file__)
    ours = words[words.index("-m") + 1].partition(".")[0] == package
    above = os.path.dirname(os.path.dirname(os.path.dirname(place)))
    # Where the package lies in the working directory, it may be found there alone, and what is beside it is its own.
    if ours and sys.path and sys.path[0] != above and os.path.isdir(sys.path[0]) and os.path.samefile(sys.path[0], "."):
        del sys.path[0]


leave_out_working_directory()
