import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import NATIVE, ROOT, finished_run, write_checkpoint, write_yaml
from releases import looked

from unsloth_accel.artifacts import own_files
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.cli.main import main as cli_main
from unsloth_accel.config.accelerate_config import AccelerateConfig
from unsloth_accel.config.read_run import load
from unsloth_accel.errors import ConfigError, LaunchError
from unsloth_accel.files import this_machine, write_atomically
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.child_main import to_json
from unsloth_accel.launch.launcher import launch
from unsloth_accel.launch.run_accelerate import Launch, run_accelerate
from unsloth_accel.planning.planner import plan
from unsloth_accel.report.run_record import read_run_record as read_run

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0))
TWO = Hardware(devices=(GPU, GPU), cpu_cores=8, host_memory_gib=64)


@pytest.fixture
def file(tmp_path: Path, description: dict[str, Any]) -> Path:
    return write_yaml(tmp_path / "run.yaml", description)


def launched(*tokens: str | Path, hardware: Hardware = CPU) -> Launch:
    seen: list[Launch] = []
    launch(list(map(str, tokens)), run=seen.append, hardware=hardware)
    (only,) = seen
    return only


def test_a_run_is_written_and_launched(file: Path, tmp_path: Path) -> None:
    command = launched(file, "training.max_steps=2", "--main_process_port", "29777")
    out = tmp_path / "out"
    assert command.arguments == (
        *("--config_file", str(out / "accelerate.yaml"), "--main_process_port", "29777"),
        *("-m", "unsloth_accel.training.sft", str(out / "run.planned.yaml")),
    )
    assert str(command).endswith(f"-m unsloth_accel.training.sft {out / 'run.planned.yaml'}")
    assert "accelerate launch --config_file" in str(command)
    assert yaml.safe_load((out / "accelerate.yaml").read_text(encoding="utf-8"))["num_processes"] == 2
    written = yaml.safe_load((out / "run.planned.yaml").read_text(encoding="utf-8"))
    assert written["training"]["per_device_train_batch_size"] == 4
    assert written["distributed"] == {
        "gradient_as_bucket_view": False,
        "strategy": "ddp",
        "num_processes": 2,
        "device": "cpu",
    }


def test_flags_that_the_plan_decides_change_the_plan(file: Path) -> None:
    hardware = replace(TWO, cpu_bf16=True)
    command = launched(file, "--num_processes", "1", "--mixed_precision=bf16", "--cpu", hardware=hardware)
    config = yaml.safe_load(command.yaml)
    assert (config["num_processes"], config["mixed_precision"], config["use_cpu"]) == (1, "bf16", True)
    assert json.loads(command.environment["UNSLOTH_ACCEL_PROMISE"])["num_processes"] == 1
    with pytest.raises(ConfigError, match="unknown precision"):
        launched(file, "--mixed_precision", "bf17")
    for flag in ("--multi_gpu", "--use_fsdp", "--gpu_ids=0,1", "--num_machines=2"):
        with pytest.raises(ConfigError, match="contradicts the plan"):
            launched(file, flag)
    with pytest.raises(ConfigError, match="drop it"):
        launched(file, "--config_file", "x.yaml")


def test_dry_run_prints_everything_and_does_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch([str(file), "--dry-run"], run=lambda command: pytest.fail("it ran"), hardware=CPU)
    printed = capsys.readouterr().out
    assert "accelerate launch --config_file" in printed
    assert "ACCELERATE_USE_CPU=true" in printed
    assert "8 rows per step = 4 × 1 × 2" in printed
    config = yaml.safe_load(printed.split("config file\n")[1])
    assert config == AccelerateConfig(strategy="ddp", num_processes=2, device="cpu").to_dict()
    assert not (tmp_path / "out").exists()


