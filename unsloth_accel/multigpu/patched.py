"""What is put around Trainers, their arguments and Unsloth's loaders, as long as multi-GPU support is on.

Three upstream names are replaced and put back: `TrainingArguments.__post_init__`, which then takes batch, accumulation
and DDP's settings from `enable_multi_gpu` before TRL's configs divide anything; `train`, `evaluate` and `predict` of
Trainer and of the classes below it that have their own, which adapt their trainer first; and `from_pretrained` of
Unsloth's classes, by which each GPU loads what it keeps. GRPO has one more, its trainer's `__init__` (`whole_groups`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ..adapters import environment
from ..config.lora_fields import reads_the_base
from ..errors import ConfigError, Problem
from .asked import MultiGPUConfig
from .whole_groups import whole_groups, without_vllm

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments


@dataclass
class State:
    """What is on, and what it was put around."""

    config: MultiGPUConfig | None = None
    """What is in force; None where support is off."""
    asked: MultiGPUConfig | None = None
    """The arguments as they were given."""
    grpo: bool = False
    num_processes: int = 1
    adapted: WeakSet[Any] = field(default_factory=WeakSet)
    """Trainers that were adapted."""
    loaded: int = 0
    """Models that were loaded since."""
    replaced: list[tuple[Any, str, Any]] = field(default_factory=list)
    """Owner, name and what stood there, in the order in which it was replaced."""
    loading: bool = False
    told: set[str] = field(default_factory=set)


STATE = State()
METHODS = ("train", "evaluate", "predict")
_MISSING = object()
_ADAPTS = "_unsloth_accel_adapts"


def replace(owner: Any, name: str, value: Any) -> None:
    """Put `value` in the place of `owner.name`, to be put back by `restore`."""
    STATE.replaced.append((owner, name, vars(owner).get(name, _MISSING)))
    setattr(owner, name, value)


def restore() -> None:
    """Put everything back, the last first."""
    while STATE.replaced:
        owner, name, previous = STATE.replaced.pop()
        if previous is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, previous)


def install() -> None:
    """Put what is on (`STATE`) around the upstream names; imports unsloth first, which patches them itself."""
    import unsloth
    from transformers import TrainingArguments

    restore()
    post_init: Any = TrainingArguments.__post_init__

    @functools.wraps(post_init)
    def settled(args: TrainingArguments) -> None:
        settle(args)
        wrap_trainers()
        post_init(args)

    replace(TrainingArguments, "__post_init__", settled)
    if STATE.grpo:
        import trl

        replace(trl.GRPOTrainer, "__init__", without_vllm(trl.GRPOTrainer.__init__, say))
    wrap_trainers()
    if STATE.config is None:
        return
    for owner in ("FastLanguageModel", "FastModel"):
        _load_shards(getattr(unsloth, owner, None))


def wrap_trainers() -> None:
    """Have the `METHODS` of Trainer, and of each class below it that defines its own, adapt their trainer first.

    Unsloth's GRPO has a `train` that holds the Trainer's of the time at which its class was made, so that one put in
    the Trainer's place later is never called. Classes are made at any time: called anew it wraps those that are new.
    """
    from transformers import Trainer

    if STATE.config is None and not STATE.grpo:
        return
    for kind in _with_subclasses(Trainer):
        for name in METHODS:
            method = vars(kind).get(name)
            if inspect.isfunction(method) and not hasattr(method, _ADAPTS):
                replace(kind, name, _adapted_first(method, name))


def _with_subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _with_subclasses(below)


def say(text: str) -> None:
    """Print `text` on rank 0, once."""
    if text not in STATE.told and environment.rank() == 0:
        print(f"unsloth_accel: {text}", flush=True)
    STATE.told.add(text)


def settle(args: Any) -> None:
    """Write what was asked for into a Trainer's arguments, before they are checked."""
    config = STATE.config or MultiGPUConfig()
    wanted = {
        "per_device_train_batch_size": config.batch_size_per_gpu,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ddp_find_unused_parameters": config.find_unused_parameters,
        "ddp_backend": config.ddp_backend,
    }
    for name, value in wanted.items():
        previous = getattr(args, name, None)
        if value is None or value == previous:
            continue
        setattr(args, name, value)
        if name.startswith(("per_device", "gradient")):
            say(f"{name}={value}, as enable_multi_gpu was told; the Trainer's config says {previous}")
    if STATE.grpo:
        whole_groups(args, environment.world_size(), say)


