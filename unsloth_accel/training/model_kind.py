"""What a model's config.json says of how it is loaded; and the loading on a CPU of one with a tower, trained on text.

On GPUs Unsloth's FastModel loads it. On a CPU Unsloth 2026.10.9 loads what AutoModelForCausalLM knows, and refuses the
rest (unsloth/_cpu_init.py: FastVisionModel).
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, NamedTuple

from ..adapters import environment
from ..capabilities.probe import available
from ..models.build_without_weights import CLASSES, EXPERTS


class Kind(NamedTuple):
    """What decides how a model is loaded."""

    tower: bool
    """Whether it is composed of a text model and others."""
    mixture: bool
    """Whether it is a mixture of experts."""


def kind_of(name: str, *, remote_code: bool, **hub: Any) -> Kind:
    """Return the kind of the model `name`, by its config.json; `hub` may have a `token` and a `revision`."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=remote_code, **hub)
    text = config.get_text_config()
    return Kind(
        tower=text is not config and not config.is_encoder_decoder,
        mixture=any((getattr(text, key, None) or 0) > 1 for key in EXPERTS),
    )


def settle_routers(model: Any) -> None:
    """Give the config of a mixture what TRL 1.15 asks of it for the auxiliary loss: its number of experts by the name
    `num_experts`, where Phi's and DeepSeek-V4's have others; and no such loss where the model's class tells nothing of
    its routers, as Granite's, of whose dense models, too, TRL would take the mean of a number
    (trl/trainer/sft_trainer.py: `aux_loss_enabled`)."""
    text = model.config.get_text_config()
    own = [number for key in EXPERTS if (number := getattr(text, key, None)) is not None]
    if own and not hasattr(text, "num_experts"):
        text.num_experts = own[0]
    if not hasattr(text, "router_aux_loss_coef") or not available("what a model tells beside its output"):
        return
    told = [kinds for module in model.modules() if (kinds := getattr(module, "_can_record_outputs", None))]
    if told and not any("router_logits" in kinds for kinds in told):
        text.router_aux_loss_coef = 0.0


def load_on_cpu(name: str, tokenizer: str, *, dtype: Any, remote_code: bool) -> tuple[Any, Any]:
    """Return model and tokenizer, loaded by the auto class that Unsloth takes on a GPU."""
    import transformers

    if environment.rank() == 0:
        print("loading    by transformers: on a CPU Unsloth has no models with a tower for images or sound", flush=True)
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=remote_code)
    known = available("the configs of an auto class")
    kinds = [getattr(transformers, one) for one in CLASSES if hasattr(transformers, one)]
    fitting = [kind for kind in kinds if known and type(config) in kind._model_mapping]
    kind = fitting[0] if fitting else transformers.AutoModelForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind.from_pretrained(name, dtype=dtype, trust_remote_code=remote_code)
    if "loss_function" in inspect.unwrap(type(model).forward).__code__.co_names:
        # Each token counts the same, as on a GPU: that function would, but most of these classes say that they can't.
        model.accepts_loss_kwargs = True
    return model, transformers.AutoTokenizer.from_pretrained(
        tokenizer, trust_remote_code=remote_code, padding_side="right"
    )
