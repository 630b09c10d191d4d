from unsloth_accel import plan


def test_a_plan_in_a_notebook_is_a_table() -> None:
    made = plan("examples/configs/quickstart.yaml", hardware="2xT4")
    text = made._repr_html_()
    assert text.startswith("<table>")
    assert "weights" in text
    assert "<script" not in text
    assert "strategy   ddp" in str(made)


def test_what_checkpoints_take() -> None:
    """The adapter in float32 and AdamW's two states; save_only_model leaves these out."""
    told = plan("examples/configs/quickstart.yaml", "model.name=unsloth/Llama-3.1-8B-Instruct", hardware="2xH100-80GB")
    mib = 41_943_040 * 12 / 2**20
    assert f"a checkpoint every 15 minutes, the newest 2 kept: {mib / 1024:.2f} GiB each (adapter, optimizer)" in str(
        told
    )
    assert told.to_dict()["checkpoints"] == {"save_minutes": 15.0, "kept": 2, "gib_each": round(mib / 1024, 3)}
    words = ["model.name=unsloth/Llama-3.1-8B-Instruct", "training.save_minutes=2.5", "training.save_total_limit=5"]
    told = plan("examples/configs/quickstart.yaml", *words, "training.save_only_model=true", hardware="2xH100-80GB")
    assert "a checkpoint every 2.5 minutes, the newest 5 kept: 0.16 GiB each (adapter)" in str(told)
    for word in ("training.save_minutes=0", "training.save_strategy=epoch", "training.save_steps=10"):
        told = plan("examples/configs/quickstart.yaml", word, hardware="2xT4")
        assert told.to_dict()["checkpoints"] is None
        assert "saving " not in str(told)
