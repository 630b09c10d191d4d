"""Records of methods: what they say of TRL's trainers is so, and a plan trains alike on a CPU and on GPUs."""

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import CPU, SMALL, gpus, make

from unsloth_accel.config import read_run
from unsloth_accel.config.installed_source import source_text
from unsloth_accel.config.trainer_fields import training_fields
from unsloth_accel.config.trainer_settings import OTHERS_ON_GPUS, settings
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.methods import METHODS, Method
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan

HARMLESS = {
    *("output_dir", "logging_steps", "report_to", "logging_nan_inf_filter", "include_tokens_per_second"),
    *("include_num_input_tokens_seen", "per_device_eval_batch_size", "eval_accumulation_steps"),
    *("torch_empty_cache_steps", "dataloader_pin_memory", "auto_find_batch_size", "max_seq_length", "padding_free"),
    *("num_generations", "vllm_mode", "generation_kwargs"),
}
"""Defaults that Unsloth changes and that change nothing that is learned, or are other methods'."""
PLANNED = {"per_device_train_batch_size", "gradient_accumulation_steps", "optim", "bf16", "fp16"}


def trainer(method: Method) -> str:
    """The source of the method's trainer."""
    return source_text(method.config_sources[-1].partition(":")[0].replace("_config.", "_trainer."))


def test_every_default_that_unsloth_changes_is_planned_or_harmless() -> None:
    changed = {
        key.value
        for node in ast.walk(ast.parse(source_text("unsloth/models/rl.py")))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and ast.unparse(node.targets[0])
        for keys in [[key for key in node.value.keys if isinstance(key, ast.Constant)]]
        if ast.unparse(node.targets[0]) == "replacements" and "learning_rate" in {key.value for key in keys}
        for key in keys
    }
    assert "learning_rate" in changed
    assert changed - HARMLESS - PLANNED <= {*OTHERS_ON_GPUS}


def test_every_default_that_unsloth_changes_for_grpo_is_written_or_left_alone_with_a_reason() -> None:
    changed = {
        key.value
        for node in ast.walk(ast.parse(source_text("unsloth/models/rl.py")))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "trainer_file == 'grpo_trainer'"
        for one in node.body
        if isinstance(one, ast.Assign) and isinstance(one.value, ast.Dict)
        for key in one.value.keys
        if isinstance(key, ast.Constant)
    }
    assert "loss_type" in changed
    left_alone = {"auto_find_batch_size", "router_aux_loss_coef"}  # refused by TRL; no part of Unsloth's loss
    assert changed - left_alone == {*METHODS["grpo"].others_on_gpus}


@pytest.mark.parametrize("method", tuple(METHODS), ids=lambda method: method.name)
def test_the_record_says_what_the_trainer_does(method: Method) -> None:
    source = trainer(method)
    assert f"class {method.trainer_class.rpartition('.')[2]}(" in source
    assert ("loss_is_scaled_for_ga = False" in source) == method.mean_over_rows
    assert ("packing" in training_fields(method.config_sources)) == method.packs
    for name in filter(None, (*method.charts, method.accuracy, method.score)):
        assert f'{name}"]' in source


@pytest.mark.parametrize("method", tuple(METHODS), ids=lambda method: method.name)
def test_gpus_train_at_the_rate_that_a_cpu_does(description: dict[str, Any], method: Method) -> None:
    values = {**description, "method": method.name, "batch": {"global_size": 16}}
    on_cpu, on_gpus = make(values, CPU), make(values, gpus(2))
    usual = settings(replace(on_cpu.run, training={}))
    for decided in (on_cpu, on_gpus):
        written = decided.resolved()["training"]
        assert {name: written[name] for name in OTHERS_ON_GPUS} == {name: usual[name] for name in OTHERS_ON_GPUS}
        assert any("training.learning_rate=" in reason and "TRL's own" in reason for reason in decided.reasons)
        assert bool(method.note) == any(method.note in reason for reason in decided.reasons if method.note)
    given = make(values, gpus(2), training={"learning_rate": 3e-6, "seed": 7})
    assert (given.run.training["learning_rate"], given.run.training["seed"]) == (3e-6, 7)


def test_rates_are_trls(description: dict[str, Any]) -> None:
    rates = {one.name: make({**description, "method": one.name}, gpus(1)).run.training for one in METHODS}
    assert {name: training["learning_rate"] for name, training in rates.items()} == {
        "sft": 2e-5,
        "dpo": 1e-6,
        "kto": 1e-6,
        "reward": 1e-4,
        "orpo": 1e-6,
        "grpo": 1e-6,
        "rloo": 1e-6,
    }


def planned(method: str, data: dict[str, Any] | None = None, **training: Any) -> Plan:
    values = {"method": method, "model": {"name": SMALL}, "distributed": {"strategy": "ddp"}, "training": training}
    values |= {"data": data} if data else {}
    return plan(read_run.from_dict(values, to_plan=True), Hardware.parse("2xH100-80GB"))


