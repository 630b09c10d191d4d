from __future__ import annotations

from typing import Any

import pytest
from small_models import problem_of, spec

from unsloth_accel.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.mark.parametrize(
    ("name", "values", "key", "words"),
    [
        ("llama", {"target_modules": ["q_porj", "v_proj"]}, "lora.target_modules", "did you mean q_proj?"),
        ("llama", {"target_modules": ["query_key_value"]}, "lora.target_modules", "matches no module"),
        ("phi3", {"target_modules": ["q_proj", "o_proj"]}, "lora.target_modules", "qkv_proj"),
        ("llama", {"target_modules": "q_proj"}, "lora.target_modules", "matches no module's whole name"),
        ("llama", {"target_modules": "*"}, "lora.target_modules", "not a regular expression"),
        ("llama", {"target_modules": []}, "lora.target_modules", "names nothing"),
        ("llama", {"target_modules": ["mlp"]}, "lora.target_modules", "not a linear layer"),
        ("llama", {"target_modules": ["q_proj"], "layers": [7]}, "lora.target_modules", "in none of the layers [7]"),
        ("llama", {"target_modules": "all-linear", "layers": [1]}, "lora.target_modules", "list of names"),
        ("gpt-oss", {"target_modules": ["gate_up_proj"]}, "lora.target_modules", "parameter of its own"),
        ("mixtral", {"target_modules": ["q_proj", "w1"]}, "lora.target_modules", "w1 and w3"),
        ("mixtral", {"target_modules": "all-linear", "use_dora": True}, "lora.use_dora", "no DoRA"),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lmhead"]}, "lora.modules_to_save", "lm_head"),
        ("llama", {"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}, "lora.target_modules", "too"),
        ("llama", {"target_modules": ["q_proj"], "r": 0}, "lora.r", "1 or more"),
    ],
)
def test_bad_targets_are_refused(name: str, values: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec(name).lora_parameters(**{"r": 4, **values})
    assert problem_of(error).key == key
    assert words in str(error.value)
