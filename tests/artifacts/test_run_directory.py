from pathlib import Path

from unsloth_accel.artifacts.run_directory import RunDirectory, rank_log, step_of


def test_what_a_run_left(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "out")
    assert not run.is_run
    run.path.mkdir()
    assert not run.is_run, "an empty directory is nobody's"
    (run.path / "run.yaml").write_text("a user's own", encoding="utf-8")
    assert not run.is_run, "nor is one with a description that was never launched"
    for path in (run.adapter, run.logs, run.errors, run.checkpoint(20), run.checkpoint(3)):
        path.mkdir()
    (run.path / "checkpoint-best").mkdir()
    for path in (run.planned_yaml, run.plan, run.results, run.step_log, run.rank_error(1), rank_log(run.logs, 0)):
        path.write_text("{}", encoding="utf-8")
    assert run.is_run
    assert [path.name for path in run.checkpoints()] == ["checkpoint-3", "checkpoint-20"]
    assert [path.name for path in run.rank_errors()] == ["rank-1.json"]
    assert [path.name for path in run.rank_logs()] == ["rank-0.jsonl"]


def test_what_was_decided_lay_in_run_yaml_before(tmp_path: Path) -> None:
    """Where an accelerate.yaml says so; a run.yaml beside another one is a user's own."""
    run = RunDirectory(tmp_path)
    (tmp_path / "run.yaml").touch()
    run.accelerate_yaml.write_text("# ddp, written by unsloth-accel with run.yaml. Launch both here", encoding="utf-8")
    assert run.description == tmp_path / "run.yaml"
    for text in ("# ddp, written by unsloth-accel with run.planned.yaml. Launch", "num_processes: 2  # run.yaml\n"):
        run.accelerate_yaml.write_text(text, encoding="utf-8")
        assert run.description == run.planned_yaml
    run.accelerate_yaml.write_text("# ddp, written by unsloth-accel with run.yaml. Launch both here", encoding="utf-8")
    run.planned_yaml.touch()
    assert run.description == run.planned_yaml, "the newer launch is told"


def test_the_step_of_a_checkpoint() -> None:
    assert step_of(Path("runs/a/checkpoint-12")) == 12
    assert step_of(Path("runs/a/checkpoint-best")) is None
    assert step_of(Path("runs/a/12")) is None