def test_dry_run_of_a_run_that_would_be_refused(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        launch([str(file), "--dry-run", "data.path=none"], hardware=CPU)
    assert "accelerate launch" in capsys.readouterr().out
    finished_run(tmp_path / "out")
    launch([str(file), "--dry-run"], hardware=CPU)
    assert "warning: output_dir" in capsys.readouterr().err


def test_a_script_gets_its_arguments_and_the_promise_of_its_config() -> None:
    config = str(ROOT / "accelerate_configs" / "cpu_ddp.yaml")
    command = launched("--config_file", config, "--debug", "examples/sft.py", "--num_processes", "9", "x=1")
    assert command.arguments == ("--config_file", config, "--debug", "examples/sft.py", "--num_processes", "9", "x=1")
    assert command.environment["ACCELERATE_USE_CPU"] == "true"
    promise = json.loads(command.environment["UNSLOTH_ACCEL_PROMISE"])
    said = {"num_processes": 2, "strategy": "ddp", "device": "cpu", "made_by": config, "environment": {}}
    assert promise == said | {"rows_per_step": None, "memory_gib": None}
    four = launched("--config_file", config, "--num_processes", "4", "examples/sft.py")
    assert json.loads(four.environment["UNSLOTH_ACCEL_PROMISE"])["num_processes"] == 4


def test_a_script_is_not_launched_with_a_config_that_lies(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "c.yaml", {"distributed_type": "MULTI_CPU", "num_processes": 2})
    with pytest.raises(ConfigError, match="starts one process for MULTI_CPU"):
        launched("--config_file", path, "examples/sft.py")
    with pytest.raises(ConfigError, match="no such file"):
        launched("--config_file", tmp_path / "none.yaml", "examples/sft.py")
    with pytest.raises(ConfigError, match="no such script"):
        launched("--config_file", path, "trian.py")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1"):
        launched("--config_file", tmp_path / "bad.yaml", "examples/sft.py")


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
    with pytest.raises(SystemExit):
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

    def fail(command: Launch) -> None:
        raise LaunchError("a misspelt hub id", 1)

    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=fail, hardware=CPU)
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

    def fail(command: Launch) -> None:
        raise LaunchError("again", 1)

    with pytest.raises(LaunchError):
        launch([str(file), "training.overwrite=true"], run=fail, hardware=CPU)
    assert all((earlier / name).is_file() for name in OF_THE_RUN)
    assert not (earlier / aside).exists()


def failing(command: Launch) -> None:
    raise LaunchError("again", 1)


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

    def fail(command: Launch) -> None:
        raise LaunchError("a misspelt hub id", 1)

    for more in ("training.overwrite=true", "training.max_steps=2", "training.overwrite=true"):
        with pytest.raises((ConfigError, LaunchError), match=f"holds {name}|misspelt|holds a finished run"):
            launch([str(file), more], run=fail, hardware=CPU)
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


def test_a_failed_run_has_a_report(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(command: Launch) -> None:
        raise LaunchError("rank 1 was ended by SIGKILL; out of memory is the usual reason.", 137)

    with pytest.raises(LaunchError):
        launch([str(file)], run=fail, hardware=CPU)
    page = tmp_path / "out" / "report.html"
    assert capsys.readouterr().out.endswith(f"\nreport    {page}\n")
    assert "out of memory is the usual reason." in page.read_text(encoding="utf-8")


def test_resuming_is_told_to_the_ranks_and_not_kept(file: Path, earlier: Path) -> None:
    write_checkpoint(earlier / "checkpoint-4", load(file), record=False)
    command = launched(file, "training.resume=true")
    assert command.arguments[-1] == "training.resume=true"
    assert "resume" not in (earlier / "run.planned.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), ""),
        (("model.load_in_4bit=true",), "model.load_in_4bit=True: FSDP1 can't flatten weights in 4 bit"),
        (
            ("data.eval_path={rows}", "evaluation.exact_match=true"),
            "answers can't be generated from FSDP1's flat shards",
        ),
        (("data.eval_path={rows}",), ""),
    ],
)
def test_what_fsdp1_can_not_do_is_refused(words: tuple[str, ...], told: str, file: Path) -> None:
    from unsloth_accel.config.read_run import load
    from unsloth_accel.launch.launcher import plan_problems

    run = load(file, [word.format(rows=load(file).data.path) for word in words] + ["distributed.strategy=fsdp1"])
    problems = [str(problem) for problem in plan_problems(plan(run, TWO))]
    assert len(problems) == bool(told)
    assert all(told in problem and "fsdp2" in problem for problem in problems)


TOKEN = "hf_aSecretThatNobodyShouldSee"


