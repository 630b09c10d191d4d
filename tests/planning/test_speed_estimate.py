import pytest
from plans import LARGE, planned


def test_the_network_is_one_edge_of_the_ring() -> None:
    """Two machines of 8: a sharded step sends 2 × 15/16 of the weights over the slowest edge."""
    made = planned("2x8xH100-80GB", LARGE)
    assert made.speed is not None
    gathered = 2 * 15 / 16 * 70.55e9 * 2 / 12.5e9
    assert made.speed.communication == pytest.approx(gathered, rel=0.05)


def test_speed_is_of_the_planned_batch() -> None:
    made = planned("2xT4", "unsloth/Qwen3-8B", None, model={"load_in_4bit": True, "max_seq_length": 8192})  # type: ignore[arg-type]
    assert made.speed is not None
    assert made.speed.tokens == made.batch.global_size * 8192
