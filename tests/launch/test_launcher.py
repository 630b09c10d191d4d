import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import NATIVE, ROOT, finished_run, launched, write_yaml
from releases import looked

from unsloth_accel.cli.main import main as cli_main
from unsloth_accel.config.accelerate_config import AccelerateConfig
from unsloth_accel.config.read_run import load
from unsloth_accel.data.generation_server import NOT_THERE
from unsloth_accel.errors import ConfigError, LaunchError, Problem
from unsloth_accel.hardware import nvml
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch import notebook
from unsloth_accel.launch.child_main import to_json
from unsloth_accel.launch.launcher import launch
from unsloth_accel.launch.run_accelerate import Launch, run_accelerate
from unsloth_accel.planning.planner import plan

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0))
TWO = Hardware(devices=(GPU, GPU), cpu_cores=8, host_memory_gib=64)


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


def test_a_generation_server_is_waited_for_where_nothing_else_is_wrong(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(nvml, "process_names", lambda: {"GPU-a": ["python"], "GPU-b": ["", "VLLM::EngineCore"]})

    def asked(*_: object, wait: bool = False) -> list[Problem]:
        waited.append(wait)
        return [] if wait else [Problem(key="server", consequence="loads.", fix="wait", rule=NOT_THERE)]

    monkeypatch.setattr("unsloth_accel.validation.inputs.server_problems_of", asked)
    monkeypatch.setattr("unsloth_accel.validation.inputs._vllm_problems", lambda run: [])
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n' * 8, encoding="utf-8")
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values |= {"method": "grpo", "data": {"path": str(tmp_path / "prompts.jsonl")}, "batch": {"global_size": 16}}
    values |= {"rewards": {"functions": ["format"]}, "training": {"use_vllm": True, "vllm_mode": "server"}}
    run = write_yaml(tmp_path / "grpo.yaml", values)
    launched(run, hardware=replace(TWO, devices=(replace(GPU, uuid="GPU-a"), replace(GPU, uuid="GPU-b", index=1))))
    assert waited == [False, True]
    assert "vLLM is on GPU 1, where this run trains" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"loads\.(.|\n)*nowhere\.jsonl|nowhere\.jsonl(.|\n)*loads\."):
        launched(run, "data.path=nowhere.jsonl", "training.overwrite=true", hardware=TWO)
    with pytest.raises(ConfigError, match=r"loads\."):
        launched(run, "--dry-run", "training.overwrite=true", hardware=TWO)
    assert waited == [False, True, False, False]
    monkeypatch.setattr(Hardware, "detect", lambda: TWO)
    monkeypatch.setattr(notebook, "_run", lambda command: None)
    notebook.notebook_launch(run, overwrite=True)
    assert waited[4:] == [False, True]


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
    assert promise == said | {"rows_per_step": None, "memory_gib": None, "keep_activations": None}
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


def test_a_failed_run_has_a_report(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(command: Launch) -> None:
        raise LaunchError("rank 1 was ended by SIGKILL; out of memory is the usual reason.", 137)

    with pytest.raises(LaunchError):
        launch([str(file)], run=fail, hardware=CPU)
    page = tmp_path / "out" / "report.html"
    assert capsys.readouterr().out.endswith(f"\nreport    {page}\n")
    assert "out of memory is the usual reason." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), ""),
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
    training = {"hub_token": TOKEN, "gradient_checkpointing_kwargs": {"token": TOKEN}}
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


def test_a_rule_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = Hardware.parse("2xH100-80GB")
    sharded = {
        "distributed_type": "MULTI_GPU",
        "num_processes": 2,
        "fsdp_config": {"fsdp_version": 2},
        "gpu_ids": "0,0",
    }
    path = str(write_yaml(tmp_path / "c.yaml", sharded))
    ran: list[Any] = []

    def launched(*words: str) -> None:
        launch([*words, "--config_file", path, SCRIPT, "--allow", "mine"], run=ran.append, hardware=two)

    with pytest.raises(ConfigError, match=r"remove fsdp_config \[fsdp-config-ignored\]\n.*\[gpu-ids-unreadable\]"):
        launched()
    with pytest.raises(ConfigError) as caught:
        launched("--allow", "fsdp-config-ignored", "--dry-run")
    assert [problem.rule for problem in caught.value.problems if problem.severity == "error"] == ["gpu-ids-unreadable"]
    for words in (["--allow=fsdp-config-ignored,gpu-ids-unreadable"], ["--allow", "gpu-ids-unreadable"] * 2):
        capsys.readouterr()
        launched(*words, "--allow", "fsdp-config-ignored")
        assert ran.pop().arguments == ("--config_file", path, SCRIPT, "--allow", "mine")  # the script's own stays
        assert capsys.readouterr().err.count("warning: ") == 2
    with pytest.raises(ConfigError, match=r"--allow='fsdp-config-ignord'.* did you mean fsdp-config-ignored\?"):
        launched("--allow", "fsdp-config-ignord")
    with pytest.raises(ConfigError, match="--allow: needs the id of a rule"):
        launch(["--allow"], run=ran.append, hardware=two)
    with pytest.raises(ConfigError, match="--allow: is for a config of yours"):
        launch(["examples/configs/quickstart.yaml", "--allow", "tab"], run=ran.append, hardware=two)
    assert ran == []


def test_a_launch_without_a_config_is_checked_by_its_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accelerate.commands.config import config_args

    cpu = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))
    ran: list[Any] = []
    with pytest.raises(ConfigError, match="--num_processes=64: 64 processes need 64 GPUs and 0 are visible"):
        launch(["--multi_gpu", "--num_processes", "64", SCRIPT], run=ran.append, hardware=cpu)
    launch(["--num_processes", "1", SCRIPT], run=ran.append, hardware=cpu)
    write_yaml(tmp_path / "default_config.yaml", {"distributed_type": "MULTI_GPU", "num_processes": 64})
    launch(["--num_processes", "64", SCRIPT], run=ran.append, hardware=cpu)  # which accelerate reads, and we don't
    assert len(ran) == 2


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
