"""Write docs/models.md: families of models, how each is planned, and what of it was run where.

    python -m benchmarks.models_page docs/models.md

`NAMES` gives the family of every model in Unsloth's own mapper, by its name on the Hub.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.published_shapes import PUBLISHED
from benchmarks.random_checkpoint import FAMILIES
from unsloth_accel.config.installed_source import source_text
from unsloth_accel.models.architectures import ARCHITECTURES
from unsloth_accel.models.counted import KNOWN

RESULTS = "benchmarks/results/gpu-checks.json"
NAMES: tuple[tuple[str, str], ...] = (
    ("whisper|spark-tts|csm-", ""),
    ("muse-glimmer|qwen3\\.8", ""),
    ("deepseek-r1-0528-qwen3", "qwen3"),
    ("deepseek-r1-distill-qwen|deepscaler|openthinker|qwq|qwen2(\\.5)?(?!.*vl)", "qwen2"),
    ("qwen2-vl", "qwen2_vl"),
    ("qwen2\\.5-vl", "qwen2_5_vl"),
    ("qwen3-vl", "qwen3_vl"),
    ("qwen3-(coder-)?30b-a3b", "qwen3_moe"),
    ("qwen3", "qwen3"),
    ("gemma-4", "gemma4"),
    ("gemma-3n", "gemma3n"),
    ("(functiongemma|gemma-3)-(1b|270m)|medgemma-27b-text", "gemma3_text"),
    ("gemma-3|medgemma", "gemma3"),
    ("gemma-2-", "gemma2"),
    ("gemma", "gemma"),
    ("gpt-oss", "gpt_oss"),
    ("granite-vision", "llava_next"),
    ("granite-4\\.0", "granitemoehybrid"),
    ("granite", "granite"),
    ("llava-v1\\.6", "llava_next"),
    ("llava", "llava"),
    ("llama-3\\.2-\\d+b-vision", "mllama"),
    ("pixtral", "llava"),
    ("ministral-3|mistral-small-3|magistral-small-2509", "mistral3"),
    ("mixtral", "mixtral"),
    ("phi", "phi3"),
    ("olmo-2", "olmo2"),
    ("olmo-3", "olmo3"),
    ("lfm2", "lfm2"),
    ("kimi-k2", "deepseek_v3"),
    ("aya-vision", "aya_vision"),
    ("command-a", "cohere2"),
    ("command-r", "cohere"),
    ("apertus", "apertus"),
    ("mistral|codestral|devstral|magistral|zephyr|starling|openhermes", "mistral"),
    ("llama|smollm|solar|yi-|reka|orpheus|llasa|hermes", "llama"),
)
"""Regular expressions on a model's name, in lower case, and the model_type that its config.json has; the first that
fits counts. Empty for one that is no language model, or whose config is not known to the public."""
ON_CPU: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen3", "gemma3_text"), ("single", "ddp")),
    **dict.fromkeys(("gpt_oss", "qwen3_moe"), ("single", "ddp", "fsdp2_native")),
    **dict.fromkeys(("gemma3", "qwen2_5_vl"), ("single", "fsdp2_native")),
    **dict.fromkeys(("mistral3", "qwen3_vl", "qwen3_5"), ("single", "ddp")),
    **dict.fromkeys(
        (
            *("cohere", "cohere2", "exaone4", "glm4", "granite", "helium", "lfm2", "ministral3", "olmo2", "olmo3"),
            *("seed_oss", "smollm3", "stablelm", "starcoder2", "gemma", "gemma2", "phi3", "qwen2"),
            *("deepseek_v3", "glm4_moe", "granitemoehybrid", "nemotron_h", "qwen3_next", "minimax_m2"),
        ),
        ("single",),
    ),
}
"""Strategies by which the tests train a small model of a family on a CPU, save it and load it again."""


_ABOUT = """Written by `python -m benchmarks.models_page docs/models.md`. *Exact*: the library knows a family's shapes.
*Counted*: transformers builds the model without weights and it is counted there; its activations are taken as large as
its weights allow. Any other config.json that the installed transformers knows is counted, too; of one that it doesn't
know, the class that it names is counted, or its fields are read off, which is an estimate: planned with a warning, and
refused by launch. *CPU*: strategies by which a test trains a small model, saves it and loads it again. GPU columns:
whether a run on two GPUs was that of one ([gpu-checks.md](gpu-checks.md)); empty where none was made. *4 bit*: the
strategies by which a run on two GPUs with the base in 4 bit was that of one. Models with a tower for images or sound
are trained on text: the tower stays as it is."""


def family_of(name: str) -> str:
    """Return the model_type of the model `name`, a hub id; empty where it is none that is trained here."""
    last = name.lower().rpartition("/")[2]
    return next((kind for pattern, kind in NAMES if re.search(pattern, last)), "")


def planned(model_type: str) -> str:
    """Return how a family's size is known: `exact`, from a record; `counted`, by transformers; empty where it isn't."""
    if model_type in ARCHITECTURES:
        return "exact"
    return "counted" if model_type and f'"{model_type}"' in (source_text(KNOWN) or "") else ""


def on_gpus(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what the checks on GPUs showed, by model_type and strategy."""
    kinds = {name: values["model_type"] for name, values in (*FAMILIES.items(), *PUBLISHED.items())}
    kinds |= {"gemma3_vl": "gemma3"}
    found: dict[str, dict[str, str]] = {}
    for name, check in report["checks"].items():
        if match := re.fullmatch(r"family-(\w+?)(?:-(ddp|fsdp2|fsdp2_native))?(-eager)?", name):
            strategies = [match[2]] if match[2] else [*check.get("figures", {})]
            for strategy in strategies:
                said, card = "yes" if check["ok"] else "failed", re.search(r"[A-Z]+\d+", check["gpu"])
                place = found.setdefault(kinds.get(str(match[1]), str(match[1])), {})
                told = f"{said}, {card[0] if card else check['gpu']}"
                if match[3]:  # the same check without Unsloth's compiling: it doesn't outdo the one with it
                    place.setdefault(strategy, told)
                else:
                    place[strategy] = told
    return found


