"""Towers: what a model has for images or sound beside its text model, and what joins it; rows of text don't pass it.

Mends, in Unsloth 2026.10.9, for a model with a tower that is trained on text:
- On a GPU it loads a processor of images, which needs torchvision, and which text is not prepared with. Here it loads
  the tokenizer alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available

if TYPE_CHECKING:
    import torch


def towers_of(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the paths in `model` of the outermost modules with parameters that are no part of its text model.

    Empty for a model of text alone. `model` is a PreTrainedModel, or one with an adapter around it.
    """
    config: Any = model.config
    text = model.get_decoder() if config.get_text_config() is not config else None
    if text is None:
        return ()
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    own = {id(module) for part in (text, *filter(None, ends)) for module in part.modules()}

    def outside(module: torch.nn.Module, path: str) -> Iterator[str]:
        for name, child in module.named_children():
            if id(child) in own or not any(True for _ in child.parameters()):
                continue
            if any(id(inner) in own for inner in child.modules()):
                yield from outside(child, f"{path}{name}.")
            else:
                yield f"{path}{name}"

    return tuple(outside(model, ""))


@contextmanager
def tokenizer_only() -> Iterator[None]:
    """Let Unsloth load a tokenizer where it would load a processor of images or sound."""
    if not available("the processor that Unsloth loads"):
        yield
        return
    from transformers import AutoTokenizer
    from unsloth.models import vision

    ours: dict[str, Any] = {
        "AutoProcessor": AutoTokenizer,
        # Both are for a tokenizer in place of a processor, which is as it should be here.
        "_construct_vlm_processor_fallback": lambda *_, **__: (None, None),
        "_missing_torchvision_error": lambda *_: False,
    }
    theirs = {name: getattr(vision, name) for name in ours}
    vars(vision).update(ours)
    try:
        yield
    finally:
        vars(vision).update(theirs)
