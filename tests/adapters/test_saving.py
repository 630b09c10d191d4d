from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unsloth_accel.adapters import saving
from unsloth_accel.config.run_config import RunConfig


@pytest.fixture
def model() -> torch.nn.Module:
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.save_pretrained = lambda directory, **_: save_file(
        {"weight": layer.weight.detach()}, Path(directory, "adapter_model.safetensors")
    )
    return layer


def fake_trainer(model: torch.nn.Module) -> Any:
    """A Trainer's parts that saving touches, in one process."""
    accelerator = SimpleNamespace(
        unwrap_model=lambda model: model,
        wait_for_everyone=lambda: None,
        is_main_process=True,
        num_processes=1,
    )
    tokenizer = SimpleNamespace(save_pretrained=lambda directory: None)
    return SimpleNamespace(accelerator=accelerator, model=model, processing_class=tokenizer)


def test_an_adapter_without_all_its_numbers_is_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained = lambda directory, **_: save_file(
        {"weight": torch.zeros(1)}, Path(directory, "adapter_model.safetensors")
    )
    with pytest.raises(saving.SaveError, match="holds 1 numbers, the adapter has 6"):
        saving.save_run(fake_trainer(model), RunConfig(output_dir=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_what_to_do(model: Any, tmp_path: Path) -> None:
    def full(directory: str, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    model.save_pretrained = full
    with pytest.raises(saving.SaveError, match=r"not saved .*No space left on device.* Fix: make room"):
        saving.save_run(fake_trainer(model), RunConfig(output_dir=str(tmp_path)))


def test_a_full_disk_does_not_cost_the_adapter(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where output_dir can't take it, it goes to the system's temporary directory, and the error says so."""
    write = model.save_pretrained

    def full(directory: str, **rest: Any) -> None:
        if "elsewhere" not in directory:
            raise OSError(28, "No space left on device")
        write(directory, **rest)

    model.save_pretrained = full
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    with pytest.raises(saving.SaveError, match=r"It is complete in .*elsewhere.* Fix: make room"):
        saving.save(fake_trainer(model), tmp_path / "out")
    assert len(list((tmp_path / "elsewhere").glob("*/adapter/adapter_model.safetensors"))) == 1
    assert not (tmp_path / "out").exists()


def test_a_whole_adapter_is_saved(model: Any, tmp_path: Path) -> None:
    path = saving.save_run(fake_trainer(model), RunConfig(output_dir=str(tmp_path)))
    assert (path / "adapter_model.safetensors").is_file()
    assert (path / "versions.json").is_file()
