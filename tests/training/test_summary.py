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


def test_a_reward_models_adapter_is_loaded_with_its_head(tmp_path: Path) -> None:
    from unsloth_accel.training.summary import summary

    config = {"task_type": "SEQ_CLS", "base_model_name_or_path": "owner/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    told = summary({"training": {"steps": 1, "seconds": 1.0, "tokens": 5}}, tmp_path)
    assert f"load it   from peft import PeftModel\n{'':10}from transformers import" in told
    assert "FastLanguageModel" not in told
