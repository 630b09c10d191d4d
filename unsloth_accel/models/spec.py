"""ModelSpec: a model's exact sizes and parameters, without loading it and without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal

from ..config.start_adapter import model_of
from ..errors import ConfigError, Problem
from . import lora_size
from .architectures import ARCHITECTURES, Sizes, architecture_of, parameters, read_dimensions
from .build_without_weights import ROUTED
from .counted import Counted, NotTrained, Part, UnknownModel, count, of_named_class
from .model_tensors import BLOCK, Linear, Tensor, is_kept, nf4_bytes, tensor_of
from .read_off import read_off
from .safetensors_header import Stored, read_checkpoint
from .stored_form import Form, read_form

Source = Literal["safetensors headers", "config.json", "known shapes", "transformers' class", "config.json's fields"]
_BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias")
"""Ends of names that older checkpoints store and that are no parameters."""
_BITS = {"bnb-8bit": 8, "fp8": 8, "gptq": 4, "awq": 4}


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Sizes, Form):
    """The sizes and parameters of `AutoModelForCausalLM` for one model, as transformers 5.17 builds it.

    Lengths are in elements, sizes in bytes.
    """

    name: str
    model_type: str
    source: Source
    """Source of the counts. Shapes are config.json's; headers confirm them and give dtype and stored bytes."""
    decoder_layer_class: str
    """Class of a decoder block, for FSDP's transformer_layer_cls_to_wrap; empty for an unknown architecture."""
    tensors: tuple[Tensor, ...]
    """All parameters; a tied lm_head counts once, as the embeddings."""
    measured: bool = True
    """Whether activations of such blocks were measured for the estimate of memory; otherwise they are taken as large as
    its weights allow."""
    problems: tuple[Problem, ...] = ()
    """Warnings met on the way, such as an architecture that was counted from its weights only."""
    unloadable: tuple[Problem, ...] = ()
    """Reasons why no process here can load it, although it can be planned."""

    @classmethod
    def load(cls, name: str | Path, revision: str | None = None, *, trust_remote_code: bool = False) -> ModelSpec:
        """The spec of a local directory or a hub id; milliseconds, unless config.json must be downloaded, or a model
        of a family without a record in `ARCHITECTURES` is met for the first time (`models.counted`).

        An adapter's is that of its base. A hub id is looked for in the local hub cache, among the library's known
        shapes (for the main revision), and then, unless HF_HUB_OFFLINE is set, on the hub, from where only config.json
        is fetched.

        A model_type that transformers doesn't know is counted by the class that config.json names, or read off its
        fields (`models.read_off`); `unloadable` says so.

        Raises `ConfigError`: a config.json that is missing, unreadable, senseless, or that transformers can't build a
        model of; weights that are missing, cut short or of other shapes than config.json says; a hub id that can't be
        had.
        """
        from .locate import find_model

        name = model_of(str(name))
        found = find_model(name, revision)
        source: Source = "known shapes" if found.known else "config.json"
        stored = read_checkpoint(found.directory) if found.directory and found.has_weights else []
        counted, unloadable = None, tuple[Problem, ...]()
        if found.config["model_type"] not in ARCHITECTURES:
            try:
                counted = count(found.config, found.where, found.directory, trust_remote_code=trust_remote_code)
            except ConfigError as error:
                unknown = isinstance(error, UnknownModel)
                unloadable = tuple(error.problems) if unknown else ()
                if not stored or found.config.get("quantization_config") or isinstance(error, NotTrained):
                    spec = _estimated(found.config, name, found.where, stored, error) if unknown else None
                    if spec is None:
                        raise
                    return spec
        spec = from_config(found.config, name=name, where=found.where, stored=stored, source=source, counted=counted)
        return replace(spec, unloadable=unloadable) if unloadable else spec

    # Summing over all tensors takes a millisecond or more, and the planner asks often.
    @cached_property
    def num_parameters(self) -> int:
        """Number of all parameters: `sum(p.numel() for p in model.parameters())`."""
        return sum(tensor.numel for tensor in self.tensors)

    @cached_property
    def largest_tensor(self) -> int:
        """Number of elements of the largest tensor."""
        return max((tensor.numel for tensor in self.tensors), default=0)

    @cached_property
    def embedding_parameters(self) -> int:
        """Number of parameters of the input embeddings."""
        return self._numel("embeddings")

    @cached_property
    def lm_head_parameters(self) -> int:
        """Number of parameters of lm_head, bias included; 0 where it is tied to the input embeddings."""
        return self._numel("head")

    @cached_property
    def tower_parameters(self) -> int:
        """Number of parameters of towers for images or sound, which rows of text don't pass."""
        return self._numel("tower")

    def _numel(self, part: Part) -> int:
        return sum(tensor.numel for tensor in self.tensors if tensor.part == part)

    @cached_property
    def layer_parameters(self) -> int:
        """Number of parameters of the largest decoder block."""
        return max((sum(tensor.numel for tensor in block) for block in self._blocks.values()), default=0)

    @cached_property
    def _blocks(self) -> dict[str, list[Tensor]]:
        """The parameters of each decoder block, by its number."""
        blocks: dict[str, list[Tensor]] = {}
        for tensor in self.tensors:
            if tensor.part != "tower" and (block := BLOCK.search(tensor.name)):
                blocks.setdefault(block[1], []).append(tensor)
        return blocks

    @cached_property
    def block_width(self) -> int:
        """Width that an MLP alone would have, if the weights that a token meets in the largest block were all its own.

        A gated MLP has three weights of hidden_size for each unit of width, so this is more than the width of any MLP
        beside attention. It counts twice in blocks with a convolution, which is how state-space and linear-attention
        layers are known: their scans keep several of their inputs in float32.
        """
        widths = [0.0]
        for block in self._blocks.values():
            scans = any(len(tensor.shape) > 2 and tensor.part != "experts" for tensor in block)
            widths.append(self._active(block) / (3 * max(self.hidden_size, 1)) * (2 if scans else 1))
        return ceil(max(widths))

    @cached_property
    def active_parameters(self) -> int:
        """Number of parameters that one token of text uses: all, embeddings included, but towers and the experts that
        it is not routed to."""
        return self._active(self.tensors)

    def _active(self, tensors: Iterable[Tensor]) -> int:
        numel: Counter[Part] = Counter()
        for tensor in tensors:
            numel[tensor.part] += tensor.numel
        experts = numel.pop("experts", 0)
        used = experts // self.num_experts * self.experts_per_token if self.num_experts else experts
        return numel.total() - numel["tower"] + used

    @cached_property
    def linear_weights(self) -> tuple[Linear, ...]:
        """The nn.Linear weights in the decoder blocks: what bitsandbytes quantizes and `all-linear` LoRA reaches.

        Fused experts and routers are no nn.Linear in transformers 5 and not among them.
        """
        return tuple(
            Linear(tensor.name.removesuffix(".weight"), *tensor.shape)
            for tensor in self.tensors
            if tensor.part == "linear"
        )

    @property
    def attention_modules(self) -> tuple[str, ...]:
        """Names of the linear layers of attention, without their paths, in order."""
        paths = (weight.name.rpartition(".") for weight in self.linear_weights)
        return tuple(dict.fromkeys(name for path, _, name in paths if path.endswith(("attn", "attention"))))

    lora_parameters = lora_size.lora_parameters

    def has(self, ending: str) -> bool:
        """Return whether a tensor's name ends with `ending`."""
        return ending in self._last_words

    @cached_property
    def _last_words(self) -> frozenset[str]:
        """Return the last two words of each tensor's name."""
        return frozenset(".".join(tensor.name.split(".")[-2:]) for tensor in self.tensors)

    @cached_property
    def largest_linear(self) -> int:
        """Number of elements of the largest of `linear_weights`."""
        return max((weight.out_features * weight.in_features for weight in self.linear_weights), default=0)

    def weight_bytes(self, load_in_4bit: bool, dtype_bytes: int = 2, *, experts_in_4bit: bool = False) -> int:
        """Bytes of the loaded base weights on one device that holds all of them.

        With `load_in_4bit`, or from a bnb-4bit checkpoint, each weight of `linear_weights` takes `nf4_bytes`, and the
        rest `dtype_bytes` per parameter: transformers' bitsandbytes integration replaces nn.Linear modules but lm_head
        (transformers 5.17, integrations/bitsandbytes.py and quantizers/base.py), so embeddings, norms and fused
        experts stay. Modules that the checkpoint's llm_int8_skip_modules names stay too; `known shapes` of a dynamic
        `-unsloth-bnb-4bit` checkpoint don't know these and come out a few percent low.

        `experts_in_4bit` adds the fused experts to what is in 4 bit, which Unsloth's patches do and transformers does
        not (unsloth_zoo 2026.10.9, temporary_patches/moe_utils_bnb4bit.py). Large ones get a float32 absmax per 64
        elements there and no double quantization; all count so, which is an upper bound.

        mxfp4 counts as dequantized, which training needs. Other quantized checkpoints take what they take on disk, or
        without headers their bits per weight of linear layers and experts, and no scales.
        """
        asked = (load_in_4bit, dtype_bytes, experts_in_4bit)
        if asked not in self._weight_bytes:
            self._weight_bytes[asked] = self._count_bytes(*asked)
        return self._weight_bytes[asked]

    @cached_property
    def _weight_bytes(self) -> dict[tuple[bool, int, bool], int]:
        """Return what `weight_bytes` has counted so far."""
        return {}

    def _count_bytes(self, load_in_4bit: bool, dtype_bytes: int, experts_in_4bit: bool) -> int:
        if load_in_4bit or self.quantization == "bnb-4bit":
            experts = self._expert_weights() if experts_in_4bit else []
            saved = sum(numel * dtype_bytes - (numel + 1) // 2 - 4 * -(-numel // 64) - 64 for numel in experts)
            return self._mixed_bytes(dtype_bytes, nf4_bytes) - saved
        if self.quantization in (None, "mxfp4"):
            return self.num_parameters * dtype_bytes
        if self.stored_bytes is not None:
            return self.stored_bytes
        bits = _BITS.get(self.quantization, 8 * dtype_bytes)
        saved = sum(numel * dtype_bytes - (numel * bits + 7) // 8 for numel in self._expert_weights())
        return self._mixed_bytes(dtype_bytes, lambda numel: (numel * bits + 7) // 8) - saved

    def _expert_weights(self) -> list[int]:
        """Elements of each fused weight of experts that may be quantized."""
        return [tensor.numel for tensor in self.fused_experts if not is_kept(tensor.name, self.unquantized_modules)]

    @cached_property
    def fused_experts(self) -> list[Tensor]:
        """The weights of shape (experts, a, b)."""
        return [tensor for tensor in self.tensors if tensor.part == "experts" and len(tensor.shape) == 3]

    def _mixed_bytes(self, dtype_bytes: int, quantized_bytes: Callable[[int], int]) -> int:
        total = self.num_parameters * dtype_bytes
        for weight in self.linear_weights:
            if not is_kept(weight.name, self.unquantized_modules):
                numel = weight.out_features * weight.in_features
                total += quantized_bytes(numel) - numel * dtype_bytes
        return total


def from_config(
    config: Mapping[str, Any],
    *,
    name: str,
    where: str = "config.json",
    stored: Iterable[Stored] = (),
    source: Source = "config.json",
    counted: Counted | None = None,
) -> ModelSpec:
    """The spec that `config`, a config.json's keys and values, describes; `stored` is its checkpoint's tensors.

    `counted` is what transformers builds of it, where its family has no record here. `where` names the file in errors.
    Raises `ConfigError` as `ModelSpec.load` does.
    """
    stored = list(stored)
    form, model_type = read_form(config, stored, where), config["model_type"]
    if counted:
        return _from_class(config, counted, name, where, stored, form)
    if model_type not in ARCHITECTURES and stored and form.quantization is None:
        return _from_weights(config, name, where, stored, form)
    architecture = architecture_of(model_type, where)
    dims = read_dimensions(config, architecture.defaults, where)
    shapes = dict(parameters(architecture, dims))
    problems: tuple[Problem, ...] = ()
    dtypes: dict[str, str] = {}
    if stored and form.quantization is None:
        dtypes = {tensor.name: tensor.dtype for tensor in stored}
        problems = _compare(shapes, stored, dims.tie_word_embeddings, where)
    return ModelSpec(
        name=name,
        model_type=model_type,
        source="safetensors headers" if stored else source,
        **dims.sizes(),
        **vars(form),
        decoder_layer_class=architecture.decoder_layer_class,
        tensors=tuple(tensor_of(key, shape, dtypes.get(key, form.dtype)) for key, shape in shapes.items()),
        problems=problems,
    )


def _from_class(
    config: Mapping[str, Any], counted: Counted, name: str, where: str, stored: list[Stored], form: Form
) -> ModelSpec:
    """The spec of a model that transformers has built without weights."""
    values, model_type = counted.values, config["model_type"]
    dtypes = {tensor.name: tensor.dtype for tensor in stored}
    tensors = [tensor_of(one.name, one.shape, dtypes.get(one.name, form.dtype), one.part) for one in counted.tensors]
    hidden, heads = values.get("hidden_size", 0), values.get("num_attention_heads", 0)
    experts = max((tensor.shape[0] for tensor in tensors if tensor.part == "experts"), default=0)
    warning = partial(Problem, key=f"{where}: model_type", value=model_type, fix="nothing", severity="warning")
    words = "counted exactly, by transformers' own class. No such model was trained on GPUs here: its activations are "
    words += "taken as large as its weights allow, and dividing it over GPUs was not tried."
    problems = [warning(consequence=words)]
    if not counted.reached:
        words = f"Unsloth on a GPU gives LoRA to layers of `model.layers`, and this model's are `{counted.blocks}`: "
        problems.append(warning(consequence=f"{words}it may stop once the model is loaded."))
    if stored and form.quantization is None:
        problems += _compare({tensor.name: tensor.shape for tensor in tensors}, stored, counted.tied, where)
    return ModelSpec(
        name=name,
        model_type=model_type,
        source="transformers' class",
        hidden_size=hidden,
        intermediate_size=values.get("intermediate_size", 0),
        num_layers=counted.num_layers,
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads", heads),
        head_dim=values.get("head_dim", hidden // heads if heads else 0),
        vocab_size=next((tensor.shape[0] for tensor in tensors if tensor.part == "embeddings"), 0),
        tie_word_embeddings=counted.tied,
        num_experts=experts,
        # All of them, where no known name tells how many: more computing, and more memory, than there will be.
        experts_per_token=next((values[key] for key in ROUTED if key in values), experts) if experts else 0,
        moe_intermediate_size=values.get("moe_intermediate_size", 0),
        max_position_embeddings=values.get("max_position_embeddings", 0),
        **vars(form),
        decoder_layer_class=counted.block_class,
        tensors=tuple(tensors),
        measured=False,
        problems=tuple(problems),
    )


def _estimated(
    config: Mapping[str, Any], name: str, where: str, stored: list[Stored], error: ConfigError
) -> ModelSpec | None:
    """The spec of a model that transformers doesn't know, which `error` says, by what its config.json tells; None where
    that isn't enough."""
    form = read_form(config, stored, where)
    warning = partial(Problem, key=f"{where}: model_type", value=config["model_type"], severity="warning")
    fix = "; ".join(dict.fromkeys(problem.fix for problem in error.problems))
    why = f"{error.problems[0].consequence} To plan by, it is "
    if same := of_named_class(config):
        counted = count({**config, "model_type": same}, where, None)
        made = _from_class(config, counted, name, where, [], replace(form, stored_bytes=None))
        words = f"{why}counted as {counted.model_class}, which it names as its architecture and transformers has."
        problems = (warning(consequence=words, fix=fix), *made.problems)
        return replace(made, problems=problems, unloadable=tuple(error.problems))
    found = read_off(config)
    if found is None:
        return None
    words = f"{why}read off its fields: an estimate, as of a Llama-like model with biases and a gate in every MLP. "
    words += "Parts of its blocks that the fields don't tell aren't counted."
    return ModelSpec(
        name=name,
        model_type=config["model_type"],
        source="config.json's fields",
        **found.sizes,
        **vars(form),
        decoder_layer_class="",
        tensors=tuple(tensor_of(key, shape, form.dtype) for key, shape in found.shapes.items()),
        measured=False,
        problems=(warning(consequence=words, fix=fix),),
        unloadable=tuple(error.problems),
    )


def _from_weights(config: Mapping[str, Any], name: str, where: str, stored: list[Stored], form: Form) -> ModelSpec:
    """The spec of an architecture that isn't known: its tensors are the checkpoint's."""
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, dict) else config

    def number(*keys: str) -> int:
        return next((values[key] for key in keys if type(values.get(key)) is int), 0)

    tied = values.get("tie_word_embeddings") is True
    kept = _stored_parameters(stored, tied)
    blocks = [int(block[1]) for tensor in kept if (block := BLOCK.search(tensor.name))]
    hidden, heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
    consequence = "unknown architecture: counted from its weights only, so fused or tied ones may differ when loaded."
    fix = f"nothing, if that is all right; known are {', '.join(sorted(ARCHITECTURES.names))}"
    key, model_type = f"{where}: model_type", config["model_type"]
    warning = Problem(key=key, value=model_type, consequence=consequence, fix=fix, severity="warning")
    return ModelSpec(
        name=name,
        model_type=model_type,
        source="safetensors headers",
        hidden_size=hidden,
        intermediate_size=number("intermediate_size", "n_inner"),
        num_layers=max(blocks, default=-1) + 1,
        num_heads=heads,
        num_kv_heads=number("num_key_value_heads") or heads,
        head_dim=number("head_dim") or (hidden // heads if heads else 0),
        vocab_size=number("vocab_size"),
        tie_word_embeddings=tied,
        num_experts=number("num_experts", "num_local_experts", "n_routed_experts"),
        experts_per_token=number("num_experts_per_tok"),
        moe_intermediate_size=number("moe_intermediate_size"),
        max_position_embeddings=number("max_position_embeddings", "n_positions"),
        **vars(form),
        decoder_layer_class="",
        tensors=tuple(tensor_of(tensor.name, tensor.shape, tensor.dtype) for tensor in kept),
        measured=False,
        problems=(warning,),
    )


def _stored_parameters(stored: Iterable[Stored], tied: bool) -> list[Stored]:
    """The tensors of an unquantized checkpoint that are parameters of the model."""
    return [t for t in stored if not t.name.endswith(_BUFFERS) and not (tied and t.name == "lm_head.weight")]


def _compare(
    shapes: Mapping[str, tuple[int, ...]], stored: list[Stored], tied: bool, where: str
) -> tuple[Problem, ...]:
    """A warning where the checkpoint and config.json hold different numbers; `ConfigError` for different shapes."""
    fix = "take config.json and the weights from the same model"
    for tensor in stored:
        shape = shapes.get(tensor.name, shapes.get(f"model.{tensor.name}", tensor.shape))
        if shape != tensor.shape:
            consequence = f"describes {tensor.name} as {list(shape)}, and the weights hold {list(tensor.shape)}."
            raise ConfigError(Problem(key=where, consequence=consequence, fix=fix))
    described = sum(map(prod, shapes.values()))
    held = sum(prod(tensor.shape) for tensor in _stored_parameters(stored, tied))
    if held == described:
        return ()
    consequence = f"describes {described:,} parameters and the weights hold {held:,}; "
    consequence += "transformers makes up what is missing."
    return (Problem(key=where, consequence=consequence, fix=fix, severity="warning"),)