def test_a_secret_goes_to_the_processes_alone(
    file: Path, tmp_path: Path, description: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by their command line, and into nothing that is written or printed."""
    training = {"hub_token": TOKEN, "lr_scheduler_kwargs": {"token": TOKEN}}
    write_yaml(file, {**description, "training": training})
    command = launched(file)
    name = "UNSLOTH_ACCEL_TRAINING_HUB_TOKEN"
    assert command.secrets[name] == TOKEN
    assert TOKEN not in f"{command} {command!r} {command.arguments} {command.environment}"
    assert json.loads(to_json(command))["secrets"][name] == TOKEN, "which a notebook's child reads from its pipe"
    launched(file, f"training.hub_token={TOKEN}", "training.push_to_hub=false")
    assert "training.hub_token='(not shown)': stands in the list of processes" in capsys.readouterr().err
    launched(file, "training.hub_token=${oc.env:HOME}")
    assert "list of processes" not in capsys.readouterr().err
    words = [str(file), f"output_dir={tmp_path / 'second'}"]
    for argv in (["launch", *words, "--dry-run"], ["plan", *words, "--json"], ["plan", *words], ["config", *words]):
        assert cli_main(argv) == 0
    plan(load(file), CPU).write(tmp_path / "third")
    decided = plan(load(file), CPU)
    assert TOKEN not in repr(decided) + str(decided) + decided._repr_html_() + str(decided.resolved())
    printed = capsys.readouterr()
    assert f"{name}=(not shown)" in printed.out
    assert TOKEN not in printed.out + printed.err
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path != file]
    assert {"run.planned.yaml", "plan.json", "report.html"} <= {path.name for path in left}
    assert [path for path in left if TOKEN.encode() in path.read_bytes()] == []


def test_launched_variables_are_gone_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", lambda _: seen.append(os.environ.get("A_SECRET")))
    arguments = ("--config_file", str(ROOT / "accelerate_configs" / "cpu_ddp.yaml"), SCRIPT)
    run_accelerate(Launch(arguments=arguments, secrets={"A_SECRET": TOKEN}))
    assert (seen, os.environ.get("A_SECRET")) == ([TOKEN], None)


def test_pushing_without_a_token(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, description: dict[str, Any]
) -> None:
    """From the written description on another machine: told, with ways that work. A file of the user's in output_dir
    that holds the token isn't looked at: it isn't pushed."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.whoami", lambda _: {"name": "someone"})
    training = {"hub_token": TOKEN, "push_to_hub": True}
    write_yaml(file, {**description, "training": training})
    launched(file)
    again = tmp_path / "out" / "run.planned.yaml"
    with pytest.raises(ConfigError) as caught:
        launched(again)
    (problem,) = caught.value.problems
    assert problem.key == "training.hub_token"
    assert "export HF_TOKEN=…, or hf auth login" in problem.fix
    monkeypatch.setenv("MY_VARIABLE", TOKEN)
    assert launched(again, "training.hub_token=${oc.env:MY_VARIABLE}").secrets == {}
    assert "hub_token: ${oc.env:MY_VARIABLE}" in again.read_text(encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    launched(again, "training.hub_token=null")
    (tmp_path / "out" / "run.yaml").write_bytes(file.read_bytes())
    launched(tmp_path / "out" / "run.yaml")


SCRIPT = "examples/sft.py"


def test_launch_validates_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
    path = write_yaml(tmp_path / "c.yaml", {"distributed_type": "NO", "num_processes": 1, "enable_cpu_affinty": True})
    with pytest.raises(ConfigError, match=r"c\.yaml:2: enable_cpu_affinty.*did you mean enable_cpu_affinity"):
        launch(["--config_file", str(path), SCRIPT], run=lambda command: pytest.fail("it ran"), hardware=cpu)
    write_yaml(path, {"distributed_type": "NO", "num_processes": 1, "enable_cpu_affinity": True})
    ran: list[Any] = []
    launch(["--config_file", str(path), SCRIPT], run=ran.append, hardware=cpu)
    assert len(ran) == 1
    assert "warning: " in capsys.readouterr().err
    launch(["--config_file", str(path), "--enable_cpu_affinity", SCRIPT], run=ran.append, hardware=cpu)
    assert capsys.readouterr().err == ""
    launch(["--config_file", "accelerate_configs/cpu_ddp.yaml", SCRIPT], run=ran.append, hardware=cpu)
    assert capsys.readouterr().err == ""  # launch itself says what accelerate leaves out


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from unsloth_accel.launch.launcher import launch\n"
        "launch(['examples/configs/quickstart.yaml', '--dry-run', f'output_dir={sys.argv[1]}',"
        " 'model.name=unsloth/some-model'])\n"
        "assert not {'torch', 'accelerate', 'transformers', 'unsloth'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_our_launch_sets_what_a_native_config_carries(tmp_path: Path) -> None:
    """Also for a script that does not import unsloth_accel."""
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.launch.launcher import launch

    seen: list[Any] = []
    config = ROOT / "accelerate_configs" / "fsdp2_native.yaml"
    script = ROOT / "examples" / "accelerate_loop.py"
    launch(["--config_file", str(config), str(script)], run=seen.append, hardware=Hardware.parse("2xH100-80GB"))
    assert seen[0].environment.items() >= NATIVE.items()


H100 = Device(name="NVIDIA H100 80GB HBM3", index=0, memory_gib=79.6, compute_capability=(9, 0))


def test_launch_refuses_it_before_anything_starts(
    description: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import write_yaml

    found = looked(tmp_path / "old", "2026.8.22")
    monkeypatch.setattr("unsloth_accel.launch.launcher.here", lambda: found)
    run = write_yaml(tmp_path / "run.yaml", {**description, "distributed": {"strategy": "fsdp2_native"}})
    two = Hardware(devices=(H100, H100), cpu_cores=8, host_memory_gib=64)
    started: list[Any] = []
    with pytest.raises(ConfigError, match="fsdp2_native"):
        launch([str(run)], run=started.append, hardware=two)
    assert not started
    assert not (tmp_path / "out").exists()
    launch([str(run), "distributed.strategy=auto"], run=started.append, hardware=two)
    assert len(started) == 1
