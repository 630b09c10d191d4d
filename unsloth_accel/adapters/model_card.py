"""The card of a run's adapter (README.md): what it is of, how it is loaded, what it was trained with.

PEFT (0.21) writes a form of two hundred lines to be filled in; where the base is a directory it puts the path into the
card, which the Hub refuses to take. Its facts are kept here (library, base, tags), and the form isn't.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..capabilities.probe import available
from ..config.push_target import PushTarget
from ..config.run_config import RunConfig
from ..config.start_adapter import model_of
from ..files import is_directory
from .saving import unwrapped

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import Trainer

_TEXT = """
# {name}

A LoRA adapter of {base}, trained with Unsloth and unsloth_accel ({method}, r = {r}, alpha = {alpha}).

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
"""


def write_our_cards(trainer: Trainer, run: RunConfig) -> None:
    """Have each adapter that `trainer`'s model saves get a card of ours."""
    model = unwrapped(trainer.model)
    if not available("an adapter's card"):
        return
    write: Callable[[str], None] = model.create_or_update_model_card

    def create(output_dir: str) -> None:
        write(output_dir)
        complete(Path(output_dir, "README.md"), run, model.peft_config[model.active_adapter])

    model.create_or_update_model_card = create


def complete(file: Path, run: RunConfig, lora: LoraConfig) -> None:
    """Put our text into the card that PEFT wrote to `file`, and leave no path of this machine there."""
    from huggingface_hub import ModelCard, ModelCardData

    target, base = PushTarget.of(run), model_of(run.model.name)
    data = ModelCard.load(file).data.to_dict()
    own = is_directory(base)
    if own:
        del data["base_model"]
        data["tags"] = [tag for tag in data["tags"] if not tag.startswith("base_model:")]
    else:
        base = str(data["base_model"])  # Unsloth may have loaded another form of it
    name = target.repository if target else Path(run.output_dir).absolute().name
    there = "The path is that of the directory of this file, or of the repository that it was pushed to."
    text = _TEXT.format(
        name=name.rpartition("/")[2],
        base=f"`{Path(base).name}`, a model of its maker's own" if own else f"[{base}](https://huggingface.co/{base})",
        method=run.method,
        r=lora.r,
        alpha=lora.lora_alpha,
        place=(name if "/" in name else f"OWNER/{name}") if target else str(Path(name) / "adapter"),
        length=run.model.max_seq_length,
        in_4bit=run.model.load_in_4bit,
        where="`versions.json` has the versions that it was trained with." if target else there,
    )
    file.write_text(f"---\n{ModelCardData(**data).to_yaml()}\n---\n{text}", encoding="utf-8")
