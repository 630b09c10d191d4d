import json
from pathlib import Path


def test_a_run_that_shards_tells_its_answers() -> None:
    """It has none from before training, when its model is not sharded yet."""
    from unsloth_accel.training.summary import summary

    answer = {"question": "What?", "answer": "This.", "reference": "This.", "right": True}
    after = {"rows": 1, "accuracy": 1.0, "answers": [answer]}
    results = {"training": {"steps": 1, "seconds": 1.0, "tokens": 5}, "after": after}
    told = summary(results, Path("adapter"))
    assert "after   This.  (right)" in told
    assert "before" not in told
    assert "before  This." in summary({**results, "before": after}, Path("adapter"))
    evaluated = {**results, "evaluations": [{"step": 2, "loss": 1.5}, {"step": 4, "loss": 1.75}]}
    assert "held-out loss      1.7500 at step 4, least at step 2: 1.5000" in summary(evaluated, Path("adapter"))
    last = {**results, "adapter": {"step": 4, "message": "the best evaluation has no checkpoint."}}
    assert "adapter   adapter  (of step 4: the best evaluation has no checkpoint.)" in summary(last, Path("adapter"))
    loss_only = {**results, "before": {"loss": 2.0}, "after": {"loss": 1.0}}
    assert "2.0000 before → 1.0000 after" in summary(loss_only, Path("adapter"))
    pairs = {"before": {"loss": 0.7, "pair_accuracy": 0.5}, "after": {"loss": 0.1, "pair_accuracy": 0.96}}
    assert "held-out pairs     50.0% before → 96.0% after" in summary({**results, **pairs}, Path("adapter"))


def test_completions_are_told_by_their_reward() -> None:
    """The loss of GRPO passes through 0, whatever is learned; the best evaluation is that with the highest reward."""
    from unsloth_accel.training.summary import summary

    between = [{"step": 2, "loss": 0.1, "reward": 0.75}, {"step": 4, "loss": -0.1, "reward": 0.5}]
    results = {"training": {"steps": 4, "seconds": 1.0, "tokens": 5}, "evaluations": between}
    ends = {"before": {"loss": -0.0, "reward": 0.25}, "after": {"loss": 0.0, "reward": 0.5}}
    told = summary({**results, **ends}, Path("adapter"))
    assert "held-out reward    0.5000 at step 4, most at step 2: 0.7500" in told
    assert "held-out reward    0.2500 before → 0.5000 after" in told
    assert "held-out loss" not in told
    same = {**results, "evaluations": [between[1], {**between[1], "step": 6}]}
    assert "held-out reward    0.5000 at step 6\n" in summary(same, Path("adapter")) + "\n"
    scored = {**results, **ends, "after": {"loss": 0.0, "reward": None}, "evaluations": []}
    assert "held-out" not in summary(scored, Path("adapter"))


def test_a_reward_models_adapter_is_loaded_with_its_head(tmp_path: Path) -> None:
    from unsloth_accel.training.summary import summary

    config = {"task_type": "SEQ_CLS", "base_model_name_or_path": "owner/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    told = summary({"training": {"steps": 1, "seconds": 1.0, "tokens": 5}}, tmp_path)
    assert f"load it   from peft import PeftModel\n{'':10}from transformers import" in told
    assert "FastLanguageModel" not in told
