"""unsloth-accel completion: the scripts are valid, and complete what the commands' own parsers accept."""

import argparse
import importlib
import importlib.util
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from unsloth_accel.cli import completion
from unsloth_accel.cli import main as cli

THERE = {
    name: summary for name, summary in cli.COMMANDS.items() if importlib.util.find_spec(f"unsloth_accel.cli.{name}")
}
BASH = shutil.which("bash")


@pytest.fixture(autouse=True)
def _commands_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", THERE)


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The printed bash script."""
    if BASH is None:
        pytest.skip("no bash here")
    assert completion.run(["bash"]) == 0
    path = tmp_path / "unsloth-accel"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


def complete(script: Path, *words: str, directory: Path | None = None) -> list[str]:
    """What bash offers for the last of `words` after `unsloth-accel`, through the function that it would call."""
    line = shlex.join(["unsloth-accel", *words])
    code = f"""
    source {shlex.quote(str(script))}
    read -ra registered <<<"$(complete -p unsloth-accel)"
    while [ "${{registered[0]}}" != -F ]; do registered=("${{registered[@]:1}}"); done
    COMP_WORDS=({line}); COMP_CWORD={len(words)}; COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}
    "${{registered[1]}}" unsloth-accel {shlex.quote(words[-1])} {shlex.quote(["unsloth-accel", *words][-2])}
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    said = subprocess.run(["bash", "--norc", "-c", code], cwd=directory, capture_output=True, text=True, timeout=300)
    assert said.stderr == ""
    return said.stdout.split()


def options(command: str) -> set[str]:
    """The long options of a command's own parser."""
    parser: argparse.ArgumentParser = importlib.import_module(f"unsloth_accel.cli.{command}").parser()
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


def test_bash_accepts_the_script(script: Path) -> None:
    said = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, timeout=300)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_every_command(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert completion.run([shell]) == 0
    printed = capsys.readouterr().out
    assert [name for name in THERE if name not in printed] == []


@pytest.mark.parametrize("command", THERE)
def test_the_first_letters_complete_to_the_command(script: Path, command: str) -> None:
    begun = command[:2]
    assert set(complete(script, begun)) == {name for name in THERE if name.startswith(begun)}


@pytest.mark.parametrize("command", THERE)
def test_two_dashes_complete_to_the_commands_options(script: Path, command: str) -> None:
    assert set(complete(script, command, "--")) == options(command)


def test_a_begun_option_completes(script: Path) -> None:
    assert complete(script, "doctor", "--js") == ["--json"]


def test_choices_complete(script: Path) -> None:
    assert complete(script, "completion", "") == ["bash", "zsh", "tcsh"]


def test_files_complete_where_a_config_is_wanted(script: Path, tmp_path: Path) -> None:
    directory = tmp_path / "runs"
    directory.mkdir()
    (directory / "ddp.yaml").write_text("", encoding="utf-8")
    assert complete(script, "launch", "--config_file", "dd", directory=directory) == ["ddp.yaml"]


def test_nothing_is_offered_for_another_word(script: Path) -> None:
    assert complete(script, "nosuchcommand") == []
