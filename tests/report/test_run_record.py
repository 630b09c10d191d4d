from pathlib import Path

import pytest
import run_directories as made
from report_pages import Tags, html_of

from unsloth_accel.errors import ConfigError
from unsloth_accel.report.run_record import read_run_record


def test_steps_that_were_trained_twice_count_once(tmp_path: Path) -> None:
    run = read_run_record(made.resumed(tmp_path))
    assert run.attempts == 2
    assert [step["step"] for step in run.ranks[0].steps] == list(range(1, 81))
    assert [step for step, _, _ in run.totals] == list(range(1, 81))
    # The later of the two attempts counts: it began an hour after the first.
    assert run.ranks[0].steps[44]["time"] > made.START + 3600
    assert "trained in 2 parts" in Tags(html_of(tmp_path)).text


def test_a_missing_file_is_a_problem_with_a_key() -> None:
    with pytest.raises(ConfigError) as raised:
        read_run_record("nowhere")
    (problem,) = raised.value.problems
    assert (problem.key, bool(problem.fix)) == ("nowhere", True)
