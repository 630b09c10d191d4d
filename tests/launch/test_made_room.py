"""An output_dir in which a run or a user's own lies, before a launch, while it lasts and after it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import finished_run, launched, write_checkpoint

from unsloth_accel.artifacts import own_files
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.cli.main import main as cli_main
from unsloth_accel.config.read_run import load
from unsloth_accel.errors import ConfigError, LaunchError
from unsloth_accel.files import this_machine, write_atomically
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.launcher import launch
from unsloth_accel.launch.run_accelerate import Launch
from unsloth_accel.planning.planner import plan
from unsloth_accel.report.run_record import read_run_record as read_run

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
OF_THE_RUN = (
    *("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/tokenizer.json"),
    *("checkpoint-3/optimizer.pt", "checkpoint-3/optimizer_dcp/.metadata", "results.json"),
    *("logs/steps.jsonl", "logs/summary.json", "logs/rank-0.jsonl", "logs/rank-1.log"),
)
OF_A_USER = (
    *("run.planned.yaml", "accelerate.yaml", "plan.json", "results.json", "report.html", "adapter/notes.txt"),
    *("logs", "errors", "logs/steps.jsonl", "logs/rank-0.log", "errors/launch.json"),
)
MINE = (
    *("run.yaml", "README.md", "notes.txt", "mine/old", "adapter/notes.txt", "checkpoint-3/why.txt"),
    *("logs/tee.log", "errors/notes.txt", "checkpoint-best/x", "merged/config.json", ".previous/x"),
)


def mine_is_there(out: Path) -> None:
    for name in MINE:
        assert (out / name).read_text(encoding="utf-8") == f"mine: {name}"


def failing(command: Launch) -> None:
    raise LaunchError("a misspelt hub id", 1)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A finished run, and things of the user's beside it and in its directories."""
    out = finished_run(tmp_path / "out")
    for name in OF_THE_RUN:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}", encoding="utf-8")
    (out / "accelerate.yaml").write_text("# ddp, written by unsloth-accel with run.planned.yaml.", encoding="utf-8")
    for name in MINE:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"mine: {name}", encoding="utf-8")
    return out


def test_overwriting_deletes_only_the_runs_own_files(file: Path, earlier: Path) -> None:
    def train(command: Launch) -> None:
        assert not any((earlier / name).exists() for name in OF_THE_RUN)
        mine_is_there(earlier)
        there = [path.relative_to(earlier).as_posix() for path in earlier.rglob("*") if path.is_file()]
        assert "checkpoint-3/optimizer.pt" in {name.partition("/")[2] for name in there}, "put aside"
        (earlier / "adapter" / "adapter_config.json").touch()

    launch([str(file), "training.overwrite=true"], run=train, hardware=CPU)
    left = {path.relative_to(earlier).as_posix() for path in earlier.rglob("*") if path.is_file()}
    written = {"run.planned.yaml", "accelerate.yaml", "plan.json", "report.html", "adapter/adapter_config.json"}
    assert left == {*written, *MINE}
    mine_is_there(earlier)
    assert not (earlier / "checkpoint-3" / "optimizer_dcp").exists()