def tokens_per_second(method: str, **training: Any) -> float:
    speed = planned(method, **training).speed
    assert speed
    return speed.tokens_per_second


def test_a_reference_takes_time_until_it_is_computed_beforehand() -> None:
    beforehand = {"precompute_ref_log_probs": True}
    assert tokens_per_second("dpo") < 0.9 * tokens_per_second("dpo", **beforehand)
    # KTO's other answers are read by both models, by the trained one in every step.
    assert tokens_per_second("kto") < 0.9 * tokens_per_second("dpo")
    assert tokens_per_second("kto") < 0.9 * tokens_per_second("kto", **beforehand)
    assert tokens_per_second("kto", **beforehand) < 0.95 * tokens_per_second("sft")


def test_padding_takes_time_and_is_no_work_done(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    sizes = [100] * 90 + [6000] * 10
    rows = ({"prompt": "Why?", "chosen": "yes " * (size // 4), "rejected": "no, because"} for size in sizes)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    padded, free = (
        planned("dpo", data={"path": str(path)}, padding_free=padding_free, **batch) for padding_free in (False, True)
    )
    assert padded.speed
    assert free.speed
    assert padded.lengths
    assert padded.speed.step_seconds > 3 * free.speed.step_seconds, "16 sequences are as long as their longest"
    assert padded.speed.tokens == pytest.approx(2 * 16 * padded.lengths.mean, rel=0.01)


def test_a_score_takes_no_memory_for_logits(description: dict[str, Any]) -> None:
    reward, orpo = (make({**description, "method": method}, CPU).memory for method in ("reward", "orpo"))
    assert reward
    assert "logits" not in reward.terms
    assert orpo
    assert "logits" in orpo.terms


def test_smoothed_labels_take_the_logits_of_all_tokens() -> None:
    """The loss is transformers' own then (trainer_pt_utils.py: LabelSmoother); DPO's smoothing is of pairs."""
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}

    def allocated(method: str, **training: Any) -> float:
        memory = planned(method, **batch, **training).memory
        assert memory
        return memory.terms.get("logits", 0.0)

    whole = 4 * 2048 * 128256 * 12 / 2**30
    assert allocated("sft") < whole / 20
    assert allocated("dpo", label_smoothing=0.1) == allocated("dpo")
    assert allocated("sft", label_smoothing_factor=0.1) > whole


def test_a_reward_model_has_no_lm_head_to_train(description: dict[str, Any]) -> None:
    changes = {"lora": {"target_modules": ["q_proj", "lm_head"]}}
    with pytest.raises(ConfigError, match="a score head, which is trained whole, in place of lm_head") as refused:
        make({**description, "method": "reward"}, CPU, **changes)
    assert refused.value.problems[0].fix == "leave lm_head out"
    assert "lm_head" in make({**description, "method": "dpo"}, CPU, **changes).run.lora.target_modules


def test_kto_needs_two_rows_at_once(description: dict[str, Any]) -> None:
    values = {**description, "method": "kto", "distributed": {"num_processes": 2}}
    with pytest.raises(ConfigError, match="at least 2 rows at once") as refused:
        make(values, CPU, batch={"global_size": 2})
    assert "distributed.num_processes=1" in refused.value.problems[0].fix
    assert "batch.global_size=4" in refused.value.problems[0].fix
    for training in ({"per_device_train_batch_size": 1}, {"gradient_accumulation_steps": 6}):
        with pytest.raises(ConfigError, match="at least 2 rows at once") as refused:
            make(values, CPU, training=training, batch={"global_size": 12})
        fix = refused.value.problems[0].fix
        assert "training.per_device_train_batch_size=2" in fix, "nothing has to change what a step learns"
        assert "global_size" not in fix
    assert make(values, CPU, batch={"global_size": 4}).batch.per_device == 2


def test_kto_has_no_single_rows_where_more_are_as_good(description: dict[str, Any]) -> None:
    values = {**description, "method": "kto", "batch": {"global_size": 8}}
    assert make(values, gpus(2)).batch.per_device >= 2


def test_a_method_that_the_installed_trl_lacks_is_named(
    description: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(METHODS["dpo"], name="ppo", config_sources=("trl/trainer/ppo_config.py:PPOConfig",))
    monkeypatch.setitem(METHODS._records, "ppo", gone)
    with pytest.raises(ConfigError, match="the installed TRL has no PPOConfig"):
        read_run.from_dict({**description, "method": "ppo"})


def test_a_reference_computed_beforehand_needs_whole_weights(description: dict[str, Any]) -> None:
    values = {**description, "method": "dpo", "training": {"precompute_ref_log_probs": True}}
    assert make(values, gpus(2)).strategy == "ddp"
    for hardware in (CPU, gpus(2)):
        with pytest.raises(ConfigError, match="before the ranks' parts of the weights are put together") as refused:
            make(values, hardware, distributed={"strategy": "fsdp2_native", "num_processes": 2})
        assert "distributed.strategy=ddp" in refused.value.problems[0].fix
