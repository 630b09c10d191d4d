"""The card of an adapter: PEFT's facts, our words, no path of this machine; one for all that is saved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from unsloth_accel.adapters.model_card import facts_of, write_our_cards
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig


class Model:
    """A PEFT model as far as its card goes, of which PEFT 0.21 writes its form."""

    def __init__(self, base: str, **lora: Any) -> None:
        self.base = base
        self.active_adapter = "default"
        lora = {"r": 8, "lora_alpha": 32, "target_modules": {"v_proj", "q_proj"}, **lora}
        self.peft_config = {"default": SimpleNamespace(**lora)}

    def create_or_update_model_card(self, output_dir: str) -> None:
        head = {"base_model": self.base, "library_name": "peft", "tags": [f"base_model:adapter:{self.base}", "lora"]}
        text = f"---\n{yaml.safe_dump(head)}---\n\n# Model Card for Model ID\n\n[More Information Needed]\n"
        Path(output_dir, "README.md").write_text(text, encoding="utf-8")


class SFTTrainer:
    """A Trainer in its last step, of one process."""

    def __init__(self, model: Model, output_dir: Path, **args: Any) -> None:
        self.model, self.train_dataset = model, range(1234)
        self.accelerator = SimpleNamespace(num_processes=1, device=SimpleNamespace(type="cpu"))
        self.state = SimpleNamespace(global_step=10, max_steps=10)
        self.callback_handler = SimpleNamespace(train_dataloader=None)
        self.is_world_process_zero = lambda: True
        known = {"bf16": True, "fp16": False, "learning_rate": 2e-4, "lr_scheduler_type": "linear", "seed": 3407}
        known |= {"world_size": 1, "train_batch_size": 4, "gradient_accumulation_steps": 2, "max_length": 512}
        split = SimpleNamespace(split_batches=False)
        known |= {"push_to_hub": False, "hub_model_id": None, "accelerator_config": split, "output_dir": output_dir}
        self.args = SimpleNamespace(**known | args)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        Path(self.args.output_dir, "README.md").write_text("a fine-tuned version of [None]", encoding="utf-8")


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unsloth_accel.adapters.model_card.unwrapped", lambda model: model)


def run_of(directory: Path, base: str, **training: Any) -> RunConfig:
    values: dict[str, Any] = {"model": {"name": base, "max_seq_length": 96}, "output_dir": str(directory / "a-run")}
    values["data"] = {"path": str(directory / "rows.jsonl"), "eval_path": "owner/rows", "train_on": "responses"}
    return from_dict({**values, "training": training, "distributed": {"strategy": "single"}})


def card_of(directory: Path, base: str, lora: dict[str, Any] | None = None, **training: Any) -> ModelCard:
    """The card of an adapter of `base` that a run saves."""
    model = Model(base, **(lora or {}))
    trainer: Any = SFTTrainer(model, directory)
    write_our_cards(trainer, run_of(directory, base, **training))
    write_our_cards(trainer)  # by `adapt`, which knows of no run
    model.create_or_update_model_card(str(directory))
    return ModelCard.load(directory / "README.md")


def test_a_base_of_the_hub(tmp_path: Path) -> None:
    card = card_of(tmp_path, "owner/base", push_to_hub=True, hub_model_id="me/mine")
    assert card.data.to_dict() == {
        "base_model": "owner/base",
        "library_name": "peft",
        "tags": ["base_model:adapter:owner/base", "lora"],
    }
    assert "[owner/base](https://huggingface.co/owner/base)" in card.text
    assert "FastLanguageModel.from_pretrained('me/mine', max_seq_length=96, load_in_4bit=False)" in card.text
    assert "AutoPeftModelForCausalLM.from_pretrained('me/mine')" in card.text
    assert "More Information Needed" not in card.text
    assert "hf download me/mine --local-dir adapter\nunsloth-accel merge adapter merged\nvllm serve merged" in card.text
    assert "vllm serve owner/base --enable-lora --max-lora-rank 8 --lora-modules adapter=me/mine" in card.text


def test_what_it_was_trained_on_and_how(tmp_path: Path) -> None:
    lines = card_of(tmp_path, "owner/base").text.splitlines()
    held = "[owner/rows](https://huggingface.co/datasets/owner/rows)"
    assert f"- **Data**: `rows.jsonl`, 1,234 rows, trained on responses; held out: {held}" in lines
    assert "- **Method**: SFT of a LoRA adapter, r = 8, alpha = 32, on q_proj, v_proj" in lines
    plan = "8 rows per step = 4 × 2 × 1 (per device × accumulation × processes), 10 of 10 steps"
    assert f"- **Plan**: single on 1 process, bf16, {plan}, learning rate 0.0002 (linear), seed 3407" in lines
    (versions,) = (line for line in lines if line.startswith("- **Versions**: python 3."))
    assert "unsloth_accel" in versions


def test_a_base_on_this_machine(tmp_path: Path) -> None:
    """The Hub refuses a path in a card's metadata."""
    base = tmp_path / "secret-place" / "my-base"
    base.mkdir(parents=True)
    card = card_of(tmp_path, str(base))
    assert card.data.to_dict() == {"library_name": "peft", "tags": ["lora"]}
    assert "`my-base`" in card.text
    assert "secret-place" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card.text
    assert "from_pretrained('a-run/adapter'" in card.text
    assert "unsloth-accel merge a-run/adapter merged" in card.text


