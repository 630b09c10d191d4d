from pathlib import Path

from conftest import ROOT

from unsloth_accel.validation.rules import validate


def test_a_hub_models_layers_are_known_too(tmp_path: Path) -> None:
    """A pasted Llama config beside another model's run, whose shape is among the known ones."""
    (tmp_path / "accelerate.yaml").write_text(
        (ROOT / "accelerate_configs" / "fsdp2.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    run = (
        "model: {name: unsloth/Qwen3-8B}\ndata: {path: x.jsonl}\nbatch: {global_size: 8}\n"
        "distributed: {strategy: fsdp2, num_processes: 2}\ntraining: {bf16: true}\noutput_dir: out\n"
    )
    (tmp_path / "run.yaml").write_text(run, encoding="utf-8")
    found = [problem for report in validate([str(tmp_path)]) for problem in report.problems]
    assert [problem.rule for problem in found] == ["pair-layer-class"]
    assert "Qwen3DecoderLayer" in found[0].fix
