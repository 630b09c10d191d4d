"""What of a model is a tower; and loading it without a processor."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from other_models import DENSE, TOWERS, built
from transformers import AutoTokenizer

from unsloth_accel.adapters import towers
from unsloth_accel.adapters.fsdp2.shard import _keep_towers_apart

OF = {
    "gemma3": ("model.vision_tower", "model.multi_modal_projector"),
    "mistral3": ("model.vision_tower", "model.multi_modal_projector"),
    "qwen2_5_vl": ("model.visual",),
    "qwen3_vl": ("model.visual",),
    "qwen3_5": ("model.visual",),
}


@pytest.mark.parametrize("model_type", TOWERS)
def test_what_rows_of_text_pass_is_no_tower(model_type: str) -> None:
    assert towers.towers_of(built(model_type)) == OF[model_type]


@pytest.mark.parametrize("model_type", DENSE)
def test_a_text_model_has_none(model_type: str) -> None:
    assert towers.towers_of(built(model_type)) == ()


def test_with_an_adapter_their_paths_are_its() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(built("qwen3_vl"), LoraConfig(target_modules=["q_proj"]))
    assert towers.towers_of(adapted) == ("base_model.model.model.visual",)
    adapted.unload()


@pytest.mark.parametrize("named", [["Gemma3DecoderLayer"], None])
def test_accelerate_shards_a_tower_by_itself(named: list[str] | None) -> None:
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=named)
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    _keep_towers_apart(built("gemma3"), accelerator)
    made = plugin.transformer_cls_names_to_wrap
    assert made == (named and ["Gemma3DecoderLayer", "Gemma3MultiModalProjector", "SiglipVisionModel"])


def test_unsloth_loads_the_tokenizer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """unsloth.models.vision itself needs a GPU to be imported."""
    vision: Any = ModuleType("unsloth.models.vision")
    theirs: dict[str, Any] = {
        "AutoProcessor": object,
        "_construct_vlm_processor_fallback": print,
        "_missing_torchvision_error": bool,
    }
    vars(vision).update(theirs)
    for name, module in (("unsloth", ModuleType("unsloth")), ("unsloth.models", ModuleType("unsloth.models"))):
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["unsloth.models"].vision = vision  # type: ignore[attr-defined]
    with towers.tokenizer_only():
        assert vision.AutoProcessor is AutoTokenizer
        assert vision._construct_vlm_processor_fallback("a", "b", None, False, cache_dir=None) == (None, None)
        assert not vision._missing_torchvision_error(None)
    assert {name: getattr(vision, name) for name in theirs} == theirs
