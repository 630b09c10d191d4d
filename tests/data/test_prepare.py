"""What is trained is what TRL and Unsloth would make of the same rows, and the same on any number of processes."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SMOLLM2, adapter, cli_command, steps, variable_rows, write_yaml

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.errors import ConfigError

pytestmark = pytest.mark.slow
LIMIT = 120


def described(tmp_path: Path, rows: list[dict[str, Any]], **data: Any) -> RunConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return from_dict(
        {
            "model": {"name": str(SMOLLM2), "max_seq_length": LIMIT},
            "data": {"path": str(path), **data},
            "output_dir": str(tmp_path / "out"),
        }
    )


def chat(n: int) -> dict[str, Any]:
    said = [f"Question {n}? {'word ' * n}", f"Answer {n}. {'yes ' * n}", "And more?", f"No, {n}."]
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]}


@pytest.fixture(scope="module")
def unsloth_model() -> Any:
    import unsloth

    return unsloth.FastLanguageModel.from_pretrained(str(SMOLLM2), max_seq_length=LIMIT, load_in_4bit=False)


def theirs(model: Any, tmp_path: Path, rows: list[dict[str, Any]], *, responses: bool) -> list[dict[str, Any]]:
    """Tokens and labels as TRL's own preparation makes them, and Unsloth's train_on_responses_only after it."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer
    from unsloth.chat_templates import train_on_responses_only

    arguments = SFTConfig(output_dir=str(tmp_path), max_length=LIMIT, report_to="none", use_cpu=True, bf16=False)
    adapted = model[0] if hasattr(model[0], "peft_config") else get_peft_model(model[0], LoraConfig(r=1))
    trainer = SFTTrainer(
        model=adapted, processing_class=model[1], args=arguments, train_dataset=Dataset.from_list(rows)
    )
    if responses:
        trainer = train_on_responses_only(trainer)
    return [{key: row.get(key, row["input_ids"]) for key in ("input_ids", "labels")} for row in trainer.train_dataset]


@pytest.mark.parametrize("form", ["chat", "responses", "prompt-completion", "text"])
def test_tokens_and_masks_are_trls_and_unsloths(unsloth_model: Any, tmp_path: Path, form: str) -> None:
    from unsloth_accel.data.prepare import prepare
    from unsloth_accel.data.preview import preview_rows

    rows: list[dict[str, Any]] = [chat(n) for n in range(0, 160, 4)]
    if form == "prompt-completion":
        rows = [{"prompt": f"Say {'word ' * n}", "completion": f"{n} " * 9} for n in range(1, 140, 5)]
    if form == "text":
        rows = [{"text": f"Some text {'word ' * n}"} for n in range(1, 140, 7)]
    run = described(tmp_path, rows, train_on="responses" if form == "responses" else "auto")
    made = prepare(run, unsloth_model[1])
    ours = [{key: row.get(key, row["input_ids"]) for key in ("input_ids", "labels")} for row in made.train]
    assert ours == theirs(unsloth_model, tmp_path, rows, responses=form == "responses")
    assert made.report["rows"] == len(rows)
    assert made.report["cut"] > 0
    assert made.report["cut"] + made.report["dropped"] == sum(
        row.length > LIMIT for row in preview_rows(run, 99, 99).rows
    )
    assert (made.report["dropped"] > 0) == (form in ("responses", "prompt-completion"))
    # What `preview` shows, with the tokenizer alone, is what the trainer gets.
    shown = [{"input_ids": list(r.ids), "labels": list(r.labels)} for r in preview_rows(run, 99, 99).rows if r.trained]
    assert shown == ours


