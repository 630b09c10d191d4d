"""Run the tests: all of them, or with --quick those that train nothing of the interface of unsloth-multigpu.

python tests/run_all_tests.py [--quick] [pytest's own arguments]
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(words: list[str]) -> int:
    quick = "--quick" in words
    rest = [word for word in words if word != "--quick"]
    chosen = ["tests/multigpu", "tests/test_package.py", "-m", "not slow"] if quick else ["tests"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", *chosen, *rest]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