@pytest.mark.parametrize(("name", "place"), [("mine", "OWNER/mine"), (None, "OWNER/a-run")])
def test_a_repository_whose_owner_is_not_said(tmp_path: Path, name: str | None, place: str) -> None:
    card = card_of(tmp_path, "owner/base", push_to_hub=True, hub_model_id=name)
    assert f"from_pretrained({place!r}" in card.text


@pytest.mark.parametrize("lora", [{"r": 513}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_what_vllm_cannot_load_beside_its_base(tmp_path: Path, lora: dict[str, Any]) -> None:
    text = card_of(tmp_path, "owner/base", lora).text
    assert "--enable-lora" not in text
    assert "vllm serve merged" in text


def test_a_reward_model_is_loaded_with_its_head(tmp_path: Path) -> None:
    text = card_of(tmp_path, "owner/base", {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}).text
    assert "AutoModelForSequenceClassification.from_pretrained('owner/base', num_labels=1)" in text
    assert "PeftModel.from_pretrained(base, 'a-run/adapter')" in text
    assert "FastLanguageModel" not in text
    assert "merge" not in text


def test_a_scripts_output_has_the_card_of_its_adapter(tmp_path: Path) -> None:
    """Where TRL drafts one of `[None]`; the user's own stays."""
    base, out, adapter = tmp_path / "my-base", tmp_path / "out", tmp_path / "out" / "adapter"
    for directory in (base, adapter):
        directory.mkdir(parents=True)
    trainer: Any = SFTTrainer(Model(str(base)), out)
    write_our_cards(trainer)
    trainer.create_model_card(model_name="out")
    trainer.model.create_or_update_model_card(str(adapter))
    trainer.model.create_or_update_model_card(str(adapter))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card == (adapter / "README.md").read_text(encoding="utf-8")
    assert "`my-base`, loaded from a directory" in card
    assert "- **Data**: 1,234 rows\n" in card
    assert "max_seq_length=512" in card
    assert facts_of(SFTTrainer(Model("a/b"), out, push_to_hub=True), None).place == "OWNER/out"  # type: ignore[arg-type]

    (out / "README.md").write_text("mine", encoding="utf-8")
    trainer.create_model_card()
    trainer.model.create_or_update_model_card(str(out))
    assert (out / "README.md").read_text(encoding="utf-8") == "mine"


def test_a_run_writes_no_readme_into_output_dir(tmp_path: Path) -> None:
    trainer: Any = SFTTrainer(Model("owner/base"), tmp_path)
    write_our_cards(trainer, run_of(tmp_path, "owner/base"))
    trainer.create_model_card()
    assert not (tmp_path / "README.md").exists()


def test_an_adapter_of_another_kind_keeps_pefts_card(tmp_path: Path) -> None:
    """IA3 and prompts have neither rank nor alpha: saving ended in an AttributeError, and the training was lost."""
    model = Model("owner/base")
    model.peft_config = {"default": SimpleNamespace(target_modules={"k_proj"})}
    trainer: Any = SFTTrainer(model, tmp_path)
    write_our_cards(trainer)
    model.create_or_update_model_card(str(tmp_path))
    assert "More Information Needed" in (tmp_path / "README.md").read_text(encoding="utf-8")
