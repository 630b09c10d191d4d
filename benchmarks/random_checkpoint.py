"""Write a checkpoint of a given shape with random weights and a tokenizer of bytes, for tests and benchmarks.

    python -m benchmarks.random_checkpoint 1.5B DIRECTORY
    python -m benchmarks.random_checkpoint 1B DIRECTORY --family gemma3
    python -m benchmarks.random_checkpoint qwen3_vl DIRECTORY [--small]

A name of `benchmarks.published_shapes` is that model's shape with fewer blocks. A family gives a shape that names none
its architecture: the same sizes as a Qwen3, a Gemma3, a mixture of experts. Speed, memory and parity depend on shapes,
not on what the weights have learned, and nothing has to be downloaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import published_shapes
from benchmarks.published_shapes import PUBLISHED

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 320,
    },
    "125M": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 2048,
        "vocab_size": 32000,
    },
    "0.5B": {  # Qwen2.5-0.5B's shape: tied, with a large vocabulary
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "1B": {  # Llama-3.2-1B's widths and depth, with a vocabulary that keeps gathered embeddings small
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 32000,
    },
    "1.5B": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
    },
    "3B": {  # Llama-3.2-3B's shape: tied
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "4B": {  # Qwen3-4B's shape: tied, query and key norms
        "model_type": "qwen3",
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
    "70B": {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 128256,
    },
}
LARGE = 40 * 2**30
"""Bytes of weights from which on a model is never built whole, and its blocks are all alike."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen3": {"model_type": "qwen3"},
    # Every other block sees a window only, so that both masks are used.
    "gemma3": {"model_type": "gemma3_text", "tie_word_embeddings": True, "sliding_window": 512},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2},
    # With a small vision model beside it; no image processor, so it reads text only.
    "gemma3_vl": {"model_type": "gemma3_text", "tie_word_embeddings": True, "sliding_window": 512},
}
"""What each family adds to a shape; see `config_values` for what depends on the shape."""
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
END = "<|im_end|>"
"""The token that ends a text."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def config_values(shape: str, family: str | None = None) -> dict[str, Any]:
    """The values of config.json for `SHAPES[shape]`, as a model of `family`; by default the shape's own, or a Llama.

    Raises `ValueError` for a shape that is a family's own (Qwen3-4B's) and another family.
    """
    sizes: Mapping[str, Any] = SHAPES[shape]
    if family is not None and sizes.get("model_type", FAMILIES[family]["model_type"]) != FAMILIES[family]["model_type"]:
        raise ValueError(f"{shape} is a {sizes['model_type']} shape, not one of {family}")
    values = {"model_type": "llama", "tie_word_embeddings": False, **sizes, **(FAMILIES[family] if family else {})}
    layers, head = values["num_hidden_layers"], values["hidden_size"] // values["num_attention_heads"]
    if family in ("qwen3", "gemma3", "gemma3_vl", "qwen3_moe"):
        values.setdefault("head_dim", head)  # these have one of their own, 128 or 256, where nothing is said
    if family in ("gemma3", "gemma3_vl"):
        values["layer_types"] = [("sliding", "full")[layer % 2] + "_attention" for layer in range(layers)]
        values["query_pre_attn_scalar"] = values["head_dim"]
    if family == "qwen3_moe":
        # A token passes two experts, so it meets as much MLP as in the dense shape; four times as much is held.
        values["moe_intermediate_size"] = values["intermediate_size"] // 2
    return values


def write(shape: str, directory: str | Path, seed: int = 0, family: str | None = None, *, small: bool = False) -> None:
    """Write config, weights (bf16; fp32 where they are tiny) and tokenizer of a shape, `SHAPES`' or `PUBLISHED`'s, to
    `directory`; `small` makes a published one tiny."""
    import torch
    import transformers

    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if shape in PUBLISHED:
        values = published_shapes.config_values(shape, small=small)
    else:
        values = config_values(shape, family) | {"max_position_embeddings": 8192}
    if family == "gemma3_vl":
        values = {"model_type": "gemma3", "text_config": values, "vision_config": VISION, "mm_tokens_per_image": 4}
    if "text_config" in values:
        values["text_config"] = {**values["text_config"], **ids}
    config = transformers.AutoConfig.for_model(**values, **ids)
    dtype = torch.float32 if small or shape == "tiny" else torch.bfloat16
    kind = "AutoModelForImageTextToText" if "vision_config" in values else "AutoModelForCausalLM"

    def made(device: str) -> Any:
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = getattr(transformers, kind).from_config(config)
        torch.set_default_dtype(previous)
        return model

    shapes = made("meta").state_dict()
    if sum(tensor.nbytes for tensor in shapes.values()) < LARGE:
        made("cuda" if torch.cuda.is_available() else "cpu").save_pretrained(directory)
    else:
        config.save_pretrained(directory)
        write_by_block(shapes, Path(directory))
    tokenizer.save_pretrained(directory)
    # transformers 5 writes its own name for it, which 4 doesn't know; both know this one.
    described = Path(directory, "tokenizer_config.json")
    values = json.loads(described.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    described.write_text(json.dumps(values, indent=2), encoding="utf-8")


def write_by_block(shapes: Mapping[str, Any], directory: Path) -> None:
    """Write random weights of these names, shapes and dtypes, a file for each decoder block and one for the others.

    Blocks have the same values, so that the time it takes is that of the disk.
    """
    import torch
    from safetensors.torch import save_file

    drawn: dict[str, Any] = {}
    files: dict[str, dict[str, Any]] = {}
    for name, tensor in shapes.items():
        block = next((part for part in name.split(".") if part.isdecimal()), "outer")
        key = name.replace(f".{block}.", ".")
        if key not in drawn:
            values = torch.ones(tensor.shape) if tensor.ndim == 1 else torch.empty(tensor.shape).normal_(std=0.02)
            drawn[key] = values.to(tensor.dtype)
        files.setdefault(f"model-{block}.safetensors", {})[name] = drawn[key]

    def save(file: str) -> None:
        save_file(files[file], directory / file, metadata={"format": "pt"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, files))
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in shapes.values())},
        "weight_map": {name: file for file, tensors in files.items() for name in tensors},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def byte_tokenizer() -> Any:
    """One token per byte, and three special ones; text of n ASCII characters is n tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", END]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    return fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=[*SHAPES, *PUBLISHED])
    parser.add_argument("directory")
    parser.add_argument("--family", choices=FAMILIES, help="default: the shape's own, or llama")
    parser.add_argument("--small", action="store_true", help="of a published model: two narrow blocks, for a CPU")
    asked = parser.parse_args()
    write(asked.shape, asked.directory, family=asked.family, small=asked.small)


if __name__ == "__main__":
    main()
