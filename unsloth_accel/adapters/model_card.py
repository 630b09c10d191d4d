"""The card (README.md) of an adapter: what it is of, what it was trained on and how, how it is loaded and served.

One for all that is saved: a run's adapter and checkpoints, those of a script's Trainer, and its output_dir.

PEFT (0.21) writes a form of two hundred lines to be filled in; where the base is a directory it puts the path into the
card, which the Hub refuses to take. Its facts are kept here (library, base, tags), and the form isn't. TRL (1.15)
drafts another one into output_dir with every checkpoint, over whatever is there, which calls an adapter of a model in a
directory "a fine-tuned version of [None]".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts.score_adapter import score_code
from ..capabilities.probe import available
from ..config.push_target import PushTarget
from ..config.run_config import RunConfig
from ..config.start_adapter import model_of
from ..config.template_fields import is_template_name
from ..errors import counted
from ..files import is_directory
from ..strategies import STRATEGIES
from . import environment
from .real_batch import batch_of
from .saving import unwrapped, versions

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import Trainer

_MADE = "<!-- Made by unsloth_accel, which writes it anew. -->"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's --max-lora-rank (vllm/config/lora.py)."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TEXT = """
{made}

# {name}

A LoRA adapter of {base}, trained with Unsloth and unsloth_accel.

{facts}
"""
_LANGUAGE_MODEL = """
## How to load it

```python
import unsloth  # before transformers
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained({place!r}, max_seq_length={length}, load_in_4bit={in_4bit})
```

