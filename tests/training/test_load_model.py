"""Beginning with an adapter: the model that is trained is base plus adapter, whatever the adapter is like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_adapter

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.start_adapter import find_adapter
from unsloth_accel.errors import ConfigError

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MADE = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "a pattern of modules": {"target_modules": r".*\.self_attn\.(q|v)_proj"},
    "embeddings, tied": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
    "biases": {"target_modules": ATTENTION, "bias": "lora_only"},
    "ranks of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 6}},
    "DoRA": {"use_dora": True, "target_modules": ATTENTION},
    "one layer": {"layers_to_transform": [1]},
}


@pytest.mark.slow
def test_the_model_is_base_plus_adapter(tiny: Path, tmp_path: Path) -> None:
    """To the logits of PEFT's own loading, trainable as it was, named after the base, and what does not fit is told."""
    import unsloth  # noqa: F401  isort: skip
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from unsloth_accel.training.load_model import add_adapter, load_model

    ids = torch.arange(3, 60).reshape(3, 19)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)(input_ids=ids).logits
    for name, options in MADE.items():
        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        arguments: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": [*ATTENTION, "up_proj"], **options}
        made = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **arguments))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        made.save_pretrained(tmp_path / name)
        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        with torch.no_grad():
            expected = PeftModel.from_pretrained(base, tmp_path / name).eval()(input_ids=ids).logits
        assert float((expected - plain).abs().max()) > 1e-3, name
        run = from_dict(
            {
                "model": {"name": str(tmp_path / name), "dtype": "float32", "gradient_checkpointing": "false"},
                "data": {"path": "-"},
                "distributed": {"device": "cpu"},
                "output_dir": "-",
            }
        )
        model, _ = load_model(run)
        model = add_adapter(model, run)
        with torch.no_grad():
            found = model.eval()(input_ids=ids).logits
        assert float((found - expected).abs().max()) < 1e-5, name
        assert model.peft_config["default"].base_model_name_or_path == str(tiny)
        trained = {parameter for parameter, value in model.named_parameters() if value.requires_grad}
        assert trained == {parameter for parameter, value in made.named_parameters() if value.requires_grad}, name
    weights = tmp_path / "one layer" / "adapter_model.safetensors"
    weights.write_bytes((tmp_path / "plain" / "adapter_model.safetensors").read_bytes())
    model, _ = load_model(run)
    with pytest.raises(ConfigError, match=r"don't fit its base.*layers\.0"):
        add_adapter(model, run)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_stay_as_many_tables_as_they_were(tied: bool, tmp_path: Path) -> None:
    """Unsloth decides by the model where it isn't told, on a GPU otherwise than on a CPU."""
    from unsloth_accel.training.load_model import _made_as

    said = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": tied}
    write_adapter(tmp_path, base_model_name_or_path="owner/base", **said)
    found = find_adapter(str(tmp_path))
    assert found is not None
    assert _made_as(found)["ensure_weight_tying"] is tied


SETTINGS: dict[str, dict[str, Any]] = {
    "as usual": {},
    "Unsloth's names": {"lora_alpha": 8, "lora_dropout": 0.5},
    "DoRA": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "the second block": {"layers_to_transform": [1]},
    "of the list called layers": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "biases": {"bias": "lora_only"},
    "a parameter": {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate_proj.weight"]},
}


@pytest.mark.slow
def test_each_setting_of_lora_is_planned_and_reaches_peft(tiny: Path, tmp_path: Path) -> None:
    """As many parameters are trained as were planned, and what is saved is loaded again to the same logits."""
    import unsloth  # noqa: F401  isort: skip
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from unsloth_accel.models.lora_targets import targets
    from unsloth_accel.models.spec import ModelSpec
    from unsloth_accel.training.load_model import add_adapter, load_model

    ids = torch.arange(3, 60).reshape(3, 19)
    spec = ModelSpec.load(tiny)
    begins_elsewhere = []
    for name, lora in SETTINGS.items():
        model = {"name": str(tiny), "dtype": "float32", "gradient_checkpointing": "false"}
        rest = {"data": {"path": "-"}, "distributed": {"device": "cpu"}, "output_dir": "-"}
        run = from_dict({"model": model, "lora": {"r": 4, "target_modules": ATTENTION, **lora}, **rest})
        adapted = add_adapter(load_model(run)[0], run)
        trained = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
        assert trained == targets(run, spec, on_cpu=True).parameters, name
        config = adapted.peft_config["default"]
        for key, value in lora.items():
            kept = getattr(config, key)
            assert (sorted(kept) if isinstance(kept, set) else kept) == value, (name, key)
        torch.manual_seed(1)
        with torch.no_grad():
            begun = adapted.eval()(input_ids=ids).logits
            plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()(input_ids=ids).logits
            if float((begun - plain).abs().max()) > 1e-4:
                begins_elsewhere.append(name)
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.02)
            expected = adapted(input_ids=ids).logits
            adapted.save_pretrained(tmp_path / name)
            base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
            again = PeftModel.from_pretrained(base, tmp_path / name).eval()(input_ids=ids).logits
        assert float((expected - begun).abs().max()) > 1e-3, name
        assert float((again - expected).abs().max()) < 1e-4, name
    assert begins_elsewhere == ["random"]


@pytest.mark.slow
def test_a_new_score_head_is_equal_on_every_rank(tiny: Path) -> None:
    import unsloth  # noqa: F401  isort: skip
    import torch

    from unsloth_accel.training.load_model import load_model

    model = {"name": str(tiny), "dtype": "float32"}
    rest = {"data": {"path": "-"}, "distributed": {"device": "cpu"}, "output_dir": "-"}
    run = from_dict({"method": "reward", "model": model, **rest})
    heads = []
    for rank in range(2):
        torch.manual_seed(rank)
        heads.append(load_model(run)[0].score.weight)
    assert torch.equal(*heads)


@pytest.mark.slow
def test_the_optimizers_that_a_cpu_lacks_are_those_that_unsloth_replaces(tmp_path: Path) -> None:
    import unsloth  # noqa: F401  isort: skip
    from transformers.training_args import OptimizerNames
    from trl import SFTConfig

    from unsloth_accel.planning.optimizers import needs_gpu

    taken = {
        name.value: SFTConfig(output_dir=str(tmp_path), optim=name.value, bf16=False).optim for name in OptimizerNames
    }
    replaced = {name for name, optimizer in taken.items() if optimizer != name} - {"adamw_torch"}
    assert replaced == {name for name in taken if needs_gpu(name)}
    assert {taken[name] for name in replaced} == {"adamw_torch_fused"}
