"""python -m unsloth_accel.cli: `unsloth-accel`, where scripts are not on PATH."""

import sys

from .main import main

sys.exit(main())
