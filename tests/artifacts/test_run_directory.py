from pathlib import Path

from unsloth_accel.artifacts.run_directory import RunDirectory, rank_log, step_of


def test_what_a_run_left(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "out")
    assert not run.is_run
    assert run.products() == []
    run.path.mkdir()
    assert not run.is_run, "an empty directory is nobody's"
    for path in (
        run.adapter,
        run.logs,
        run.errors,
        run.checkpoint(20),
        run.checkpoint(3),
        run.path / "checkpoint-best",
    ):
        path.mkdir()
    for path in (run.run_yaml, run.plan, run.results, run.step_log, run.rank_error(1), rank_log(run.logs, 0)):
        path.write_text("{}", encoding="utf-8")
    (run.path / "notes.txt").write_text("a user's own", encoding="utf-8")
    assert run.is_run
    assert [path.name for path in run.checkpoints()] == ["checkpoint-3", "checkpoint-20"]
    assert {path.name for path in run.products()} == {
        *("adapter", "logs", "results.json", "checkpoint-3", "checkpoint-20", "checkpoint-best"),
    }
    assert {path.name for path in run.describing()} == {"run.yaml", "plan.json"}
    assert [path.name for path in run.rank_errors()] == ["rank-1.json"]
    assert [path.name for path in run.rank_logs()] == ["rank-0.jsonl"]


def test_the_step_of_a_checkpoint() -> None:
    assert step_of(Path("runs/a/checkpoint-12")) == 12
    assert step_of(Path("runs/a/checkpoint-best")) is None
    assert step_of(Path("runs/a/12")) is None
