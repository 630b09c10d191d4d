"""docs/fsdp2.md: what the adapter of accelerate's FSDP2 changes, from measured cells.

    python -m benchmarks.fsdp2_report

Reads benchmarks/results/fsdp2-2xH200.json (with the adapter, and one GPU in the same call), fsdp2-before-2xH200.json
(without it) and memory-2xH200.json (the other strategies); all three were written by `python -m benchmarks.memory`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.strategies_page import linear_speed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "fsdp2.md"
ROWS = (
    ("one GPU", "fsdp2-2xH200", "single"),
    ("ddp", "memory-2xH200", "ddp"),
    ("fsdp2 without the adapter", "fsdp2-before-2xH200", "fsdp2"),
    ("fsdp2", "fsdp2-2xH200", "fsdp2"),
    ("fsdp2_native", "memory-2xH200", "fsdp2_native"),
)


def cells(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))["cells"]
    return found


def table(in_4bit: bool) -> str:
    kind = "8B-4bit" if in_4bit else "8B"
    lines = [
        "| | loading GiB | training GiB | of one GPU | s/step | of linear | loss, step 7 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, file, strategy in ROWS:
        cell = cells(file)[f"{kind}-{strategy}-4x2048"]
        # One GPU is measured in every call, since GPUs differ from lease to lease.
        alone = cells("fsdp2-2xH200" if file == "fsdp2-2xH200" else "memory-2xH200")[f"{kind}-single-4x2048"]
        memory, peak = cell["memory_gib"], max(cell["memory_gib"]["loading"], cell["memory_gib"]["training"])
        share = peak / max(alone["memory_gib"]["loading"], alone["memory_gib"]["training"])
        speed = alone["median_step_seconds"] / cell["median_step_seconds"]
        lines.append(
            f"| {name} | {memory['loading']:.2f} | {memory['training']:.2f} | {share:.2f} | "
            f"{cell['median_step_seconds']:.3f} | {speed:.3f} | {cell['loss'][-1]:.4f} |"
        )
    return "\n".join(lines)


def newest() -> dict[str, float]:
    """What was measured after the tables: of linear speed, GiB, and shares of one GPU's and of DDP's."""
    found = cells("strategies-2xH100")

    def linear(bits: int, strategy: str = "fsdp2") -> float:
        alone = linear_speed(found, f"8B-{bits}bit")
        assert alone is not None
        return float(found[f"8B-{bits}bit-{strategy}"]["tokens_per_second"] / alone)

    def peak(name: str) -> float:
        memory = found[f"8B-{name}"]["memory_gib"]
        return float(max(*memory["loading"], *memory["training"]))

    one, half, ddp, quarter = map(peak, ("16bit-single", "16bit-fsdp2", "4bit-ddp", "4bit-fsdp2"))
    return {"linear": linear(16), "linear_4bit": linear(4), "of_linear_ddp": linear(16, "ddp"),
            "of_linear_ddp_4bit": linear(4, "ddp"), "one": one, "half": half, "of_one": half / one,
            "ddp": ddp, "quarter": quarter, "of_ddp": quarter / ddp}  # fmt: skip


def step_of_ddp() -> float:
    """Seconds of a step of fsdp2 over DDP's, in 16 bit, as measured last."""
    found = cells("strategies-2xH100")
    return float(found["8B-16bit-fsdp2"]["step_seconds"] / found["8B-16bit-ddp"]["step_seconds"])


