import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unsloth_accel.adapters import rank_checks, saving
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.files import replacing_directory, write_atomically


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, "one")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "two")
    assert path.read_text(encoding="utf-8") == "one"
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for text in ("one", "two"):
        with replacing_directory(target) as temporary:
            (temporary / "file").write_text(text, encoding="utf-8")
            assert not (target / "file").exists() or (target / "file").read_text(encoding="utf-8") == "one"
    assert (target / "file").read_text(encoding="utf-8") == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_the_old_directory_stays_when_the_new_one_fails(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "file").write_text("old", encoding="utf-8")

    def write_half() -> None:
        with replacing_directory(target) as temporary:
            (temporary / "file").write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert (target / "file").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("error", [OSError("busy"), KeyboardInterrupt()])
def test_the_old_directory_comes_back_when_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "file").write_text("old", encoding="utf-8")
    rename = os.rename

    def fails(source: Any, destination: Any) -> None:
        if destination == target and not str(source).endswith(".old"):
            raise error
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(type(error)), replacing_directory(target):
        pass
    assert (target / "file").read_text(encoding="utf-8") == "old"


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


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    return rank_checks._checksums([tensor], tensor.device)[0]


def test_checksums_see_values_places_and_types() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert checksum(tensor) == checksum(tensor.clone())
    assert checksum(tensor.t()) != checksum(tensor)
    assert checksum(torch.nextafter(tensor, tensor + 1)) != checksum(tensor)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int8):
        assert checksum(tensor.to(dtype)) != checksum((tensor + 1).to(dtype))


@pytest.mark.parametrize(
    ("optim", "own", "save_strategy", "only_model", "refused"),
    [
        ("adamw_torch_fused", None, "steps", False, True),
        ("adamw_torch_fused", None, "no", False, False),
        ("adamw_torch_fused", None, "steps", True, False),
        ("adamw_torch", None, "steps", False, False),
        ("adamw_torch", True, "steps", False, True),
        ("adamw_torch_fused", False, "steps", False, False),
    ],
)
def test_fsdp1_refuses_an_optimizer_whose_state_it_can_not_save(
    optim: str, own: bool | None, save_strategy: str, only_model: bool, refused: bool
) -> None:
    from unsloth_accel.adapters.fsdp1 import refuse_fused
    from unsloth_accel.errors import ConfigError

    args = SimpleNamespace(optim=optim, save_strategy=save_strategy, save_only_model=only_model)
    given = None if own is None else torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], fused=own)
    trainer: Any = SimpleNamespace(args=args, optimizer=given)
    if not refused:
        refuse_fused(trainer)
        return
    with pytest.raises(ConfigError, match=r"end at its first checkpoint\. Fix: optim='adamw_torch'"):
        refuse_fused(trainer)
