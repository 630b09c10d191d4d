"""What a run's GRPO config has beside what run.yaml says."""

from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.config import read_run
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.errors import ConfigError
from unsloth_accel.training import grpo
from unsloth_accel.training.grpo import config_fields


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, 0.2),
        ({"loss_type": "cispo"}, 0.2),
        ({"epsilon": 0.1}, 0.1),
        ({"epsilon_high": 0.28}, None),
    ],
)
def test_clipping_is_trls_where_unsloth_has_another(training: dict[str, Any], expected: float | None) -> None:
    """Unsloth takes 0.28 with `loss_type=dapo`, which the plan writes, where `epsilon_high` is None."""
    assert config_fields(run_of(training)).get("epsilon_high") == expected


def run_of(training: dict[str, Any]) -> RunConfig:
    return read_run.from_dict(
        {
            "method": "grpo",
            "model": {"name": "org/model"},
            "data": {"path": "rows.jsonl"},
            "rewards": {"functions": ["format"]},
            "batch": {"global_size": 16},
            "training": training,
            "output_dir": "runs/one",
        }
    )


@pytest.mark.parametrize(
    ("training", "expected"),
    [({}, "group"), ({"scale_rewards": "none"}, "none"), ({"scale_rewards": "batch"}, "batch")],
)
def test_rewards_are_scaled_as_asked_where_unsloth_turns_it_off(
    training: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsloth's config of `dr_grpo` turns `group` off, on GPUs alone."""
    seen: list[Any] = []
    monkeypatch.setattr(grpo, "trls_trainer", lambda run, model, tokenizer, config, rows, **others: seen.append(config))
    config = SimpleNamespace(scale_rewards=False, generation_batch_size=16, num_generations=8)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=1, eos_token="</s>", unk_token=None, bos_token=None)
    rows: Any = SimpleNamespace(train=[1, 2])
    grpo.make_trainer(run_of({"loss_type": "dr_grpo"} | training), None, tokenizer, config, rows)
    assert seen[0].scale_rewards == expected
    rows.train.pop()
    with pytest.raises(ConfigError, match="'1 prompt': 2 are answered at a time"):
        grpo.make_trainer(run_of({}), None, tokenizer, config, rows)
