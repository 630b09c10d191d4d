import json
import statistics

import pytest
from plans import LARGE, planned

from benchmarks import kept, pairs_report
from benchmarks.memory_report import RESULTS, by_rivals, measured_kept
from unsloth_accel.config.run_config import PROJECTIONS
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.models.spec import from_config
from unsloth_accel.planning.memory_estimate import Workload
from unsloth_accel.planning.speed_estimate import estimate_speed


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


def test_predicted_seconds_hold_by_kept_blocks() -> None:
    """Steps of few tokens take as long as Python launches their kernels: those of one cell differ by a quarter."""
    found = [*measured_kept(kept.HELD_OUT)]
    assert len(found) >= 20
    assert statistics.median(abs(one.time_error) for one in found) <= 0.05
    assert max(abs(one.time_error) for one in found if one.work.tokens > 2048) <= 0.15
    assert max(abs(one.time_error) for one in found) <= 0.25


def test_memory_and_seconds_of_two_gpus_hold() -> None:
    """Cells with accumulation, limited memory, and several numbers of kept blocks; most were not fitted to."""
    found = [*by_rivals().values(), *measured_kept([cell for cells in kept.ON_TWO for cell in cells])]
    assert len(found) >= 24
    for errors, median, worst in (
        ([abs(one.error) for one in found], 0.03, 0.08),
        ([abs(one.time_error) for one in found], 0.05, 0.15),
    ):
        assert statistics.median(errors) <= median
        assert max(errors) <= worst


def test_predicted_seconds_hold_for_pairs() -> None:
    found = [*pairs_report.compared(json.loads(pairs_report.RESULT.read_text(encoding="utf-8")))]
    assert len(found) == 12
    assert max(abs(time.error) for _, _, time in found) <= 0.10


@pytest.mark.parametrize(
    ("file", "hardware", "rows"),
    [("row-sharing-8-2xH200", "2xH200", 8), ("row-sharing-32-2xH200", "2xH200", 32), ("variable-2xH100", "2xH100", 8)],
)
def test_rows_of_different_lengths_take_what_was_measured(file: str, hardware: str, rows: int) -> None:
    """Two GPUs, rows of 400 tokens at the mean; as full ones they would be 1.2 to 5 times as slow."""
    shapes = json.loads(RESULTS.read_text(encoding="utf-8"))["shapes"]
    spec = from_config({"model_type": "llama", "dtype": "bfloat16", **shapes["1.5B"]}, name="1.5B")
    found = json.loads(RESULTS.with_name(f"{file}.json").read_text(encoding="utf-8"))
    if "medians" in found:
        measured = found["medians"]["skewed-flat-ours"]["step_seconds"]
        mean = found["tokens_of_rows"] / found["rows"]
    else:
        mean = found["tokens_per_row"]["mean"]
        measured = 2 * rows * mean / found["comparison"]["tokens"]["tokens_per_second"]
    trained = spec.lora_parameters(PROJECTIONS, 16)
    work = Workload(spec=spec, lora_parameters=trained, per_device=rows, length=round(mean))
    speed = estimate_speed(work, "ddp", 2, 1, Hardware.parse(hardware), "bf16", various=True)
    assert speed is not None
    assert speed.step_seconds == pytest.approx(measured, rel=0.15)