def test_rows_are_packed_once_and_only_where_the_trainer_packs(unsloth_model: Any, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from datasets import Dataset

    from unsloth_accel.data.pack import pack
    from unsloth_accel.data.prepare import prepare

    rows = [{"prompt": f"Say {'word ' * n}", "completion": f"{n} " * 9} for n in range(1, 90, 5)]
    run = described(tmp_path, rows)
    run.training["packing"] = True
    made = prepare(run, unsloth_model[1])
    trainer = SimpleNamespace(args=SimpleNamespace(packing=True), train_dataset=made.train, eval_dataset=None)
    pack(trainer, run, made)
    packed = trainer.train_dataset
    assert len(packed) == made.report["packed"] < len(rows)
    assert [sum(lengths) for lengths in packed["seq_lengths"]] == [len(ids) for ids in packed["input_ids"]]
    assert max(map(len, packed["input_ids"])) <= LIMIT
    for column in ("input_ids", "labels"):  # the labels go with their tokens
        assert sorted(chain(*packed[column])) == sorted(chain(*made.train[column]))
    trainer.train_dataset = Dataset.from_list([])  # what another process would read is there already
    pack(trainer, run, made)
    assert trainer.train_dataset[:] == packed[:]
    off = SimpleNamespace(args=SimpleNamespace(packing=False), train_dataset=made.train)
    pack(off, run, made)
    assert off.train_dataset is made.train
    run.training["packing_strategy"] = "wrapped"
    with pytest.raises(ConfigError, match="neither divided nor cut"):
        pack(off, run, made)


def test_long_rows_dropped_and_nothing_left(unsloth_model: Any, tmp_path: Path) -> None:
    from unsloth_accel.data.prepare import prepare

    rows = [chat(n) for n in range(0, 160, 4)]
    made = prepare(described(tmp_path, rows, too_long="drop"), unsloth_model[1])
    assert made.report["cut"] == 0
    assert made.report["dropped"] == 40 - len(made.train) > 0
    assert max(len(row) for row in made.train["input_ids"]) <= LIMIT
    assert any("longer than 120 tokens dropped: rows " in note for note in made.notes)
    with pytest.raises(ConfigError, match="no row is left to train on: 3 of 3 are longer than"):
        prepare(described(tmp_path, [chat(200)] * 3, train_on="responses"), unsloth_model[1])


def launch(run: Path, out: Path, *overrides: str) -> str:
    command = cli_command("launch", run, f"output_dir={out}", *overrides)
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rank_steps(out: Path) -> list[dict[str, Any]]:
    """What the first rank wrote of its steps."""
    lines = (out / "logs" / "rank-0.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "step"]


def test_a_stream_of_files_trains_alike_and_rows_are_tokenised_once(tiny: Path, tmp_path: Path) -> None:
    """Held-out rows are tokenised by one of two processes; streamed ones are the same per step on one and on two. All
    lengths are rounded up, which changes shapes and no number of tokens."""
    for part in range(2):  # as many as processes: Accelerate would give each its own
        (tmp_path / "rows").mkdir(exist_ok=True)
        variable_rows(tmp_path / "rows" / f"{part}.jsonl", [9 + (37 * i + part) % 88 for i in range(9)])
    run = write_yaml(
        tmp_path / "run.yaml",
        {
            "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
            "data": {"path": str(tmp_path / "rows"), "streaming": True, "eval_path": str(tmp_path / "rows")},
            "batch": {"global_size": 8},
            "training": {
                "max_steps": 4,
                "learning_rate": 1e-2,
                "bf16": False,
                "per_device_train_batch_size": 4,
                "pad_to_multiple_of": 32,
            },
            "output_dir": "overridden",
        },
    )
    two, one = tmp_path / "two", tmp_path / "one"
    printed = launch(run, two)
    both = printed + (two / "logs" / "rank-1.log").read_text(encoding="utf-8")
    assert both.count("tokenising 18 rows") == 1
    assert "tokenising 18 rows" not in launch(run, one, "distributed.num_processes=1")
    for ours, other in zip(steps(two), steps(one), strict=True):
        assert ours["num_input_tokens_seen"] == other["num_input_tokens_seen"]
        assert ours["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-5)
    for out in (two, one):
        assert all(step["padded_tokens"] % 32 == 0 for step in rank_steps(out))
        assert all(step["tokens"] < step["padded_tokens"] for step in rank_steps(out))
    real = sum(step["tokens"] for step in rank_steps(one))
    assert real == steps(one)[-1]["num_input_tokens_seen"]
    first, second = adapter(two), adapter(one)
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    results = json.loads((two / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["streaming"] is True
    assert results["data"]["eval"]["rows"] == 18
