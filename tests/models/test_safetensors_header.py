from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_models import CONFIGS, problem_of, saved_model

from unsloth_accel.errors import ConfigError
from unsloth_accel.models.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("no_hub")


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


DAMAGED = {
    "empty": b"",
    "short": b"\x10\0\0",
    "huge length": (2**63).to_bytes(8, "little") + b"{}",
    "longer than the file": (500).to_bytes(8, "little") + b"{}",
    "garbage": header(b"\xff\xfe garbage"),
    "deep": header(b"[" * 100_000),
    "a list": header([1, 2]),
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "no shape": header({"x": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
    "an entry that is a word": header({"x": "F32"}),
    "negative": header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
    "wrong size": header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
    "unhashable dtype": header({"x": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "truncated": header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_weights_name_the_file(tmp_path: Path, content: bytes) -> None:
    shutil.copy(CONFIGS["llama"], tmp_path / "config.json")
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        ModelSpec.load(tmp_path)
    assert problem_of(error).key == str(file)


def test_shards_that_are_missing_or_cut_short(tmp_path: Path) -> None:
    saved_model("llama", tmp_path, max_shard_size="20KB")
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="cut short") as error:
        ModelSpec.load(tmp_path)
    assert problem_of(error).key == str(last)
    first.unlink()
    with pytest.raises(ConfigError, match=f"the first is {first.name}"):
        ModelSpec.load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"x": 3}}', '{"weight_map": {"x": "../y"}}'):
        index.write_text(content)
        with pytest.raises(ConfigError, match="no weight_map"):
            ModelSpec.load(tmp_path)
    index.unlink()
    with pytest.raises(ConfigError, match="is missing, so the shards"):
        ModelSpec.load(tmp_path)