def copies() -> dict[str, float]:
    """What the copies of weights cost: of five calls, seconds per step over DDP's in the same call; how
    many per cent longer the stream that computes works; and how many milliseconds the GPU stood still after the
    processor had waited for the gradients."""
    report = json.loads((RESULTS / "fsdp2-copies-2xH100.json").read_text(encoding="utf-8"))
    found = {}
    for number, call in enumerate(report["calls"], 1):
        seconds = {name.removeprefix("8B-16bit-"): one["step_seconds"] for name, one in call["cells"].items()}
        for one in call["cells"].values():
            cell = one["cell"]
            if cell["strategy"] == "fsdp2":
                rows = "mapped" if any(one.get("mapped_gib") or ()) else "copied"
                variant = {"mapped-queues": "queues", "kept": "kept"}.get(cell["variant"], rows)
                found[f"{variant}_{number}"] = one["step_seconds"] / seconds["ddp"]
    longer = []
    for number, call in enumerate(report["calls"][2:], 3):
        ours = next(name for name in call["streams"] if re.fullmatch(r"8B-16bit-fsdp2(-mapped)?-0", name))
        both = {"ddp": call["streams"]["8B-16bit-ddp-0"]["7"], "fsdp2": call["streams"][ours]["7"]}
        longer.append(100 * (both["fsdp2"]["busy_ms"] / both["ddp"]["busy_ms"] - 1))
        for strategy, stream in both.items():
            gap = stream.get("gaps", {}).get("nothing, from Memcpy DtoH to vectorized_elementwise_kernel FillFunctor")
            if gap:
                found[f"gap_{strategy}_{number}"] = gap["ms"]
    found["longer"] = max(longer)
    return found


COPIES = """\
What was left between fsdp2 and DDP was looked at in five calls on two H100, in 16 bit
(benchmarks/results/fsdp2-copies-2xH100.json: `benchmarks.strategies --cells '8B-16bit-fsdp2-*'`). In times of DDP's in
the same call, a step took {copied_1:.3f} and {copied_2:.3f} with own rows copied; {mapped_1:.3f},
{mapped_2:.3f}, {mapped_3:.3f}, {mapped_4:.3f} and {mapped_5:.3f} with own rows mapped; and {kept_2:.3f} and
{kept_4:.3f} where every block is kept once it was fetched, so that nothing is copied. The copies take 46 ms of a step
of 800; beside them the stream that computes works up to {longer:.1f} % longer than under DDP.
Part of the rest was the processor. Right after the backward pass it waited for the GPU, at the Trainer's count of
tokens (`benchmarks.streams` names such lines), and then began clipping with an empty queue. Until its first kernel came
the GPU stood still, under FSDP2, where accelerate goes another way, for {gap_fsdp2_4:.1f} and {gap_fsdp2_5:.1f} ms in
the last two calls, under DDP for {gap_ddp_4:.1f} and {gap_ddp_5:.1f}. Since then tokens are counted when somebody reads
their number (`adapters/token_count.py`), so that clipping and the optimizer are in the queue before the gradients are
there. In the next call a step took {now:.3f} of DDP's (docs/strategies.md); both ways were not measured in one call.
More of the driver's queues (CUDA_DEVICE_MAX_CONNECTIONS=32) made it slower: {queues_3:.3f}."""

SINCE = """\
The tables above are from before 5. and the copying at once. Since then, on two H100 (docs/strategies.md,
docs/gpu-checks.md) and against GPUs that step with the same fused AdamW, fsdp2 reaches {linear:.3f} of linear in 16 bit
and {linear_4bit:.3f} in 4 bit, where DDP reaches {of_linear_ddp:.3f} and {of_linear_ddp_4bit:.3f}. (Figures
before them came out higher: one GPU stepped with 8-bit Adam, Unsloth's default, which is slower.)
It takes {half:.2f} GiB in 16 bit, {of_one:.2f} of one GPU's {one:.2f}, and {quarter:.2f} GiB in 4 bit, {of_ddp:.2f}
of DDP's {ddp:.2f}."""


