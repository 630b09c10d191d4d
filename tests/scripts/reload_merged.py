"""Print how far training moved a model's logits, and how far those of its saved adapter and its merged model differ.

reload_merged.py BASE RUN CLASS: RUN holds `adapter` and `merged`; CLASS is transformers' auto class that loads BASE.
"""

import json
import sys

import torch
import transformers
from peft import PeftModel

if __name__ == "__main__":
    base, run, name = sys.argv[1:]
    kind = getattr(transformers, name)
    tokens = torch.arange(5, 25)[None]
    untrained, plain = (kind.from_pretrained(base) for _ in range(2))
    models = (
        untrained,
        PeftModel.from_pretrained(plain, f"{run}/adapter"),
        kind.from_pretrained(f"{run}/merged"),
    )
    with torch.no_grad():
        before, adapted, merged = (model.eval()(input_ids=tokens).logits for model in models)
    print(json.dumps([float((adapted - before).abs().max()), float((adapted - merged).abs().max())]))
