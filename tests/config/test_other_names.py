"""Keys in a wrong section, under another project's name, or with one that transformers no longer has."""

from pathlib import Path
from typing import Any

import pytest
from conftest import write_yaml

from unsloth_accel.config.other_names import _ELSEWHERE_CALLED, _own_keys
from unsloth_accel.config.read_run import from_dict, load
from unsloth_accel.config.run_config import OWN_TRAINING_KEYS
from unsloth_accel.config.trainer_fields import training_fields
from unsloth_accel.errors import ConfigError
from unsloth_accel.methods import METHODS

FIELDS = {**training_fields(METHODS["sft"].config_sources), **OWN_TRAINING_KEYS}


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("learning_rate", 1e-4, "did you mean training.learning_rate?"),
        ("learning_rte", 1e-4, "did you mean training.learning_rate?"),
        ("max_seq_length", 512, "did you mean model.max_seq_length?"),
        ("report_to", "none", "did you mean logging.report_to?"),
        ("model.target_modules", "all-linear", "did you mean lora.target_modules?"),
        ("training.lora_alpha", 16, "did you mean lora.alpha?"),
        ("training.global_size", 4, "did you mean batch.global_size?"),
        ("model_name_or_path", "x", "did you mean model.name?"),
        ("epochs", 1, "did you mean training.num_train_epochs?"),
        ("training.group_by_length", True, "training.train_sampling_strategy: group_by_length"),
        ("training.group_by_length", False, "remove it"),
        ("training.warmup_ratio", 0.1, "training.warmup_steps: 0.1"),
        ("training.logging_dir", "logs", "remove it; for TensorBoard export TENSORBOARD_LOGGING_DIR=logs"),
        ("training.evaluation_strategy", "no", "did you mean training.eval_strategy?"),
        ("training.no_cuda", True, "distributed.device: cpu"),
        ("training.max_stps", 2, "did you mean training.max_steps?"),
        (
            "lora.sparsity",
            8,
            "remove it, or use one of: alpha, bias, dropout, init_lora_weights, layers_pattern, layers_to_transform, "
            "loftq_config, modules_to_save, r, random_state, target_modules, target_parameters, use_dora, use_rslora.",
        ),
    ],
)
def test_a_key_is_told_its_place(description: dict[str, Any], key: str, value: Any, fix: str) -> None:
    section, _, name = key.rpartition(".")
    values = {**description, section: {**description.get(section, {}), name: value}} if section else None
    with pytest.raises(ConfigError) as raised:
        from_dict(values or {**description, key: value})
    (problem,) = raised.value.problems
    assert (problem.key, problem.fix) == (key, fix)


@pytest.mark.parametrize("name", _ELSEWHERE_CALLED)
def test_other_names_lead_to_keys_that_there_are(name: str) -> None:
    key = _ELSEWHERE_CALLED[name]
    assert key in {"output_dir", *_own_keys(), *(f"training.{field}" for field in FIELDS)}
    assert name not in FIELDS


def test_a_bare_word_that_yaml_takes_for_a_truth_is_told(tmp_path: Path, description: dict[str, Any]) -> None:
    """And with no warning of OmegaConf's beside it; a number is taken for the text that it is."""
    file = write_yaml(tmp_path / "run.yaml", description)
    with pytest.raises(ConfigError, match=r"data\.subset=False: wrong type: str or null is needed, this is bool"):
        load(file, ["data.subset=no"])
    assert load(file, ["data.subset=2024"]).data.subset == "2024"
