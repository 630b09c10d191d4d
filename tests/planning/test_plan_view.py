from unsloth_accel import plan


def test_a_plan_in_a_notebook_is_a_table() -> None:
    made = plan("examples/configs/quickstart.yaml", hardware="2xT4")
    text = made._repr_html_()
    assert text.startswith("<table>")
    assert "weights" in text
    assert "<script" not in text
    assert "strategy   ddp" in str(made)
