"""The card of an adapter: PEFT's facts, our words, no path of this machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from unsloth_accel.adapters.model_card import complete
from unsloth_accel.config.read_run import from_dict


def card_of(file: Path, base: str, **training: Any) -> ModelCard:
    """The card of an adapter of `base`, as PEFT 0.21 leaves it and ours makes of it."""
    head = f"base_model: {base}\nlibrary_name: peft\ntags:\n- base_model:adapter:{base}\n- lora"
    file.write_text(f"---\n{head}\n---\n\n# Model Card for Model ID\n\n[More Information Needed]\n", encoding="utf-8")
    values: dict[str, Any] = {"model": {"name": base, "max_seq_length": 96}, "data": {"path": "rows.jsonl"}}
    values |= {"output_dir": str(file.parent / "a-run"), "training": training}
    complete(file, from_dict(values), SimpleNamespace(r=8, lora_alpha=32))  # type: ignore[arg-type]
    return ModelCard.load(file)


def test_a_base_of_the_hub(tmp_path: Path) -> None:
    card = card_of(tmp_path / "README.md", "owner/base", push_to_hub=True, hub_model_id="me/mine")
    assert card.data.to_dict() == {
        "base_model": "owner/base",
        "library_name": "peft",
        "tags": ["base_model:adapter:owner/base", "lora"],
    }
    assert "[owner/base](https://huggingface.co/owner/base)" in card.text
    assert "FastLanguageModel.from_pretrained('me/mine', max_seq_length=96, load_in_4bit=False)" in card.text
    assert "AutoPeftModelForCausalLM.from_pretrained('me/mine')" in card.text
    assert "(sft, r = 8, alpha = 32)" in card.text
    assert "More Information Needed" not in card.text


def test_a_base_on_this_machine(tmp_path: Path) -> None:
    """The Hub refuses a path in a card's metadata."""
    base = tmp_path / "secret-place" / "my-base"
    base.mkdir(parents=True)
    card = card_of(tmp_path / "README.md", str(base))
    assert card.data.to_dict() == {"library_name": "peft", "tags": ["lora"]}
    assert "`my-base`" in card.text
    assert "secret-place" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "from_pretrained('a-run/adapter'" in card.text


@pytest.mark.parametrize(("name", "place"), [("mine", "OWNER/mine"), (None, "OWNER/a-run")])
def test_a_repository_whose_owner_is_not_said(tmp_path: Path, name: str | None, place: str) -> None:
    card = card_of(tmp_path / "README.md", "owner/base", push_to_hub=True, hub_model_id=name)
    assert f"from_pretrained({place!r}" in card.text