def page() -> str:
    report = json.loads((RESULTS / "fsdp2-2xH200.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {report['versions'][name]}" for name in ("torch", "unsloth", "accelerate", "trl"))
    return f"""# FSDP2 through accelerate's plugin

What the files in `unsloth_accel/adapters/fsdp2/` change. 8B Llama shape, random weights, LoRA r=16 on all seven
projections, rows of 2048 tokens, 4 at once on each GPU, AdamW, Unsloth's checkpointing; two {report["gpu"][0]} with
NVLink, {versions}. Made by `python -m benchmarks.fsdp2_report` from files that `python -m benchmarks.memory` wrote.

Peaks are GiB of torch's allocator on the fullest GPU, with the rows that lie in shared memory; *of one GPU* compares
the larger of the two with that of one GPU, *of linear* the throughput with that of as many GPUs on their own. The rows
of all strategies but *one GPU* are the same, and so should the losses be.

## 16 bit

{table(in_4bit=False)}

## 4 bit

{table(in_4bit=True)}

## What it does

1. **Each rank loads its rows only.** 16-bit weights by Unsloth's own sharded loading; 4-bit ones are cut as soon as
   they are quantised, or read from a checkpoint in 4 bit. (`tests/adapters/test_fsdp2.py` compares their bytes after a
   gather.)
2. **The output head is gathered beside the last block and freed after the loss**, whose gradient Unsloth computes at
   once. Without the adapter it stays from before the first block until the backward pass is over.
3. **LoRA weights stay whole on every rank**, up to 1 % of the model's; their gradients are averaged once per backward
   pass. Without the adapter each block has an all-gather and a reduce-scatter of its few LoRA weights, which upload
   small tables to the GPU and so wait behind the activations that are on their way back from the host (seen in a
   profile: the compute stream stood still in each block for as long as that copy takes).
   The averaging itself copies all gradients at once, not each into and out of the buffer that is reduced.
4. **Frozen weights are fetched by copy engines** from the other GPUs' memory, into two sets of buffers that the blocks
   use in turn. Nothing waits for another rank, and no multiprocessor is taken from the matrix products. Needs one
   machine whose GPUs reach each other's memory; elsewhere NCCL gathers. `UNSLOTH_ACCEL_PEER_GATHER=0` switches it off.
   A rank's own rows, half of all on two GPUs, are mapped into its blocks' weights and not copied at all
   (`mapped_memory.py`): the same losses, and a little faster (below). With `=copied`, and where the driver refuses,
   they are copied, too.
5. **The input embedding is not gathered at all**: its lookup reads the rows that a batch names from the GPUs that hold
   them. Without the adapter every forward pass begins with gathering the whole table, with nothing to hide it behind.
   Where the output head is the same table, neither this nor 2. is done: the plugin makes one unit of both and the last
   norm, which stays gathered until the backward pass is over.
6. **It computes in autocast**, as one GPU and every other strategy do. Accelerate leaves that out under FSDP2, which
   casts the weights that it gathers. LoRA weights that stay whole are float32, and PEFT's layers, which all models but
   those with LoRA kernels of Unsloth's own have (Llama, Mistral, Qwen2 and 3 and their like), then compute in float32,
   from float32 copies of their inputs. A tiny Qwen3-VL in bfloat16 on two CPU processes is not the run of one process
   without it, and is with it (`tests/adapters/test_fsdp2.py`). What the model returns is float32, too. With it were
   measured the cells of benchmarks/results/kept-2xH200.json ([memory.md](memory.md)) and the checks of
   [gpu-checks.md](gpu-checks.md) on Qwen3-VL, LFM2 and GRPO; what else is said of the speed of `fsdp2` is from before.

{SINCE.format(**newest())}

{COPIES.format(now=step_of_ddp(), **copies())}

Since no forward or backward pass waits for another rank then, a rank that runs out of memory can do its part again
(docs/batches.md).

Not better: prefetching one or two more blocks (the gathers were hidden already), fewer channels for NCCL
(`NCCL_MAX_CTAS=8`), keeping the last block gathered. Keeping every block gathered until its backward pass was faster,
and holds the whole model. These were looked at once, in a script that is not kept.
"""


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
