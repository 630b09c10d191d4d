"""What the owner of a script sees, and finds on the disk, when it runs in two processes."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import SCRIPTS, Run, accelerate_launch

from unsloth_accel.config.accelerate_config import AccelerateConfig
from unsloth_accel.config.promise import Promise

pytestmark = pytest.mark.slow
STRATEGIES = ["ddp", *(["fsdp2_native"] if find_spec("triton") else [])]


@pytest.fixture(scope="module", params=STRATEGIES)
def script(
    request: pytest.FixtureRequest, tiny: Path, uncompiled: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Strategy, directory, output and what each rank found."""
    out = tmp_path_factory.mktemp("script")
    config = AccelerateConfig(strategy=request.param, num_processes=2, device="cpu")
    config.write(out / "accelerate.yaml", promised=Promise(num_processes=2, keep_activations=1))
    done = accelerate_launch(
        "--config_file", out / "accelerate.yaml", SCRIPTS / "own_script.py", tiny, out / "outputs", forked=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads((out / "outputs" / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    return {"strategy": request.param, "out": out / "outputs", "done": done, "ranks": ranks}


def test_its_owner_is_told_what_runs(script: dict[str, Any]) -> None:
    """Each line once, none of it by the other rank; and the rows of a step are those that one process takes."""
    printed = script["done"].stdout + script["done"].stderr
    told = "the ranks were to keep the activations of different numbers of blocks (1 on rank 0, 2 on rank 1)"
    assert printed.count(told) == 1, printed
    assert len(re.findall(r"^rehearsed step \d, the longest, with 4 rows", printed, re.MULTILINE)) == 1, printed
    each = "each of 2 trains its own part of the weights"
    same = "8 trained tensors and their gradients are the same on all 2"
    assert re.findall(r"^unsloth_accel: (?!warning: ).*|^report .*", printed, re.MULTILINE) == [
        f"unsloth_accel: 2 processes, {script['strategy']}: 8 rows per step = 4 × 1 × 2 (per device × accumulation × "
        "processes); one process would take as many; 1 of 2 decoder blocks keep their activations",
        f"unsloth_accel: ranks in step after the first step: {same if script['strategy'] == 'ddp' else each}",
        f"report    {script['out'] / 'report.html'}",
    ]


def test_what_every_rank_saves_is_written_by_one(script: dict[str, Any]) -> None:
    """And is there for each of them when its call has returned; what one alone saves is waited for by nobody."""
    from safetensors.torch import load_file

    first, second = script["ranks"]
    weights = {"model": "adapter_model", "trainer": "adapter_model", "unsloths": "model", "merged": "model"}
    refused = () if script["strategy"] == "ddp" else ("unsloths",)
    for what in ("model", "tokenizer", "unsloths", "trainer", "merged"):
        if what in refused:
            fix = "Fix: unsloth_accel.merge(unsloth_accel.save(trainer,"
            assert first[what]["told"] == second[what]["told"]
            assert f"the weights that {script['strategy']} divides here. {fix}" in first[what]["told"]
            continue
        assert (first[what]["wrote"], second[what]["wrote"]) == (True, False), what
        if what != "trainer":  # transformers' own: the others go on
            assert {*first[what]["there"]} == {*second[what]["there"]}, what
        if what in weights:
            assert f"{weights[what]}.safetensors" in first[what]["there"]
    assert first["merged"]["told"] == second["merged"]["told"] == str(script["out"] / "merged")
    assert first["alone"]["there"]
    saved = [load_file(script["out"] / what / "adapter_model.safetensors") for what in ("model", "trainer", "adapter")]
    assert all(one.keys() == saved[0].keys() for one in saved)
    assert all(bool((one[name] == saved[0][name]).all()) for one in saved for name in one)
    assert max(float(tensor.abs().max()) for name, tensor in saved[0].items() if "lora_B" in name) > 1e-3
    assert first["notes"] == second["notes"]
    assert not Path(first["notes"]).exists(), "the last to end removes them"


def test_its_report_can_be_made_anew(script: dict[str, Any], cli: Run) -> None:
    first = (script["out"] / "report.html").read_text(encoding="utf-8")
    assert "a script's lies where it saved it" in first
    done = cli("report", script["out"], forked=True)
    assert done.returncode == 0, done.stderr
    page = (script["out"] / "report.html").read_text(encoding="utf-8")
    for words in (
        "finished",
        script["strategy"],
        "2 processes on a CPU",
        "8 rows per step",
        f"{script['out']}/adapter",
    ):
        assert words in page
