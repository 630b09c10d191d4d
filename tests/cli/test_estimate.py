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


def test_what_no_plan_takes_is_told_and_not_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    """A 4-bit fsdp1 had its column. A mixture is sharded where that is asked for."""
    found = json.loads(out(capsys, "estimate", MODEL, "model.load_in_4bit=true", "--json"))
    assert {*found["memory_gib"]} == {"single 4-bit", "ddp 4-bit", "fsdp2 4-bit", "fsdp2_native 4-bit"}
    assert found["impossible"] == {"fsdp1 4-bit": "FSDP1 can't flatten weights in 4 bit; every process fails."}
    text = out(capsys, "estimate", "model.name=Qwen/Qwen3-30B-A3B")
    assert "not fsdp1 4-bit: FSDP1 can't flatten weights in 4 bit" in text
    assert "not fsdp2" not in text
    assert "ddp 4-bit" in text
