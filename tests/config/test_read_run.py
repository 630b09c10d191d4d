import re
from pathlib import Path
from typing import Any

import pytest
from conftest import write_yaml

from unsloth_accel.config.read_run import from_dict, is_override, load
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.config.written import as_yaml, described
from unsloth_accel.errors import ConfigError


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def file(tmp_path: Path, description: dict[str, Any]) -> Path:
    return write_yaml(tmp_path / "run.yaml", description)


def test_defaults_file_and_overrides_in_that_order(file: Path) -> None:
    run = load(file, ["lora.r=8", "training.max_steps=2", "training.learning_rate=2e-4", "batch.global_size=4"])
    assert (run.lora.r, run.lora.alpha, run.batch.global_size) == (8, 16, 4)
    assert run.trainer_fields() == {"max_steps": 2, "learning_rate": 2e-4}


def test_overrides_alone_are_enough(tmp_path: Path, description: dict[str, Any]) -> None:
    empty = write_yaml(tmp_path / "small.yaml", {"output_dir": "x"})
    run = load(empty, [f"model.name={description['model']['name']}", f"data.path={description['data']['path']}"])
    assert run.output_dir == "x"


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("trainig.max_steps=2", "did you mean training?"),
        ("training.max_stps=2", "did you mean training.max_steps?"),
        ("lora.rank_=8", "remove it, or use one of: alpha"),
        ("model.load_in_4bits=true", "did you mean model.load_in_4bit?"),
        ("modl=x", "did you mean model?"),
    ],
)
def test_an_unknown_key_names_the_nearest(file: Path, override: str, word: str) -> None:
    (only,) = problems(file, override)
    assert "unknown key" in only
    assert word in only


def test_an_unknown_method_is_told_alone(file: Path) -> None:
    """Its fields may be those of the method that is meant."""
    (only,) = problems(file, "method=grop", "training.num_generations=8", "rewards.functions=[format]")
    assert "method='grop': unknown value. Fix: did you mean grpo? use one of: sft, dpo" in only
    assert len(problems(file, "method=grop", "training.num_generation=8")) == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.r=many", "lora.r='many': wrong type: int is needed, this is str"),
        ("model.load_in_4bit=perhaps", "wrong type: bool is needed"),
        ("training.max_steps=few", "training.max_steps='few': wrong type: int is needed"),
        ("training.learning_rate=[1]", "wrong type: float is needed, this is a list"),
        ("training.save_only_model=3", "wrong type: bool is needed, this is int"),
        ("training.resume=maybe", "unknown value. Fix: use one of: true, false, if_any"),
        ("training.save_minutes=-1", "must be at least 0"),
        ("training.enable_jit_checkpoint=true", "in a step of its own"),
        ("lora=16", "is a section, not a value"),
        ("batch.global_size=0", "must be at least 1"),
        ("lora.target_modules=some", "all-linear, or a list"),
        ("distributed.num_processes=all", "must be auto or a whole number from 1"),
        ("distributed.strategy=ddpp", "use one of: auto, single, ddp"),
        ("model.dtype=int4", "use one of: null, float32"),
        ("training.output_dir=x", "set output_dir instead"),
        ("training.max_length=5", "set model.max_seq_length instead"),
        ("training.gradient_checkpointing=true", "set model.gradient_checkpointing instead"),
        ("training.activation_checkpointing=true", "set model.gradient_checkpointing instead"),
        ("evaluation.exact_match=true", "data.eval_path names none"),
        ("training.max_steps=0", "no step would be made, and an untrained adapter saved"),
        ("training.num_train_epochs=0", "no step would be made, and an untrained adapter saved"),
        ("training.num_train_epochs=-1", "no step would be made"),
        ("lora.r=${nothing}", "lora.r"),
        ("data.path=null", "data.path: is missing"),
    ],
)
def test_a_wrong_value_says_what_is_needed(file: Path, override: str, words: str) -> None:
    (only,) = problems(file, override)
    assert words in only
    assert "Fix: " in only


