import os
import subprocess
from contextlib import suppress

import pytest
from commands import MODEL
from conftest import Run, cli_command

from unsloth_accel.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan"], "there is no run to plan"),
        (["plan", "nothing.yaml"], "no such file"),
        (["plan", "what"], "neither an override nor the one YAML file"),
        (["plan", "--hardware", "8xH10", MODEL], "no card is known"),
        (
            ["plan", "--hardware", "8xH100", MODEL, "batch.global_size=63"],
            "batch.global_size=56 or batch.global_size=64",
        ),
        (["plan", "--hardware", "8xH100", MODEL, "batch.globl_size=64"], "did you mean batch.global_size?"),
        (["plan", "--hardware", "cpu", MODEL, "distributed.strategy=fsdp2"], "no FSDP on a CPU"),
        (["config"], "--strategy: is missing"),
        (["config", "--strategy", "ddp"], "--gpus: is missing"),
        (["config", "--strategy", "ddp", "--gpus", "0"], "must be at least 1"),
        (["config", "--strategy", "ddp", "--gpus", "1"], "at least two"),
        (["config", "--strategy", "single", "--gpus", "2"], "single is one process"),
        (["config", "--strategy", "fsdp2", "--gpus", "2", "--cpu"], "no FSDP on a CPU"),
        (["config", "--strategy", "ddp", "--gpus", "2", "--out", "/proc/no/x.yaml"], "--out"),
        (["plann"], "unsloth-accel plan"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("unsloth-accel: ")
    assert "Fix: " in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text or "example:" in text
    assert f"unsloth-accel {name}" in text


def test_commands(cli: Run) -> None:
    assert "usage:" in cli("--help").stdout
    assert cli("--version").stdout.startswith("unsloth-accel 0.")
    assert cli("lunch").returncode == 2
    assert cli().returncode == 2
    bad_flag = cli(
        "launch", "--config_file", "accelerate_configs/cpu_ddp.yaml", "--num_proceses", "2", "examples/sft.py"
    )
    assert bad_flag.returncode == 2
    assert "Traceback" not in bad_flag.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [[], ["config", "--strategy", "ddp", "--gpus", "2"]])
def test_a_reader_that_is_gone_is_no_traceback(words: list[str], unbuffered: str) -> None:
    """`unsloth-accel | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([*cli_command(), *words], stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
