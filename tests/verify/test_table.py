import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from verified_runs import chosen

from unsloth_accel.verify.runs import Trained
from unsloth_accel.verify.table import as_text
from unsloth_accel.verify.verdict import TOLERANCES, Comparison, compare
from unsloth_accel.verify.verification import StrategyOutcome, Verification


def test_the_report(description: dict[str, Any], one: Trained, tmp_path: Path) -> None:
    single = replace(one, num_processes=1, ranks=[{"rank": 0, "adapter": "x", "loading": 2.0}])
    description["model"]["keep_activations"] = 1
    plans = chosen(description, tmp_path / "v", strategies=["ddp"], num_processes=2)
    compared: Comparison = compare(single, one, TOLERANCES["fp32"])
    found = Verification(
        settings=replace(plans, left_out={"fsdp2": "no GPU."}, notes=("a note",)),
        precision="fp32",
        tolerance=TOLERANCES["fp32"],
        single=single,
        outcomes=[
            StrategyOutcome(plan=plans.others[0], name="ddp", trained=one, comparison=compared),
            StrategyOutcome(plan=plans.others[0], name="fsdp2_native", error="rank 1 failed."),
        ],
    )
    text = as_text(found)
    for words in ("the same", "not the same", "fsdp2_native: not the same: it failed: rank 1 failed.", "1.00 2.00"):
        assert words in text
    assert "fsdp2: left out: no GPU." in text
    assert "note: a note." in text
    assert text.split("blocks that keep activations")[1].split()[:3] == ["1", "1", "1"]
    assert not found.same
    values = json.loads(json.dumps(found.to_dict()))
    assert values["runs"]["ddp"]["same"]
    assert values["runs"]["ddp"]["keep_activations"] == 1
    assert values["runs"]["ddp"]["difference"]["adapter"] == 0
    assert values["runs"]["fsdp2_native"]["error"] == "rank 1 failed."
    assert values["runs"]["single"]["tokens_per_second"] == 10.0, "the first step compiles kernels"
