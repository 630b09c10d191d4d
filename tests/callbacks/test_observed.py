"""The logs and the report of a user's own script; those of real processes are in tests/training/test_own_script.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import finished_run

from unsloth_accel.callbacks import observe
from unsloth_accel.callbacks.observed import Afresh
from unsloth_accel.callbacks.rank_log import RankLog
from unsloth_accel.errors import ConfigError
from unsloth_accel.report.run_record import read_lines


def script(out: Path) -> Any:
    """A Trainer whose training fails after a line of its log."""
    callbacks: list[Any] = []

    def train() -> None:
        for callback in callbacks:
            if isinstance(callback, Afresh):
                callback.on_train_begin(trainer.args, SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]
        raise RuntimeError("the loss is lost")

    args = SimpleNamespace(output_dir=str(out), process_index=0, world_size=1)
    handler = SimpleNamespace(callbacks=callbacks)
    trainer = SimpleNamespace(args=args, callback_handler=handler, add_callback=callbacks.append, train=train)
    return trainer


def test_a_script_that_fails_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which says why, and nothing of an earlier training of more ranks; its error is the script's own."""
    logs = tmp_path / "logs"
    RankLog(logs, 0).write("end", status="finished")
    RankLog(logs, 1).write("end", status="finished")
    (logs / "rank-of-mine.jsonl").touch()
    trainer = script(tmp_path)
    assert observe(trainer) is trainer
    with pytest.raises(RuntimeError, match="the loss is lost"):
        trainer.train()
    assert capsys.readouterr().out == f"report    {tmp_path / 'report.html'}\n"
    assert "the loss is lost" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (end,) = read_lines(logs / "rank-0.jsonl")
    assert (end["status"], end["message"]) == ("failed", "the loss is lost")
    assert sorted(path.name for path in logs.glob("*.jsonl")) == ["rank-0.jsonl", "rank-of-mine.jsonl"]


def test_a_training_that_goes_on_keeps_its_log(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "logs", 0)
    log.write("start")
    args: Any = SimpleNamespace(output_dir=str(tmp_path), world_size=1)
    nothing: Any = None
    resumed: Any = SimpleNamespace(global_step=4)
    Afresh(log).on_train_begin(args, resumed, nothing)
    assert [line["event"] for line in read_lines(tmp_path / "logs" / "rank-0.jsonl")] == ["start"]


def test_the_directory_of_a_launched_run_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"output_dir.*: holds a run of a run\.yaml"):
        observe(script(finished_run(tmp_path / "run")))
    assert not (tmp_path / "run" / "logs").exists()


def test_no_module_hides_a_lazy_name() -> None:
    """A module of a name's own becomes an attribute of its package once anything imports it."""
    import unsloth_accel
    from unsloth_accel import callbacks

    for package in (unsloth_accel, callbacks):
        files = {path.stem for path in Path(str(package.__file__)).parent.iterdir()}
        assert files & {*package.__all__} <= {"callbacks"}