or with PEFT alone:

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained({place!r})
tokenizer = AutoTokenizer.from_pretrained({place!r})
```

{where}

## How to serve it

{beside}As one 16-bit model, for programs that load no adapters:

```bash
{fetch}unsloth-accel merge {local} merged
vllm serve merged
```

As GGUF, for llama.cpp, from the merged model:

```python
model, tokenizer = FastLanguageModel.from_pretrained("merged", load_in_4bit=False)
model.save_pretrained_gguf("gguf", tokenizer, quantization_method="q4_k_m")
```
"""
_REWARD_MODEL = """
A reward model: its head, which is saved in the adapter, gives a text one number.

## How to load it

```python
{code}
```

{where}
"""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says beyond what PEFT knows."""

    place: str = "adapter"
    """Directory of the adapter as the reader may have it, or its repository."""
    pushed: bool = False
    """Whether `place` is a repository."""
    base: str | None = None
    """Directory or hub id of the base; None: what PEFT says."""
    method: str = "LoRA"
    length: int = 2048
    in_4bit: bool = False
    told: dict[str, str] = field(default_factory=dict)
    """Data and plan, by name."""


def write_our_cards(trainer: Trainer, run: RunConfig | None = None) -> None:
    """Have each adapter that `trainer`'s model saves get a card of ours; for a script, without `run`, output_dir too,
    where no README.md of the user's own is. The second time it does nothing."""
    model = unwrapped(trainer.model)
    if not own_cards(model, lambda: facts_of(trainer, run)) or not available("a README of the user's own"):
        return

    def create(*_: Any, **__: Any) -> None:
        if run is None and trainer.is_world_process_zero():
            model.create_or_update_model_card(trainer.args.output_dir)

    trainer.create_model_card = create


def own_cards(model: Any, facts: Callable[[], Facts] = Facts) -> bool:
    """Have each adapter that `model` saves get a card of ours, with the `facts` of that moment; return whether that is
    new: not for a model without an adapter, or with one that is no LoRA, and not the second time."""
    known = "create_or_update_model_card"
    if not hasattr(model, known) or known in vars(model) or not available("an adapter's card"):
        return False
    if not all(hasattr(adapter, "lora_alpha") for adapter in model.peft_config.values()):  # PEFT's has other kinds
        return False
    write: Callable[[str], None] = model.create_or_update_model_card

    def create(output_dir: str) -> None:
        file = Path(output_dir, "README.md")
        if file.is_file() and _MADE not in file.read_text(encoding="utf-8", errors="replace"):
            return  # the user's own
        file.unlink(missing_ok=True)
        write(output_dir)
        complete(file, facts(), model.peft_config[model.active_adapter])

    model.create_or_update_model_card = create
    return True


_MOST_TOKENS = 8


def complete(file: Path, facts: Facts, lora: LoraConfig) -> None:
    """Put our text into the card that PEFT wrote to `file`, and leave no path of this machine there."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCard.load(file).data.to_dict()
    base = str(facts.base or data.get("base_model"))
    own = is_directory(base)
    if own:
        data.pop("base_model", None)
        data["tags"] = [tag for tag in data["tags"] if not tag.startswith("base_model:")]
    else:
        base = str(data["base_model"])  # Unsloth may have loaded another form of it
    modules = getattr(lora, "target_modules", None)
    names = [] if isinstance(modules, str) else [*(modules or ()), *(getattr(lora, "target_parameters", None) or ())]
    on = f", on {', '.join(sorted(names))}" if names else ""
    told = {"Method": f"{facts.method}, r = {lora.r}, alpha = {lora.lora_alpha}{on}", **facts.told}
    told["Versions"] = ", ".join(f"{name} {version}" for name, version in versions().items())
    there = "The path is that of the directory of this file, or of the repository that it was pushed to."
    where = "`versions.json` has the versions that it was trained with." if facts.pushed else there
    shown = Path(base).name if own else base
    config = {"task_type": getattr(lora, "task_type", None), "base_model_name_or_path": shown}
    code = score_code(config, facts.place)
    text = (_TEXT + (_REWARD_MODEL if code else _LANGUAGE_MODEL)).format(
        made=_MADE,
        code=code,
        name=Path(facts.place).name if facts.pushed or facts.place.count("/") != 1 else facts.place.partition("/")[0],
        base=f"`{shown}`, loaded from a directory" if own else f"[{base}](https://huggingface.co/{base})",
        facts="\n".join(f"- **{name}**: {value}" for name, value in told.items()),
        place=facts.place,
        length=facts.length,
        in_4bit=facts.in_4bit,
        where=where,
        beside=_beside(shown, facts.place, lora),
        fetch=f"hf download {facts.place} --local-dir adapter\n" if facts.pushed else "",
        local="adapter" if facts.pushed else facts.place,
    )
    file.write_text(f"---\n{ModelCardData(**data).to_yaml()}\n---\n{text}", encoding="utf-8")


def facts_of(trainer: Trainer, run: RunConfig | None) -> Facts:
    """Return what `trainer` knows now of what it trains, and its `run`'s description of it."""
    args, model = trainer.args, unwrapped(trainer.model)
    target = PushTarget.of(run) if run else None
    output = Path(run.output_dir if run else args.output_dir).absolute().name
    repository = target.repository if target else (args.hub_model_id or output) if args.push_to_hub else None
    if repository:
        place = repository if "/" in repository else f"OWNER/{repository}"
    else:
        place = f"{output}/adapter" if run else output
    method = run.method if run else type(trainer).__name__.removeprefix("Unsloth").removesuffix("Trainer")
    length = getattr(model, "max_seq_length", None) or getattr(args, "max_length", None) or Facts.length
    return Facts(
        place=place,
        pushed=bool(repository),
        base=model_of(run.model.name) if run else None,
        method=f"{method.upper()} of a LoRA adapter",
        length=run.model.max_seq_length if run else int(length),
        in_4bit=run.model.load_in_4bit if run else bool(getattr(model, "is_loaded_in_4bit", False)),
        told={"Data": _data(trainer, run), **_template(run), "Plan": _plan(trainer, run)},
    )


def _data(trainer: Trainer, run: RunConfig | None) -> str:
    rows = getattr(trainer, "train_dataset", None)
    counted = f"{len(rows):,} rows" if isinstance(rows, Sized) else "rows of a stream"
    if run is None:
        return counted
    held = f"; held out: {_source(run.data.eval_path)}" if run.data.eval_path else ""
    held = f"; held out: {run.data.eval_fraction:g} of the rows" if run.data.eval_fraction else held
    rows = ", ".join(dict.fromkeys(_source(one.path) for one in run.data.sources.values()))
    return f"{rows}, {counted}, trained on {run.data.train_on}{held}"


def _template(run: RunConfig | None) -> dict[str, str]:
    """The chat template and the tokens that the run gave the tokenizer, where it did."""
    if run is None:
        return {}
    own, added, given = run.model.chat_template, run.model.added_tokens, run.data.chat_template_kwargs
    told = {}
    if own or given:
        named = own if own and is_template_name(own) else "the run's own" if own else "the model's"
        told["Chat template"] = ", ".join([named, *(f"{name}={json.dumps(value)}" for name, value in given.items())])
    if added:
        shown = ", ".join(f"`{token}`" for token in added[:_MOST_TOKENS])
        more = len(added) - _MOST_TOKENS
        told["Added tokens"] = f"{shown} and {more} more" if more > 0 else shown
    return told


def _source(path: str) -> str:
    """A hub id as a link; of a path of this machine the last part."""
    if _HUB_ID.fullmatch(path) and not Path(path).exists() and not Path(path).suffix:
        return f"[{path}](https://huggingface.co/datasets/{path})"
    return f"`{Path(path).name}`"


def _plan(trainer: Trainer, run: RunConfig | None) -> str:
    args, accelerator = trainer.args, trainer.accelerator
    promised = environment.promise()
    strategy = run.distributed.strategy if run else (promised.strategy if promised else None)
    several = accelerator.num_processes > 1
    alone = next(one.name for one in STRATEGIES if one.one_process)
    strategy = strategy or (str(accelerator.distributed_type.value) if several else alone)
    kind = "GPU" if accelerator.device.type == "cuda" else "process"
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    return (
        f"{strategy} on {counted(accelerator.num_processes, kind)}, {precision}, {batch_of(trainer)}, "
        f"{trainer.state.global_step} of {trainer.state.max_steps} steps, "
        f"learning rate {args.learning_rate:g} ({scheduler}), seed {args.seed}"
    )


def _beside(base: str, place: str, lora: LoraConfig) -> str:
    """The command of vLLM with the adapter beside its base; empty where vLLM can't load it so."""
    rank = next((rank for rank in _RANKS if rank >= lora.r), None)
    if rank is None or getattr(lora, "modules_to_save", None) or getattr(lora, "use_dora", False):
        return ""
    return (
        "With vLLM, beside its base:\n\n"
        f"```bash\nvllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules adapter={place}\n```\n\n"
    )
