"""DDP's settings: decided from the model, the user's word first, each rank's model in its place."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SCRIPTS, accelerate_launch
from test_capabilities import NEWEST, looked

from unsloth_accel.adapters import ddp_settings
from unsloth_accel.adapters.ddp import wrap_after_evaluation
from unsloth_accel.adapters.ddp_settings import PlacementError, check_placement, device_map


def model_with(*names: str, frozen: tuple[str, ...] = ()) -> Any:
    """A module with parameters of these dotted names."""
    root = torch.nn.Module()
    for name in (*names, *frozen):
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        place.register_parameter(last, torch.nn.Parameter(torch.zeros(2), requires_grad=name in names))
    return root


BLOCK = "base_model.model.model.layers.0."


@pytest.mark.parametrize(
    "name",
    [
        f"{BLOCK}self_attn.q_proj.lora_A.default.weight",
        f"{BLOCK}mlp.experts.base_layer.lora_A.default.weight",  # all experts in one tensor
        f"{BLOCK}mlp.shared_expert.up_proj.lora_A.default.weight",
        "base_model.model.model.embed_tokens.modules_to_save.default.weight",
        "base_model.model.lm_head.modules_to_save.default.weight",
    ],
)
def test_what_takes_part_in_every_step(name: str) -> None:
    tower = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"
    assert ddp_settings.may_go_without_gradient(model_with(name, frozen=(tower,))) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"{BLOCK}mlp.experts.3.up_proj.lora_A.default.weight", "no token"),
        ("base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.default.weight", "images"),
        ("base_model.model.model.visual.blocks.0.attn.qkv.lora_A.default.weight", "images"),
        ("model.mtp.layers.0.mlp.up_proj.weight", "further tokens"),
        ("base_model.model.lm_head.lora_A.default.weight", "fused loss"),
    ],
)
def test_what_a_step_may_skip(name: str, why: str) -> None:
    found = ddp_settings.may_go_without_gradient(model_with(f"{BLOCK}self_attn.q_proj.lora_A.default.weight", name))
    assert found is not None
    assert found[0] == name
    assert why in found[1]


def test_running_means_are_sent_and_constants_are_not() -> None:
    rotary = torch.nn.Module()
    rotary.register_buffer("inv_freq", torch.ones(2))
    assert not ddp_settings.buffers_change(rotary)
    assert ddp_settings.buffers_change(torch.nn.Sequential(rotary, torch.nn.BatchNorm1d(2)))


def test_a_packed_model_off_its_gpu_is_refused() -> None:
    """Accelerate moves a 16-bit model to its place, and can't move a quantised or a split one."""
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    mine = torch.device("cuda", 1)
    check_placement(model, mine)
    model.is_loaded_in_4bit = True
    with pytest.raises(PlacementError, match=r"2 parameters are not on cuda:1.*weight is on meta.*LOCAL_RANK"):
        check_placement(model, mine)
    del model.is_loaded_in_4bit
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(PlacementError):
        check_placement(model, mine)
    offloaded = torch.nn.Linear(2, 2)  # on the CPU, as Unsloth does with embeddings
    offloaded.is_loaded_in_4bit = True
    check_placement(offloaded, mine)


def test_an_old_unsloth_is_told_the_rank_on_this_machine(tmp_path: Path) -> None:
    """The tenth process is the second one of a second machine with eight GPUs: GPU 1, not GPU 9."""
    environ = {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1"}
    for version in ("2025.12.10", "2026.8.22"):
        assert device_map(environ, looked(tmp_path / version, version)) == {"": 1}
        assert device_map({}, looked(tmp_path / f"{version}-alone", version)) is None
    for version in ("2026.9.14", NEWEST):
        assert device_map(environ, looked(tmp_path / version, version)) is None


def test_prepare_model_is_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both adapters' steps come before one wrapping, in order, and adapting again doubles nothing."""
    monkeypatch.setattr("unsloth_accel.adapters.ddp.distributed_type", lambda: "MULTI_CPU")
    done: list[str] = []
    monkeypatch.setattr(ddp_settings, "_set", lambda *_: done.append("settings"))
    monkeypatch.setattr("unsloth_accel.adapters.ddp._forget", lambda *_: done.append("forgotten"))

    def prepare_model(model: Any, *_: Any) -> Any:
        done.append("wrapped")
        return model

    accelerator: Any = SimpleNamespace(prepare_model=prepare_model, ddp_handler=None, num_processes=2, device="cpu")
    wrapped = set()
    for _ in range(2):
        wrap_after_evaluation(accelerator)
        ddp_settings.choose_settings(accelerator)
        wrapped.add(accelerator.prepare_model)
    assert len(wrapped) == 1
    model: Any = torch.nn.Linear(1, 1)
    model._is_accelerate_prepared = True
    assert accelerator.prepare_model(model) is model
    assert done == ["forgotten", "settings", "wrapped"]
    accelerator.prepare_model(model, evaluation_mode=True)
    assert done[3:] == ["wrapped"]


@pytest.mark.slow
def test_in_two_processes(families: Path, tmp_path: Path) -> None:
    """A dense model isn't searched; one whose vision tower no row reaches is, and stops the run where it mustn't be."""
    dense, vision = families / "qwen3", families / "gemma3_vl"
    out, script = tmp_path / "out", SCRIPTS / "ddp_settings.py"
    done = accelerate_launch(
        "--config_file", "accelerate_configs/cpu_ddp.yaml", script, dense, vision, out, forked=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))

    assert found["dense"]["kind"] == "DistributedDataParallel"
    settings = {name: found[name]["find_unused_parameters"] for name in found if "kind" in found[name]}
    assert settings == {
        "dense": False,
        "vision": True,
        "dense, told to search and send": True,
        "trained embeddings": False,
    }
    assert [found[name]["buffers"] for name in ("dense", "vision")] == [0, 0]
    assert found["dense, told to search and send"]["buffers"] == 2
    assert not found["dense"]["warnings"]
    assert not found["vision"]["warnings"]
    assert found["trained embeddings"]["gradient_as_bucket_view"] is True
    # The settings change how gradients travel, not what is trained.
    assert found["dense"]["loss"] == found["dense, told to search and send"]["loss"]
    assert (done.stdout + done.stderr).count("unsloth_accel: DDP looks for parameters without gradient") == 1

    assert found["reentrant"] == [False, True]
    assert "ddp_static_graph=True: with gradient_accumulation_steps=2" in found["static graph"]
    assert "8 trainable parameters got no gradient in the first step" in found["vision, told not to search"]
    assert "vision_tower.encoder.layers.0" in found["vision, told not to search"]
