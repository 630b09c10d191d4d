"""Merging a saved adapter into its 16-bit base model, on the CPU, through PEFT.

What can go wrong is looked for first, without torch: the adapter's and the base's files, room on the disk and in
memory. The base is held once, in the dtype that is written; each weight is merged in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from ..config.start_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_beside, find_adapter
from ..errors import ConfigError, Problem, UnslothAccelError, first_line, raise_errors
from ..files import load_json
from ..hardware.cpu_and_memory import memory_gib
from ..models.added_tokens import trained_rows
from ..models.known_names import unquantized
from ..models.safetensors_header import read_checkpoint, read_header
from ..models.spec import ModelSpec
from .fused_experts import take_as_given
from .own_files import clear_unfinished, filling, link_problem, recorded
from .run_directory import RunDirectory
from .score_adapter import has_score
from .unsafe_files import as_unsafe

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes per number of each dtype."""
_SPARE = 1.1
"""Factor on the needed memory: PEFT holds one weight's update beside it, in float32."""


class MergeError(UnslothAccelError):
    """The merged model could not be made."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Adapter, base model and target of a merge."""

    adapter: Path
    base: str
    """Directory or hub id of the 16-bit model."""
    trained_on: str
    """The base that the adapter names; another than `base` where that one is in 4 bit."""
    target: Path
    dtype: str
    spec: ModelSpec

    @property
    def bytes(self) -> int:
        """Bytes of the merged model, on disk and in memory."""
        return self.spec.num_parameters * DTYPES[self.dtype]


def plan_merge(
    source: str | Path,
    target: str | Path | None = None,
    *,
    base: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Merge:
    """Find out what to merge, and remove what a killed merge left; raises `ConfigError` with everything that would
    stop this one.

    `source` is an adapter's directory, or a run's that holds one. `target` is by default `merged` beside the adapter.
    `base` is by default what the adapter names, as its 16-bit original where that is in 4 bit. `dtype` is by default
    the base's own, bfloat16 where that is wider.
    """
    adapter, trained_on = _adapter(Path(source))
    base = base or (trained_on if Path(trained_on).is_dir() else unquantized(trained_on))
    spec = ModelSpec.load(base)
    target = Path(target) if target else RunDirectory(adapter.parent).merged
    own = spec.dtype if DTYPES.get(spec.dtype) == 2 else "bfloat16"
    clear_unfinished(target.parent, target.name)
    merge = Merge(adapter=adapter, base=base, trained_on=trained_on, target=target, dtype=dtype or own, spec=spec)
    problems = [*_head_problems(merge), *_base_problems(merge), *_target_problems(merge, overwrite)]
    raise_errors([*problems, *_room_problems(merge)])
    return merge


def write_merged(merge: Merge) -> list[Path]:
    """Merge and write model and tokenizer to `merge.target`, whole or not at all; returns the weight files.

    Raises `MergeError` where base and adapter don't fit, the result holds a NaN, or it can't be written.
    """
    import torch
    import transformers
    from peft import PeftModel

    kind = _class(transformers, merge.base)
    try:
        model = kind.from_pretrained(merge.base, dtype=getattr(torch, merge.dtype), device_map="cpu")
        _untie(model, merge)
        if (rows := trained_rows(merge.adapter)) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        take_as_given()
        adapted = PeftModel.from_pretrained(model, str(merge.adapter), torch_device="cpu")
        model = adapted.merge_and_unload(safe_merge=True)
        has_own = (merge.adapter / "tokenizer_config.json").is_file()
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(merge.adapter) if has_own else merge.base)
        _stop_as_trained(model, tokenizer)
        with filling(merge.target) as directory:
            model.save_pretrained(directory, max_shard_size="5GB")
            tokenizer.save_pretrained(directory)
            _check(directory, merge)
    except (RuntimeError, ValueError, OSError, KeyError, UnpicklingError) as error:
        if unsafe := as_unsafe(error):
            raise unsafe from None
        fix = "see that the adapter was trained on this base (--base MODEL names another), and that the disk has room"
        raise MergeError(
            f"{merge.adapter} was not merged into {merge.base}: {first_line(error)}. Fix: {fix}"
        ) from error
    return sorted(merge.target.glob("*.safetensors"))


