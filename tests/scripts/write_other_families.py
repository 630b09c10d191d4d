"""Write a random model of each family named, in float32, with a tokenizer of bytes.

write_other_families.py DIRECTORY FAMILY…: families of other_models, each in DIRECTORY/<model_type>.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from other_models import values

from benchmarks.random_checkpoint import byte_tokenizer
from unsloth_accel.models.build_without_weights import CLASSES

if __name__ == "__main__":
    place, *families = sys.argv[1:]
    for family in families:
        described = json.loads(json.dumps(values(family))) | {"dtype": "float32"}
        (described.get("text_config") or described).update(vocab_size=320, dtype="float32")
        config = transformers.AutoConfig.for_model(**described)
        torch.manual_seed(0)
        kinds = (getattr(transformers, name) for name in CLASSES)
        next(kind for kind in kinds if type(config) in kind._model_mapping).from_config(config).save_pretrained(
            Path(place, family)
        )
        byte_tokenizer().save_pretrained(Path(place, family))
