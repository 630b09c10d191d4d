"""Print how far training moved a model's logits, and how far those of its saved adapter and its merged model differ.

reload_towers.py BASE RUN: RUN holds `adapter` and `merged`.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

if __name__ == "__main__":
    base, run = sys.argv[1:]
    tokens = torch.arange(5, 25)[None]
    untrained, plain = (AutoModelForImageTextToText.from_pretrained(base) for _ in range(2))
    models = (
        untrained,
        PeftModel.from_pretrained(plain, f"{run}/adapter"),
        AutoModelForImageTextToText.from_pretrained(f"{run}/merged"),
    )
    with torch.no_grad():
        before, adapted, merged = (model.eval()(input_ids=tokens).logits for model in models)
    print(json.dumps([float((adapted - before).abs().max()), float((adapted - merged).abs().max())]))