def _adapter(source: Path) -> tuple[Path, str]:
    """The adapter's directory that `source` is or holds, with its two files whole, and the base model.

    That is what PEFT wrote, looked for beside the adapter too where it is a relative path.
    """
    own = RunDirectory(source).adapter
    found = own if (own / ADAPTER_CONFIG).is_file() else source
    fix = "give a run's output_dir, or a directory that holds adapter_config.json and adapter_model.safetensors"
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (found / name).is_file():
            consequence = f"holds no finished adapter: {name} is missing."
            raise ConfigError(Problem(key="merge", value=str(source), consequence=consequence, fix=fix))
    read_header(found / ADAPTER_WEIGHTS)
    try:
        name = str(load_json(found / ADAPTER_CONFIG)["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        consequence = "is damaged: it names no base model."
        raise ConfigError(Problem(key=str(found / ADAPTER_CONFIG), consequence=consequence, fix=fix)) from None
    return found, base_beside(found, name)


def _head_problems(merge: Merge) -> Iterator[Problem]:
    if has_score(load_json(merge.adapter / ADAPTER_CONFIG)):
        consequence = "is a reward model's: merged into a language model it would lose its score head."
        base = "AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)"
        fix = f"in Python PeftModel.from_pretrained({base}, ADAPTER).merge_and_unload()"
        yield Problem(key="merge", value=str(merge.adapter), consequence=consequence, fix=fix)


def _base_problems(merge: Merge) -> Iterator[Problem]:
    if find_adapter(merge.base):
        yield Problem(key="--base", value=merge.base, consequence="is an adapter, not a model.", fix="--base MODEL")
    if merge.spec.quantization:
        consequence = f"its weights are {merge.spec.quantization}: what is merged into them would be rounded again."
        yield Problem(key="--base", value=merge.base, consequence=consequence, fix="--base with the 16-bit original")
    if Path(merge.base).is_dir() and not read_checkpoint(Path(merge.base)):
        fix = "copy the weights into it, or --base MODEL"
        yield Problem(key="--base", value=merge.base, consequence="holds no *.safetensors weights.", fix=fix)
    if merge.dtype not in DTYPES:
        yield Problem(key="--dtype", value=merge.dtype, consequence="unknown.", fix=f"one of {', '.join(DTYPES)}")


def _target_problems(merge: Merge, overwrite: bool) -> Iterator[Problem]:
    target = merge.target
    if target.is_file():
        yield Problem(key="OUT_DIR", value=str(target), consequence="is a file.", fix="name a directory")
        return
    if target.is_symlink() and not target.exists():
        yield replace(link_problem(target, target), key="OUT_DIR")
        return
    # Neither what is merged nor what it is merged into may be replaced by the result.
    inside = [Path(path).resolve() for path in (merge.adapter, merge.base) if Path(path).is_dir()]
    if any(path == target.resolve() or target.resolve() in path.parents for path in inside):
        consequence = "is or holds what would be merged, and its place would be taken."
        yield Problem(key="OUT_DIR", value=str(target), consequence=consequence, fix="name another directory")
    elif not target.is_dir() or not any(target.iterdir()):
        return
    elif recorded(target) is None or (target / ADAPTER_CONFIG).is_file():  # adapters have records, too
        consequence = "holds files that no merge recorded, which may be your own."
        yield Problem(key="OUT_DIR", value=str(target), consequence=consequence, fix="remove it, or another OUT_DIR")
    elif not overwrite:
        fix = "--overwrite, or another OUT_DIR"
        yield Problem(key="OUT_DIR", value=str(target), consequence="is not empty.", fix=fix)


def _room_problems(merge: Merge) -> Iterator[Problem]:
    if merge.dtype not in DTYPES:
        return
    needed = merge.bytes
    place = next(path for path in (merge.target.absolute(), *merge.target.absolute().parents) if path.is_dir())
    if not os.access(place, os.W_OK):
        yield Problem(key="OUT_DIR", value=str(merge.target), consequence=f"{place} can't be written.", fix="another")
    free = shutil.disk_usage(place).free
    if free < needed:
        consequence = f"the merged model takes {_gib(needed)}, and {_gib(free)} are free there."
        fix = "make room, or name an OUT_DIR on another disk"
        yield Problem(key="OUT_DIR", value=str(merge.target), consequence=consequence, fix=fix)
    import psutil

    available = min(psutil.virtual_memory().available, int(memory_gib()[0] * 2**30))
    if available < needed * _SPARE:
        consequence = f"one copy of the model takes {_gib(int(needed * _SPARE))} of memory, {_gib(available)} are free."
        fix = "run it on a machine with more memory, or load base and adapter without merging"
        if merge.dtype == "float32":
            fix = "--dtype bfloat16, or a machine with more memory"
        yield Problem(key="memory", value=_gib(available), consequence=consequence, fix=fix)


def _untie(model: Any, merge: Merge) -> None:
    """Give `model` a head of its own where LoRA is on the head or on the embeddings alone, and the two are one tensor:
    what is merged into one would be in the other too."""
    import torch

    config, head = model.config.get_text_config(), model.get_output_embeddings()
    embeddings = model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    names = [tensor.name for tensor in read_header(merge.adapter / ADAPTER_WEIGHTS) if "lora_" in tensor.name]
    modules = {name: module for name, module in model.named_modules() if module in (head, embeddings)}
    if any(f".{module}.lora_" in f".{name}" for module in modules for name in names):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = config.tie_word_embeddings = False


def _stop_as_trained(model: Any, tokenizer: Any) -> None:
    """Let the merged model stop at its tokenizer's end-of-sequence token, which a run may have chosen, and at the
    base's own ends as before: what serves it reads generation_config.json or config.json, not the tokenizer."""
    end = tokenizer.eos_token_id
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        stops = getattr(config, "eos_token_id", None)
        stops = list(stops) if isinstance(stops, list | tuple) else [] if stops is None else [stops]
        if end is not None and end not in stops:
            config.eos_token_id = [end, *stops] if config is model.generation_config else end


def _class(transformers: Any, base: str) -> Any:
    """Return the model's own class, by its config: a vision-language model is no AutoModelForCausalLM."""
    config = transformers.AutoConfig.from_pretrained(base)
    names = config.architectures or ()
    return next((found for name in names if (found := getattr(transformers, name, None))), None) or (
        transformers.AutoModelForCausalLM
    )


def _check(directory: Path, merge: Merge) -> None:
    written = {tensor.name: tensor for tensor in read_checkpoint(directory)}
    numbers = sum(prod(tensor.shape) for tensor in written.values())
    if numbers < merge.spec.num_parameters:
        raise MergeError(f"the files hold {numbers} numbers, the model has {merge.spec.num_parameters}")
    adapters = [name for name in written if "lora_" in name]
    if adapters:
        raise MergeError(f"{adapters[0]} was left unmerged")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
