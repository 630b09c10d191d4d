"""Commands as a user types them, in this process."""

import pytest

from unsloth_accel.cli.main import main

MODEL = "model.name=unsloth/Llama-3.1-8B-Instruct"

NATIVE = "UNSLOTH_FSDP2=1 UNSLOTH_FSDP2_BACKEND=native UNSLOTH_FSDP2_LAYOUT=sharded UNSLOTH_FSDP2_SHARDED_LOAD=1"


def out(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out
