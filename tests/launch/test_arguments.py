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
    with pytest.raises(ConfigError, match="nothing to launch"):
        parse(["--debug"])
    with pytest.raises(ConfigError, match="neither an override nor a flag"):
        parse(["a.yaml", "max_steps"])
