"""DDP's bucket settings: how fast is a step with each, on the same model in the same processes?

    accelerate launch --config_file accelerate_configs/ddp.yaml -m benchmarks.ddp_buckets --model DIRECTORY --out JSON

Full rows of 2048 tokens, 8 at once on each GPU, LoRA r=64, so that there is something to reduce. Every setting is
measured twice, in two rounds, and the better of the two medians counts, since GPUs slow down as they get warm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

# isort: off
import unsloth_accel  # noqa: F401
from unsloth import FastLanguageModel
import torch
import torch.distributed as dist
from accelerate import Accelerator
# isort: on

from unsloth_accel.adapters.saving import versions

WARM_UP, TIMED, ROUNDS = 3, 8, 2
BATCH, LENGTH = 8, 2048
BUCKETS = (1, 25, 100, 1000)
"""MB; 25 is torch's own default."""
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def seconds_per_step(wrapped: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> list[float]:
    """Of the steps after the warm-up."""
    clock = []
    for _ in range(WARM_UP + TIMED + 1):
        torch.cuda.synchronize()
        clock.append(time.perf_counter())
        with torch.autocast("cuda", torch.bfloat16):
            wrapped(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [b - a for a, b in itertools.pairwise(clock)][WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    accelerator = Accelerator()
    model, _ = FastLanguageModel.from_pretrained(options.model, max_seq_length=LENGTH, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=64, target_modules=PROJECTIONS)
    torch.manual_seed(accelerator.process_index)
    tokens = torch.randint(3, 200, (BATCH, LENGTH), device=accelerator.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    names = [name for name, _ in model.named_buffers()]
    found: dict[str, list[float]] = {}
    for _, (bucket, view) in itertools.product(range(ROUNDS), [(b, v) for b in BUCKETS for v in (False, True)]):
        kind: Any = torch.nn.parallel.DistributedDataParallel
        kind._set_params_and_buffers_to_ignore_for_model(model, names)
        wrapped = kind(model, [accelerator.device.index], bucket_cap_mb=bucket, gradient_as_bucket_view=view)
        median = statistics.median(seconds_per_step(wrapped, optimizer, tokens))
        found.setdefault(f"bucket_cap_mb={bucket} gradient_as_bucket_view={view}", []).append(round(median, 4))
        del wrapped
        for parameter in model.parameters():
            parameter.grad = None
    alone = [round(statistics.median(seconds_per_step(model, optimizer, tokens)), 4)]
    if accelerator.is_main_process:
        report = {
            "command": "accelerate launch --config_file accelerate_configs/ddp.yaml -m benchmarks.ddp_buckets",
            "date": time.strftime("%Y-%m-%d"),
            "gpu": [torch.cuda.get_device_name(index) for index in range(int(os.environ["WORLD_SIZE"]))],
            "versions": versions(),
            "adapter_mb": sum(p.numel() for p in model.parameters() if p.requires_grad) * 4 / 1e6,
            "median_step_seconds": found | {"no reduction": alone},
        }
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(report["median_step_seconds"], indent=1), flush=True)
    dist.barrier()
    accelerator.end_training()


if __name__ == "__main__":
    main()
