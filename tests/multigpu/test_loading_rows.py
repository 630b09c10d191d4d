"""Unsloth's loaders under enable_multi_gpu: what is loaded whole, as in a run.yaml's training, and what is refused."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from unsloth_accel.adapters.fsdp2 import loading
from unsloth_accel.errors import ConfigError
from unsloth_accel.multigpu import patched
from unsloth_accel.multigpu.asked import MultiGPUConfig

Loader = Any
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
MIXTURE = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4}


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loader]:
    """A class with Unsloth's two methods, as enable_multi_gpu leaves it in an FSDP2 launch."""
    seen: list[str] = []

    @contextmanager
    def context(name: str) -> Iterator[None]:
        seen.append(name)
        yield

    monkeypatch.setattr(loading, "loads_rows", lambda: True)
    monkeypatch.setattr(loading, "holds_rows", lambda model: False)
    monkeypatch.setattr(loading, "whole_loading", lambda: context("whole"))
    monkeypatch.setattr(loading, "sharded_loading", lambda in_4bit: context(f"4bit={in_4bit}"))
    monkeypatch.setattr(patched.STATE, "config", MultiGPUConfig())
    monkeypatch.setattr(patched, "wrap_trainers", lambda: None)

    class Owner:
        contexts = seen

        @staticmethod
        def from_pretrained(model_name: str, load_in_4bit: bool = True, token: str | None = None) -> str:
            return model_name

        @staticmethod
        def get_peft_model(model: Any, r: int = 16, **more: Any) -> tuple[Any, int]:
            return model, r

    plain = {**vars(Owner)}
    patched._load_shards(Owner)
    yield Owner
    patched.restore()
    assert {**vars(Owner)} == plain


def made(directory: Path, name: str, values: dict[str, Any]) -> str:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(values), encoding="utf-8")
    return str(directory)


@pytest.mark.parametrize(("config", "expected"), [(LLAMA, "4bit=False"), (MIXTURE, "whole")], ids=["llama", "mixture"])
def test_a_mixture_is_loaded_whole(config: dict[str, Any], expected: str, loader: Loader, tmp_path: Path) -> None:
    name = made(tmp_path / "base", "config.json", config)
    assert loader.from_pretrained(name, load_in_4bit=False) == name
    adapter = made(tmp_path / "adapter", "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": name})
    loader.from_pretrained(adapter, False)
    assert loader.contexts == [expected, expected]


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"use_dora": True}, "whole"), ({"init_lora_weights": "pissa"}, "whole"), ({}, "4bit=True")],
    ids=["dora", "pissa", "lora"],
)
def test_an_adapter_that_reads_its_base_is_loaded_whole(
    said: dict[str, Any], expected: str, loader: Loader, tmp_path: Path
) -> None:
    base = made(tmp_path / "base", "config.json", LLAMA)
    config = {"peft_type": "LORA", "base_model_name_or_path": base, **said}
    loader.from_pretrained(made(tmp_path / "adapter", "adapter_config.json", config))
    assert loader.contexts == [expected]


def test_what_is_not_there_is_left_to_the_loader(loader: Loader, tmp_path: Path) -> None:
    assert loader.from_pretrained(str(tmp_path / "none")) == str(tmp_path / "none")


@pytest.mark.parametrize("said", [{"use_dora": True}, {"init_lora_weights": "olora"}])
def test_a_new_adapter_that_reads_the_base_needs_all_of_it(
    said: dict[str, Any], loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(2, 2)
    assert loader.get_peft_model(model, r=4, **said) == (model, 4)
    monkeypatch.setattr(loading, "holds_rows", lambda model: True)
    assert loader.get_peft_model(model, r=4) == (model, 4)
    with pytest.raises(ConfigError, match=rf"{next(iter(said))}=.*whole_loading"):
        loader.get_peft_model(model, r=4, **said)
