import re
from pathlib import Path
from typing import Any

import pytest
from row_files import ALPACA, write

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.data.sources import locate
from unsloth_accel.errors import ConfigError
from unsloth_accel.validation.inputs import input_problems


def test_a_hub_id_is_left_to_the_launch(description: dict[str, Any]) -> None:
    assert locate("trl-lib/Capybara").hub == "trl-lib/Capybara"
    assert input_problems(from_dict({**description, "data": {"path": "trl-lib/Capybara"}})) == []


def test_a_directory_of_several_kinds_and_one_of_none(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.csv", ALPACA)
    write(tmp_path / "a" / "x.jsonl", ALPACA)
    (tmp_path / "b").mkdir()
    for path, words in (("a", "several kinds (csv, jsonl)"), ("b", "no file of rows"), ("b/*.csv", "no file matches")):
        with pytest.raises(ConfigError, match=re.escape(words)):
            locate(tmp_path / path)