def in_4_bit(report: dict[str, Any]) -> dict[str, str]:
    """Return what the checks of a base in 4 bit showed, by model_type: `verify-4bit`, whose model is Llama's, and those
    of a family."""
    kinds = {name: values["model_type"] for name, values in (*FAMILIES.items(), *PUBLISHED.items())}
    found: dict[str, str] = {}
    for name, check in report["checks"].items():
        match = re.fullmatch(r"verify-4bit|family-(\w+?)-4bit", name)
        if match:
            kind = kinds.get(match[1], str(match[1])) if match[1] else "llama"
            card = re.search(r"[A-Z]+\d+", check["gpu"])
            strategies = ", ".join(check.get("figures", {})) if check["ok"] else "failed"
            found[kind] = f"{strategies}: {card[0] if card else check['gpu']}"
    return found


def page(report: dict[str, Any]) -> str:
    """Return docs/models.md."""
    gpus, in_4 = on_gpus(report), in_4_bit(report)
    families = dict.fromkeys([*ARCHITECTURES.names, *(kind for _, kind in NAMES if kind), *ON_CPU, *gpus])
    lines = [
        "# Models",
        "",
        textwrap.fill(_ABOUT, 118),
        "",
        "| model_type | plan | CPU | ddp | fsdp2 | fsdp2_native | 4 bit |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in families:
        seen = [gpus.get(kind, {}).get(strategy, "") for strategy in ("ddp", "fsdp2", "fsdp2_native")]
        told = [kind, planned(kind), ", ".join(ON_CPU.get(kind, ())), *seen, in_4.get(kind, "")]
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(json.loads(Path(RESULTS).read_text(encoding="utf-8"))), encoding="utf-8")
