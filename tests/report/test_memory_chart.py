from unsloth_accel.report import memory_chart
from unsloth_accel.report.figures import Measured


def test_memory_is_compared_like_with_like() -> None:
    """What torch allocated against the terms that it allocates: not with its allocator's share, nor with CUDA's."""
    predicted = {"total": 17.0, "weights": 8.0, "lora": 1.0, "activations": 1.0, "fragmentation": 3.0, "context": 4.0}
    measured = [Measured(rank=rank, allocated=8.0 + rank, reserved=12.0, context=2.0, host=None) for rank in (0, 1)]
    said = memory_chart.verdict(predicted, measured, on_cpu=False)
    assert (
        said
        == "The plan expected 10.0 GiB of tensors and the largest rank took 9.00 GiB: 11.1\u00a0% more than measured."
    )
    html = str(memory_chart.chart(predicted, measured, on_cpu=False, of_gib=80.0))
    assert "rank 1: allocated by torch 9.0, allocator 3.0, context 2.0" in html
    assert memory_chart.verdict({}, measured, on_cpu=False) == ""


def test_on_a_cpu_other_things_are_measured_than_planned() -> None:
    measured = [Measured(rank=0, allocated=None, reserved=None, context=None, host=2.72)]
    said = memory_chart.verdict({"weights": 1.71, "other": 0.06}, measured, on_cpu=True)
    assert said.startswith("The plan counts tensors, 1.77 GiB. On a CPU all that a process keeps resident is measured")
    assert "2.72 GiB: Python and its libraries, which take 0.60 GiB before a model is loaded" in said
