import json

import pytest
from commands import MODEL, out


def test_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(out(capsys, "estimate", MODEL, "--json", "--gpus", "4", "--rows", "1"))["memory_gib"]
    assert found["fsdp2_native"]["total"] < found["ddp"]["total"]
    assert found["single 4-bit"]["total"] < found["single"]["total"]
    text = out(capsys, "estimate", MODEL)
    assert "total" in text
    assert "fsdp2_native 4-bit" in text