def test_all_problems_at_once(tmp_path: Path) -> None:
    found = problems(write_yaml(tmp_path / "bad.yaml", {"lora": {"r": "x", "rr": 1}, "training": {"max_stps": 1}}))
    keys = sorted(text.split()[1].split("=")[0].rstrip(":") for text in found)
    assert keys == ["data.path", "lora.r", "lora.rr", "model.name", "output_dir", "training.max_stps"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "is a list, not keys and values"),
        ("model: [\n", "line 2"),
        ("a: 1\na: 2\n", "2: a: is there twice, in lines 1 and 2"),
        ("model: !!python/object/apply:os.system ['true']\n", "nothing of it was run"),
    ],
)
def test_a_file_that_is_no_description(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    (only,) = problems(path)
    assert str(path) in only
    assert words in only


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in problems(tmp_path / "missing.yaml")[0]
    assert "directory" in problems(tmp_path)[0].lower()
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("output_dir: caf\xe9".encode("latin-1"))
    assert "not UTF-8" in problems(latin)[0]


def test_a_bad_override_is_named(file: Path) -> None:
    assert "is not an override" in problems(file, "max_steps 2")[0]
    assert is_override("training.max_steps=2")
    assert not is_override("--num_processes=2")


def test_resume_and_overwrite_contradict(file: Path) -> None:
    (told,) = problems(file, "training.resume=true", "training.overwrite=true")
    assert "Fix: training.overwrite=false" in told
    assert load(file, ["training.resume=true", "training.overwrite=false"]).resume


def test_the_word_no_survives_yaml(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8") + "training:\n  save_strategy: no\n", encoding="utf-8")
    assert load(file).trainer_fields() == {"save_strategy": "no"}


def test_gradient_checkpointing_takes_yaml_booleans(file: Path) -> None:
    assert load(file, ["model.gradient_checkpointing=false"]).model.gradient_checkpointing == "false"


def test_it_is_written_as_it_is_read(description: dict[str, Any]) -> None:
    import yaml

    run = from_dict({**description, "training": {"max_steps": 3}})
    assert isinstance(run, RunConfig)
    assert from_dict(yaml.safe_load(as_yaml(described(run), run))) == run


@pytest.mark.parametrize(
    ("data", "training", "words"),
    [
        ({"streaming": True}, {}, "a stream has no known length"),
        ({"streaming": True}, {"max_steps": 2, "packing": True}, "packing needs all rows beforehand"),
        ({"columns": {"mesages": "x"}}, {}, "did you mean data.columns.messages?"),
        ({"format": "alpacca"}, {}, "use one of: auto, chat"),
        ({"too_long": "keep"}, {}, "use one of: cut, drop"),
        ({}, {"completion_only_loss": True}, "set data.train_on instead"),
        ({}, {"dataset_kwargs": {}}, "set data.format"),
        ({}, {"chat_template_path": "none.jinja"}, "name a .jinja file"),
    ],
)
def test_settings_that_mean_nothing(
    description: dict[str, Any], data: dict[str, Any], training: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        from_dict({**description, "data": description["data"] | data, "training": training})


def test_early_stopping_needs_something_to_stop_by(file: Path, description: dict[str, Any]) -> None:
    """Each refusal's fix is accepted."""
    patience, rows = "training.early_stopping_patience=2", f"data.eval_path={description['data']['path']}"
    assert "data.eval_path names none" in problems(file, patience)[0]
    (told,) = problems(file, patience, rows)
    assert "counts evaluations, and there is none" in told
    fixed = re.search(r"Fix: (\S+),", told)
    assert fixed is not None
    run = load(file, [patience, rows, fixed[1], "training.early_stopping_threshold=0.01"])
    assert run.early_stopping == {"early_stopping_patience": 2, "early_stopping_threshold": 0.01}
    assert run.trainer_fields() == {"eval_strategy": "epoch", "metric_for_best_model": "eval_loss"}
    assert load(file).early_stopping == {}
    scored = ["method=grpo", "rewards.functions=[format]", rows, fixed[1]]
    best = load(file, [*scored, "training.load_best_model_at_end=true"])
    for run in (best, load(file, [*scored, patience])):
        assert run.trainer_fields()["metric_for_best_model"] == "eval_reward", "GRPO's loss passes through 0"
    for less in ("lr_scheduler_type=reduce_lr_on_plateau", "lr_scheduler_type=greedy", "greater_is_better=false"):
        run = load(file, [*scored, patience, f"training.{less}"])
        assert run.trainer_fields()["metric_for_best_model"] == "eval_loss", "its rate would fall as rewards rise"
    assert "metric_for_best_model" not in load(file, scored).trainer_fields()
    for wrong, words in (
        ("training.early_stopping_patience=0", "must be at least 1"),
        ("training.early_stopping_patience=a", "int is needed"),
    ):
        assert words in problems(file, wrong, rows, fixed[1])[0]
    assert "has no effect without" in problems(file, "training.early_stopping_threshold=0.1")[0]
    assert "worse loss" in problems(file, patience, rows, fixed[1], "training.early_stopping_threshold=-0.1")[0]


def test_what_the_trainer_would_not_heed(file: Path) -> None:
    """Fields of SFTConfig for a trainer that loads the model itself: TRL only warns, among other lines of the log."""
    (told,) = problems(file, "training.model_init_kwargs={attn_implementation: eager, dtype: float32}")
    assert "nothing here would have an effect. Fix: remove it, and set model.dtype, " in told
    (told,) = problems(file, "training.trust_remote_code=true")
    assert told.endswith("set model.trust_remote_code instead")
    assert load(file, ["model.dtype=float32", "model.trust_remote_code=true"]).model.dtype == "float32"


def test_a_text_that_is_a_number_is_taken_as_one_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    words = ["model.max_seq_length='2048'", "output_dir=5", "lora.r='8'", "lora.dropout='0.1'", "logging.progress='no'"]
    run = load(None, ["model.name=owner/model", *words], to_plan=True)
    assert (run.model.max_seq_length, run.output_dir, run.lora.r, run.lora.dropout) == (2048, "5", 8, 0.1)
    assert run.logging.progress is False
    assert [one for one in recwarn if issubclass(one.category, FutureWarning)] == []
