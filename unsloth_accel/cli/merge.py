"""unsloth-accel merge: the 16-bit model that a run's adapter and its base make."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import counted
from .options import command_parser

EXAMPLES = """\
examples:
  unsloth-accel merge runs/llama-1b                        # writes runs/llama-1b/merged
  unsloth-accel merge runs/llama-1b/adapter out --dtype float16
  unsloth-accel merge runs/llama-1b/checkpoint-100 out     # what a checkpoint had learned
  unsloth-accel merge runs/qlora out --base unsloth/Llama-3.2-1B-Instruct"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "merge",
        "Write the model that an adapter and its base make, with the tokenizer, for programs that load no "
        "adapters. Runs on the CPU and holds the model once. An adapter that was trained on a 4-bit base is merged "
        "into the 16-bit original.",
        EXAMPLES,
    )
    source = "an adapter's directory, a checkpoint, or a run's directory"
    made.add_argument("source", metavar="ADAPTER_DIR", help=source)
    made.add_argument("target", nargs="?", metavar="OUT_DIR", help="output; default: merged, beside the adapter")
    made.add_argument("--dtype", metavar="DTYPE", help="bfloat16, float16 or float32; by default the base's, in 16 bit")
    made.add_argument("--base", metavar="MODEL", help="merge into this model, where the adapter names another place")
    made.add_argument("--overwrite", action="store_true", help="replace what an earlier merge left in OUT_DIR")
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_args(words)
    from ..artifacts.merge import plan_merge, write_merged

    merge = plan_merge(asked.source, asked.target, base=asked.base, dtype=asked.dtype, overwrite=asked.overwrite)
    print(f"adapter  {merge.adapter}")
    print(f"base     {merge.base}" + ("" if merge.base == merge.trained_on else f" (trained on {merge.trained_on})"))
    print(f"merging  {merge.spec.num_parameters / 1e9:.2f}B parameters in {merge.dtype}", flush=True)
    files = write_merged(merge)
    size = sum(file.stat().st_size for file in files)
    print(f"merged   {merge.target} ({counted(len(files), 'weight file')}, {size / 2**30:.2f} GiB)")
    return 0
