import subprocess
import sys

import pytest
from conftest import ROOT
from processor_time import calm_seconds

from unsloth_accel import __version__


def test_import_is_light() -> None:
    """Under 0.1 s of a processor, with Python's start, and nothing heavy: neither torch nor accelerate, unsloth."""
    program = (
        "import sys, unsloth_accel\n"
        "heavy = {'torch', 'accelerate', 'transformers', 'unsloth', 'trl', 'omegaconf', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert calm_seconds(lambda: subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)) < 0.1


def test_public_names_are_there() -> None:
    import unsloth_accel

    for name in unsloth_accel.__all__:
        assert getattr(unsloth_accel, name) is not None
    with pytest.raises(AttributeError):
        _ = unsloth_accel.nothing


def test_what_there_is_can_be_listed() -> None:
    """As in a notebook after a dot, in a process that has loaded none of it; and nothing that is no user's."""
    program = "import unsloth_accel; print(*dir(unsloth_accel))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [name for name in done.stdout.split() if not name.startswith("__")]
    assert {"adapt", "save", "plan", "callbacks"} < {*listed}
    import unsloth_accel

    assert listed == sorted(unsloth_accel.__all__)


def test_the_package_is_the_command() -> None:
    command = [sys.executable, "-m", "unsloth_accel", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"unsloth-accel {__version__}\n"), done.stderr
