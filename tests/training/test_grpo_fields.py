"""What a run's GRPO config has beside what run.yaml says."""

from typing import Any

import pytest

from unsloth_accel.config import read_run
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
    run = read_run.from_dict(
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
    assert config_fields(run).get("epsilon_high") == expected
