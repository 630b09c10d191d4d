import pytest

from unsloth_accel.errors import ConfigError
from unsloth_accel.launch.arguments import Request, parse


def test_parse_tells_runs_from_scripts() -> None:
    assert parse(["a.yaml", "x.y=1", "--dry-run"]) == Request(run_yaml="a.yaml", overrides=("x.y=1",), dry_run=True)
    assert parse(["--config_file", "a.yaml", "s.py", "--dry-run", "b"]) == Request(
        accelerate_flags=("--config_file", "a.yaml", "s.py", "--dry-run", "b")
    )
    assert parse(["--dry-run", "--config_file=a.yaml", "-m", "mod"]).dry_run
    run = parse(["--main_process_port", "29501", "a.yaml", "--debug", "x=1"])
    assert (run.run_yaml, run.accelerate_flags) == ("a.yaml", ("--main_process_port", "29501", "--debug"))
    assert run.overrides == ("x=1",)
    assert parse(["x=1", "a.yaml"]) == Request(run_yaml="a.yaml", overrides=("x=1",))
    assert parse(["--resume-if-any", "a.yaml"]).overrides == ("training.resume=if_any",)
    with pytest.raises(ConfigError, match="--resume-if-any: is for launch RUN"):
        parse(["--config_file", "a.yaml", "--resume-if-any", "s.py"])
    assert parse(["a.json"]).run_yaml == "a.json"  # LLaMA-Factory's files may be JSON
    with pytest.raises(ConfigError, match="nothing to launch"):
        parse(["--debug"])
    with pytest.raises(ConfigError, match="neither an override nor a flag"):
        parse(["a.yaml", "max_steps"])


@pytest.mark.parametrize(
    ("words", "flag", "meant"),
    [
        (["--num_proceses", "2", "s.py"], "--num_proceses", "--num_processes"),
        (["--config_fil", "a.yaml", "s.py"], "--config_fil", "--config_file"),
        (["a.yaml", "--mixed_precison=bf16"], "--mixed_precison", "--mixed_precision"),
        (["--dry_run", "a.yaml"], "--dry_run", "--dry-run"),
    ],
)
def test_a_misspelt_flag_is_named_and_not_the_word_behind_it(words: list[str], flag: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"error: {flag}: is no flag .*did you mean {meant}?"):
        parse(words)


def test_the_flags_of_a_script_are_its_own() -> None:
    assert parse(["s.py", "--num_proceses", "2"]).accelerate_flags == ("s.py", "--num_proceses", "2")
    assert parse(["-m", "mod", "--num_proceses"]).accelerate_flags == ("-m", "mod", "--num_proceses")