@pytest.mark.parametrize("word", ["training.max_steps=2", "training.overwrite=true", "training.resume=true"])
@pytest.mark.parametrize("name", OF_A_USER)
def test_a_users_own_is_told_and_not_replaced(name: str, word: str, file: Path, tmp_path: Path) -> None:
    """Whatever bears a name of ours in a directory into which nothing was planned."""
    out = tmp_path / "out"
    own = out / name
    own.parent.mkdir(parents=True)
    own.write_text("# written by unsloth-accel config", encoding="utf-8")
    if word == "training.resume=true":
        write_checkpoint(out / "checkpoint-4", load(file), record=False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"which no run of unsloth-accel made and this one would replace\. Fix: move"):
        launched(file, word)
    if name in ("run.planned.yaml", "accelerate.yaml", "plan.json"):
        with pytest.raises(ConfigError, match="this one would replace"):
            plan(load(file), CPU).write(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("word", ["training.max_steps=2", "training.overwrite=true"])
def test_a_users_own_checkpoints(word: str, file: Path, tmp_path: Path) -> None:
    """Overwriting is no way to be rid of what no run of ours made."""
    kept = tmp_path / "out" / "checkpoint-9" / "notes.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(ConfigError, match="holds checkpoint-9, which no run"):
        launched(file, word)
    write_checkpoint(tmp_path / "out" / "checkpoint-4", load(file))
    with pytest.raises(ConfigError) as caught:
        launched(file, word)
    assert "overwrite" not in caught.value.problems[0].fix
    assert kept.exists()


def test_a_first_launch_beside_a_users_own(file: Path, tmp_path: Path, description: dict[str, Any]) -> None:
    """A description kept in output_dir stays as it is, with its comments; directories are shared."""
    out = tmp_path / "out"
    for name in ("errors/notes.txt", "logs/tee.log"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine", encoding="utf-8")
    text = f"# mine\n{file.read_text(encoding='utf-8')}"
    (out / "run.yaml").write_text(text, encoding="utf-8")
    for _ in range(2):
        launched(out / "run.yaml", "training.max_steps=2")
        (out / "errors" / "rank-0.json").write_text('{"time": 0}', encoding="utf-8")
    launched(out / "run.yaml", "training.overwrite=true")
    assert (out / "run.yaml").read_text(encoding="utf-8") == text
    assert [path.name for path in (out / "errors").iterdir()] == ["notes.txt"]
    assert (out / "logs" / "tee.log").read_text(encoding="utf-8") == "mine"
    (out / "report.html").write_text("mine", encoding="utf-8")
    assert cli_main(["report", str(out)]) == 2
    assert (out / "report.html").read_text(encoding="utf-8") == "mine"


def test_a_run_that_came_to_nothing_overwrites_nothing(
    file: Path, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = ("run.planned.yaml", "accelerate.yaml", "plan.json", "report.html")
    mark = "# written by unsloth-accel with accelerate.yaml"
    for name in described:
        (earlier / name).write_text(mark, encoding="utf-8")

    def fail(command: Launch) -> None:
        (earlier / "logs" / "steps.jsonl").write_text("new", encoding="utf-8")
        raise LaunchError("a misspelt hub id", 1)

    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=fail, hardware=CPU)
    mine_is_there(earlier)
    assert {(earlier / name).read_text(encoding="utf-8") for name in OF_THE_RUN} == {"{}"}
    assert {(earlier / name).read_text(encoding="utf-8") for name in described} == {mark}
    assert not RunDirectory(earlier).previous.exists()
    page = earlier / "errors" / "report.html"
    assert capsys.readouterr().out.endswith(f"\nreport    {page}\n")
    assert "a misspelt hub id" in page.read_text(encoding="utf-8")
    assert read_run(earlier).errors == ()
    with pytest.raises(ConfigError, match="did you mean --quiet"):
        launch([str(file), "training.overwrite=true", "--quite"], run=fail, hardware=CPU)
    assert (earlier / "adapter" / "adapter_model.safetensors").exists()


def test_an_earlier_run_comes_back_where_nothing_could_be_written(
    file: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        if path.name == "plan.json":
            raise OSError(28, "No space left on device", "plan.json")
        write_atomically(path, text)

    (earlier / "run.planned.yaml").write_text("# written by unsloth-accel with accelerate.yaml", encoding="utf-8")
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    monkeypatch.setattr("unsloth_accel.planning.plan.write_atomically", full)
    with pytest.raises(ConfigError, match="No space left"):
        launched(file, "training.overwrite=true")
    assert {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == before
    assert not RunDirectory(earlier).previous.exists()


def test_an_earlier_run_whose_description_had_another_name_comes_back(file: Path, earlier: Path) -> None:
    """The new one's description doesn't stay beside it: it would be read as its own."""
    text = "# ddp, written by unsloth-accel with run.yaml. Launch both here"
    (earlier / "accelerate.yaml").write_text(text, encoding="utf-8")
    before = RunDirectory(earlier).description
    assert before.name == "run.yaml"

    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=failing, hardware=CPU)
    assert (earlier / "accelerate.yaml").read_text(encoding="utf-8") == text
    assert RunDirectory(earlier).description == before
    mine_is_there(earlier)


def test_a_run_does_not_begin_with_what_it_deletes(file: Path, earlier: Path, description: dict[str, Any]) -> None:
    checkpoint = write_checkpoint(earlier / "checkpoint-4", load(file))
    for name in (checkpoint, earlier / ".." / "out" / "checkpoint-4"):
        with pytest.raises(ConfigError, match=r"model\.name=.* is of the run that training\.overwrite=true deletes"):
            launched(file, f"model.name={name}", "training.overwrite=true")
    assert checkpoint.is_dir()
    launched(file, f"model.name={checkpoint}", "training.overwrite=true", f"output_dir={earlier.parent / 'new'}")
    copy = shutil.copytree(checkpoint, earlier / "checkpoint-best", dirs_exist_ok=True)
    launched(file, f"model.name={copy}", "training.overwrite=true")


@pytest.mark.parametrize("aside", ["_unsloth-accel-previous", ".unsloth-accel-previous"], ids=["now", "before"])
def test_an_earlier_run_outlives_a_launch_that_was_killed(aside: str, file: Path, earlier: Path) -> None:
    """And with it the place where the run was put aside: it is what the next one puts aside."""
    own_files.move(own_files.products(earlier), earlier, earlier / aside)

    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=failing, hardware=CPU)
    assert all((earlier / name).is_file() for name in OF_THE_RUN)
    assert not (earlier / aside).exists()


def test_a_finished_run_outlives_one_that_was_killed_and_one_that_failed(file: Path, earlier: Path) -> None:
    """The killed one had written a checkpoint: something to show, and no adapter to load."""
    own_files.move(own_files.products(earlier), earlier, earlier / "_unsloth-accel-previous")
    write_checkpoint(earlier / "checkpoint-2", load(file))
    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=failing, hardware=CPU)
    assert {(earlier / name).read_text(encoding="utf-8") for name in OF_THE_RUN} == {"{}"}
    assert not (earlier / "_unsloth-accel-previous").exists()


def test_a_finished_run_stays_aside_until_there_is_a_newer_adapter(
    file: Path, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = earlier / "_unsloth-accel-previous"

    def stopped(command: Launch) -> None:
        write_checkpoint(earlier / "checkpoint-2", load(file))
        raise LaunchError("stopped by SIGINT; all ranks ended.", 130)

    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=stopped, hardware=CPU)
    assert (earlier / "checkpoint-2").is_dir(), "to go on from"
    assert {(aside / name).read_text(encoding="utf-8") for name in OF_THE_RUN} == {"{}"}
    assert f"the earlier run stays in {aside} until this one has its adapter" in capsys.readouterr().out
    with pytest.raises(LaunchError):
        launch([str(file), "training.resume=true"], run=failing, hardware=CPU)
    assert aside.is_dir()

    def finished(command: Launch) -> None:
        (earlier / "adapter" / "adapter_config.json").touch()

    launch([str(file), "training.resume=true"], run=finished, hardware=CPU)
    assert not aside.exists()


def test_a_launch_that_was_killed_while_it_made_room(file: Path, earlier: Path) -> None:
    """Half of the earlier run is aside, and half where it was."""
    products = own_files.products(earlier)
    own_files.move(products[: len(products) // 2], earlier, earlier / "_unsloth-accel-previous")
    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=failing, hardware=CPU)
    assert {(earlier / name).read_text(encoding="utf-8") for name in OF_THE_RUN} == {"{}"}


def test_an_adapter_elsewhere_is_no_newer_one(file: Path, earlier: Path, tmp_path: Path) -> None:
    """A link to a directory is not put aside, so that it is there however the run ends."""
    shutil.move(earlier / "adapter", tmp_path / "disk")
    (earlier / "adapter").symlink_to(tmp_path / "disk")
    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=failing, hardware=CPU)
    assert {(earlier / name).read_text(encoding="utf-8") for name in OF_THE_RUN} == {"{}"}


@pytest.mark.parametrize("name", ["_unsloth-accel-previous", ".unsloth-accel-previous"])
def test_a_link_in_the_place_of_what_is_put_aside(name: str, file: Path, earlier: Path, tmp_path: Path) -> None:
    """What it leads to is a user's: nothing of it is moved or removed, and nothing is moved there."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "results.json").write_text("mine", encoding="utf-8")
    (earlier / name).symlink_to(place)

    for more in ("training.overwrite=true", "training.max_steps=2", "training.overwrite=true"):
        with pytest.raises((ConfigError, LaunchError), match=f"holds {name}|misspelt|holds a finished run"):
            launch([str(file), more], run=failing, hardware=CPU)
    assert [path.name for path in place.iterdir()] == ["results.json"]
    assert (place / "results.json").read_text(encoding="utf-8") == "mine"
    assert (earlier / name).is_symlink()
    assert {(earlier / name).read_text(encoding="utf-8") for name in OF_THE_RUN} == {"{}"}


def test_what_a_killed_process_left_is_removed_or_back_in_its_place(file: Path, earlier: Path) -> None:
    """Half a description goes. An adapter that was moved aside for one that never came makes the run a finished one."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    mark = f"unsloth-accel-{this_machine()}-{process.pid}-abcdefgh"
    half = earlier / f".run.planned.yaml.{mark}"
    half.write_text("half", encoding="utf-8")
    launched(file, "training.overwrite=true")
    assert not half.exists()
    other = finished_run(earlier.parent / "other")
    (other / "adapter").rename(other / f".adapter.{mark}.old")
    with pytest.raises(ConfigError, match="already holds a finished run"):
        launched(file, f"output_dir={other}")
    assert (other / "adapter" / "adapter_config.json").is_file()


def test_resuming_is_told_to_the_ranks_and_not_kept(file: Path, earlier: Path) -> None:
    write_checkpoint(earlier / "checkpoint-4", load(file), record=False)
    command = launched(file, "training.resume=true")
    assert command.arguments[-1] == "training.resume=true"
    assert "resume" not in (earlier / "run.planned.yaml").read_text(encoding="utf-8")
