"""python -m unsloth_accel: `unsloth-accel`, where scripts are not on PATH."""

import sys

from .cli.main import main

sys.exit(main())
