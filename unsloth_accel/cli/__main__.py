"""python -m unsloth_accel.cli: `unsloth-accel`, where scripts are not on PATH."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