def _adapted_first(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        from ..adapters.generating import writes_completions
        from ..training.adapt import adapt
        from ..training.grpo_scripts import support_grpo

        grpo = STATE.grpo and writes_completions(trainer)
        if trainer in STATE.adapted or not (STATE.config or grpo):
            return original(trainer, *arguments, **named)
        if grpo:
            support_grpo(trainer)
        if STATE.config is None:
            adapt(trainer)
        else:
            adapt_as_asked(trainer, STATE.config)
        STATE.adapted.add(trainer)
        return getattr(trainer, name)(*arguments, **named)  # through what the adapters have put around it

    setattr(method, _ADAPTS, True)
    return method


def adapt_as_asked(trainer: Trainer, config: MultiGPUConfig) -> None:
    """Adapt `trainer`, watch it, and give it what `config` asks for."""
    from ..adapters.ddp_settings import gradients_in_buckets
    from ..adapters.out_of_memory import StepHalving, halve_on_out_of_memory
    from ..callbacks.guard import Guard
    from ..callbacks.memory_watch import MemoryWatch
    from ..callbacks.observed import observe
    from ..training.adapt import adapt

    if any(isinstance(callback, Guard) for callback in trainer.callback_handler.callbacks):
        return  # the script has adapted it, in its own way
    _settle_made(trainer, config)
    _check_model(trainer.model)
    keep_or_recompute(trainer.model, config.enable_gradient_checkpointing)
    halving: StepHalving | str | None = None
    if config.enable_memory_optimization:
        if trainer.accelerator.num_processes > 1:
            gradients_in_buckets(trainer.accelerator)
        if trainer.accelerator.device.type == "cuda":
            halving = halve_on_out_of_memory(trainer)
        trainer.add_callback(MemoryWatch())
    observe(trainer, halving=halving if isinstance(halving, StepHalving) else None)
    adapt(trainer)


def _settle_made(trainer: Trainer, config: MultiGPUConfig) -> None:
    """Give `trainer` the batch of `config` where its arguments were made before support was on."""
    from ..adapters.real_batch import set_batch

    args = trainer.args
    per_device = config.batch_size_per_gpu or args.per_device_train_batch_size
    accumulation = config.gradient_accumulation_steps or args.gradient_accumulation_steps
    if (per_device, accumulation) == (args.per_device_train_batch_size, args.gradient_accumulation_steps):
        return
    if hasattr(args, "num_generations"):
        if STATE.grpo:  # whole groups need more than was asked for, and that was said
            return
        consequence = "GRPO divides its batch into groups when its config is made, which was before."
        fix = f"enable_multi_gpu before GRPOConfig(…), or GRPOConfig(per_device_train_batch_size={per_device})"
        raise ConfigError(Problem(key="batch_size_per_gpu", value=per_device, consequence=consequence, fix=fix))
    set_batch(trainer, per_device, accumulation)


def _check_model(model: torch.nn.Module) -> None:
    """Say what is lost where `model` isn't Unsloth's, or was loaded before support was on."""
    from ..adapters.fsdp2.loading import loads_rows

    if not hasattr(model, "for_training"):
        say("the model isn't Unsloth's: it trains on all ranks alike, without Unsloth's kernels")
    elif loads_rows() and not STATE.loaded:
        say("warning: the model was made before enable_multi_gpu, so each GPU loaded all of it. Fix: call it before")


def keep_or_recompute(model: torch.nn.Module, checkpointing: bool | None) -> None:
    """Let every decoder block recompute its activations (`checkpointing`), or none; None leaves it to the model.

    Raises `ConfigError` where the model was made otherwise, or has no blocks that Unsloth finds.
    """
    from ..adapters.kept_activations import blocks, keep

    if checkpointing is None:
        return
    found = len(blocks(model))
    recomputes = getattr(model, "_unsloth_gradient_checkpointing", True) not in (False, None)
    if not found or (checkpointing and not recomputes):
        consequence = "the model was made without it." if found else "Unsloth finds no decoder blocks in this model."
        fix = 'FastLanguageModel.get_peft_model(…, use_gradient_checkpointing="unsloth")'
        fix = fix if found else "gradient_checkpointing=True or False in the Trainer's config"
        key = "enable_gradient_checkpointing"
        raise ConfigError(Problem(key=key, value=checkpointing, consequence=consequence, fix=fix))
    keep(model, 0 if checkpointing else found)


def _load_shards(owner: Any) -> None:
    """Let `owner.from_pretrained` load on each GPU what it keeps, and onto this process's own GPU; and have its
    `get_peft_model` refuse an adapter for which that is too little."""
    original = getattr(owner, "from_pretrained", None)
    if original is None:
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def from_pretrained(*arguments: Any, **named: Any) -> Any:
        from ..adapters.ddp_settings import device_map

        if STATE.config is None or STATE.loading:
            return original(*arguments, **named)
        bound = signature.bind_partial(*arguments, **named)
        bound.apply_defaults()
        place = device_map()
        if place is not None:
            named.setdefault("device_map", place)
        with ExitStack() as stack:
            STATE.loading = True
            stack.callback(setattr, STATE, "loading", False)
            stack.enter_context(_loading(bound.arguments))
            loaded = original(*arguments, **named)
        STATE.loaded += 1
        wrap_trainers()
        return loaded

    replace(owner, "from_pretrained", staticmethod(from_pretrained))
    make_adapter: Callable[..., Any] | None = getattr(owner, "get_peft_model", None)
    if make_adapter is None:  # what Unsloth has in a class's place on a CPU
        return

    @functools.wraps(make_adapter)
    def get_peft_model(model: torch.nn.Module, *arguments: Any, **named: Any) -> Any:
        _check_start(model, named)
        return make_adapter(model, *arguments, **named)

    replace(owner, "get_peft_model", staticmethod(get_peft_model))


def _loading(arguments: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Return the context in which `arguments` of Unsloth's loader load a model: decided as a run.yaml's is."""
    from peft import PeftConfig

    from ..adapters.fsdp2.loading import loading_of, loads_rows
    from ..training.model_kind import kind_of

    name, mixture, reads_base = str(arguments.get("model_name")), False, False
    hub = {key: arguments[key] for key in ("token", "revision") if arguments.get(key)}
    if loads_rows():
        with suppress(OSError, ValueError):  # it is no adapter
            start: Any = PeftConfig.from_pretrained(name, **hub)
            name, hub = start.base_model_name_or_path, {key: hub[key] for key in hub if key != "revision"}
            reads_base = _reads_the_base(vars(start))
        with suppress(OSError, ValueError):  # it is no model, which the loader itself tells
            mixture = kind_of(name, remote_code=bool(arguments.get("trust_remote_code")), **hub).mixture
    in_4bit = bool(arguments.get("load_in_4bit", True))
    return loading_of(load_in_4bit=in_4bit, mixture=mixture, reads_base=reads_base)


def _check_start(model: torch.nn.Module, named: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an adapter whose first weights need all of the base, of which this GPU holds rows."""
    from ..adapters.fsdp2.loading import holds_rows

    if STATE.config is None or not _reads_the_base(named) or not holds_rows(model):
        return
    key = "use_dora" if named.get("use_dora") else "init_lora_weights"
    consequence = "is computed from whole weights of the base, of which each GPU has loaded its rows only."
    fix = 'load the model inside "with unsloth_accel.whole_loading():"'
    raise ConfigError(Problem(key=key, value=named[key], consequence=consequence, fix=fix))


def _reads_the_base(said: Mapping[str, Any]) -> bool:
    return reads_the_base(use_dora=bool(said.get("use_dora")), init_lora_weights=said.get("init_lora_weights", True))
