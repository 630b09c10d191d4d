"""The code blocks of unsloth-multigpu's README, with only import and model path changed, in processes on a CPU.

What they use and don't make (torch, dataset, dataloader, script_args, open_r1) is there before, as in a user's script.
The direct block asks for four GPUs, and runs in as many processes.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, accelerate_launch

from unsloth_accel.config.accelerate_config import AccelerateConfig

pytestmark = pytest.mark.slow
TEXT = (ROOT / "tests" / "fixtures" / "unsloth_multigpu_readme.md").read_text(encoding="utf-8")
HOOK, GRPO, DIRECT = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
BEFORE = {
    HOOK: """
import torch
from datasets import Dataset
dataset = Dataset.from_list([{"text": "abc def ghi " * (1 + row % 5)} for row in range(8)])
""",
    GRPO: """
import sys
from types import ModuleType
from datasets import Dataset
dataset = Dataset.from_list([{"prompt": "abc def ghi "}])
script_args = None
sys.modules["open_r1"], rewards = ModuleType("open_r1"), ModuleType("open_r1.rewards")
rewards.get_reward_funcs = lambda asked: [lambda completions, **columns: [float(len(one)) for one in completions]]
sys.modules["open_r1.rewards"] = rewards
""",
    DIRECT: """
import torch
ids = torch.arange(64).reshape(8, 8) + 5
rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
dataloader = torch.utils.data.DataLoader(rows, batch_size=1)
""",
}
AFTER = """
import json
if int(__import__("os").environ["RANK"]) == 0:
    seen = {"trained": [int(p.requires_grad) for p in trainer.model.parameters()].count(1)}
    seen["steps"] = epoch_stats["steps"] if "epoch_stats" in dir() else trainer.state.global_step
    print("SEEN " + json.dumps(seen), flush=True)
"""


def migrated(block: str, model: Path) -> str:
    """The block with its import and its model's path changed; what it needs before, after `import unsloth_accel`."""
    block = block.replace("unsloth_multigpu.core", "unsloth_accel.multigpu.core")
    block = block.replace("import unsloth_multigpu as ump", "import unsloth_accel as ump")
    for name in ("/path/to/your/model", "Qwen/Qwen2.5-3B-Instruct", "model_name"):
        block = block.replace(f'"{name}"', repr(str(model)))
    assert "unsloth_multigpu" not in block
    return block


def ends_soon(model: Path, place: Path) -> Path:
    """The model with an end of its answer as likely as not at each token: else the block's 256 take half a minute."""
    from safetensors.torch import load_file, save_file

    made = Path(shutil.copytree(model, place / "model"))
    weights = load_file(made / "model.safetensors")
    weights["lm_head.weight"][2] *= 500  # <|im_end|>
    save_file(weights, made / "model.safetensors", {"format": "pt"})
    return made


@pytest.mark.parametrize(
    ("block", "processes", "steps"), [(HOOK, 2, 6), (GRPO, 2, None), (DIRECT, 4, 2)], ids=["hook", "grpo", "direct"]
)
def test_a_readmes_block_trains(
    block: str, processes: int, steps: int | None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ends_soon(tiny, tmp_path) if block is GRPO else tiny
    first, _, rest = migrated(block, model).partition("\n")
    second, _, rest = rest.partition("\n")
    script = tmp_path / "script.py"
    script.write_text("\n".join([first, second, BEFORE[block], rest, AFTER]), encoding="utf-8")
    AccelerateConfig(strategy="ddp", num_processes=processes, device="cpu").write(tmp_path / "ddp.yaml")
    monkeypatch.setattr("conftest.ROOT", tmp_path)  # its relative paths lie there
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = accelerate_launch("--config_file", tmp_path / "ddp.yaml", script, forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    seen = json.loads(line.removeprefix("SEEN "))
    assert seen["trained"] > 0
    assert seen["steps"] == steps if steps else seen["steps"] > 0
    if block is not DIRECT:
        assert f"{processes} processes, ddp" in done.stdout
        assert "ranks in step after the first step" in done.stdout
        assert "ddp_backend=nccl is for GPUs" in done.stdout
    if block is GRPO:
        assert "gradient_accumulation_steps=4 in place of 1" in done.stdout
        assert "vLLM isn't installed" in done.stdout
