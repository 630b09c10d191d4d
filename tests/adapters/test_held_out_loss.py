"""Held-out losses: one number for the same rows, whatever the processes and the batch."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CPU_DDP, SCRIPTS, accelerate_launch
from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel.adapters.held_out_loss import RowsOnce

TOLERANCE = 1e-5


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 9))
def test_every_row_is_on_one_rank_once(rows: int, ranks: int, most: int) -> None:
    """In order, batches gathered as the Trainer gathers them; as many rows on each rank, none of which is for show."""
    dealt = [RowsOnce(list(range(100, 100 + rows)), most=most, ranks=ranks, rank=rank) for rank in range(ranks)]
    assert len({len(list(own)) for own in dealt} | {len(own) for own in dealt}) == 1
    found = []
    for batch, parts in enumerate(zip(*dealt, strict=True)):
        assert len({len(part) for part in parts}) == 1
        assert 1 <= len(parts[0]) <= most
        for own, part in zip(dealt, parts, strict=True):
            assert own.rows(batch) in (0, len(part))
            found += part[: own.rows(batch)]
    assert found == list(range(100, 100 + rows))
    if rows % ranks:  # what accelerate's gather_for_metrics keeps of the last batch
        (left,) = {rows % (own.num_processes * own.batch_size) for own in dealt}
        assert [own.rows(len(own) - 1) for own in dealt] == [1] * left + [0] * (ranks - left)


def test_one_process_with_batches_of_any_size(tmp_path: Path) -> None:
    """Rows of different lengths, one of them without a label that counts, under a user's own Trainer."""
    import torch
    from transformers import (
        DataCollatorForTokenClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )

    from unsloth_accel.adapters.held_out_loss import weigh_held_out

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    rows = [{"input_ids": [1 + (i * n) % 30 for i in range(3 + 4 * n)]} for n in range(7)]
    for number, row in enumerate(rows):
        row["labels"] = [-100] * 2 + row["input_ids"][2:] if number != 3 else [-100] * len(row["input_ids"])
    lost = count = 0.0
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1].detach()
        lost += float(torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum"))
        count += sum(label != -100 for label in row["labels"][1:])
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")), pad_token="a")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer: Any = Trainer(
        model=model,
        args=arguments,
        eval_dataset=rows,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    weigh_held_out(trainer)
    arguments.include_for_metrics = ["loss"]
    trainer.compute_metrics = lambda told: {"losses": len(told.losses)}
    for size, drop_last in ((1, False), (2, False), (5, True), (8, False), (8, True)):
        arguments.per_device_eval_batch_size, arguments.dataloader_drop_last = size, drop_last
        told = trainer.predict(rows)
        assert told.metrics["test_loss"] == pytest.approx(lost / count, rel=TOLERANCE), size
        assert len(told.predictions) == told.metrics["test_losses"] == len(rows)
        assert trainer.evaluate()["eval_loss"] == told.metrics["test_loss"]
    assert arguments.average_tokens_across_devices
    arguments.dataloader_drop_last = False
    batch = next(iter(trainer.get_eval_dataloader()))
    outside = trainer.prediction_step(model, batch, prediction_loss_only=True, ignore_keys=None)
    assert outside[0] is not None, "outside of an evaluation"


@pytest.mark.parametrize("name", ["_metrics", "_stored_metrics"])
def test_figures_of_batches_weigh_by_their_rows(name: str, tmp_path: Path) -> None:
    """What a trainer notes of each batch, as TRL's do under either name, whose own mean is one of batches."""
    from collections import defaultdict

    import torch
    from transformers import Trainer, TrainingArguments

    from unsloth_accel.adapters.held_out_loss import weigh_held_out

    noted: dict[str, Any] = {"eval": defaultdict(list)}

    class Noting(Trainer):
        def compute_loss(self, model: Any, inputs: Any, **rest: Any) -> Any:
            noted["eval"]["margins"].append(float(inputs["margin"].mean()))
            return (inputs["margin"] * model.weight).mean()

        def prediction_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            return self.compute_loss(model, inputs).detach(), None, None

        def log(self, logs: dict[str, float], *rest: Any) -> None:
            logs |= {f"eval_{name}": sum(values) / len(values) for name, values in noted["eval"].items()}
            noted["eval"].clear()

    rows = [{"margin": float(number**2)} for number in range(7)]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    arguments.remove_unused_columns = False
    trainer = Noting(model=torch.nn.Linear(1, 1), args=arguments, eval_dataset=rows)  # type: ignore[arg-type]
    setattr(trainer, name, noted)
    weigh_held_out(trainer)
    for size in (1, 2, 5, 8):
        arguments.per_device_eval_batch_size = size
        assert trainer.evaluate()["eval_margins"] == pytest.approx(13), size


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_layout_gives_one_loss(tiny: Path, tmp_path: Path, processes: int) -> None:
    """SFT padded and end to end, a user's own loss, preferences, heads of two kinds, with metrics and without.

    Without the adapter two processes say 5.7445 for 5.7420 (SFT), 6.21 for 5.74 (a user's own loss), 0.578 for 0.569
    (preferences), 2.31 for 1.15 (classification) and 7.56 for 3.78 (regression).
    """
    words = ["--num_processes", str(processes), SCRIPTS / "held_out_layouts.py", tiny, tmp_path]
    done = accelerate_launch("--config_file", CPU_DDP, *words, forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(found) == 8
    for name, told in found.items():
        expected = told["expected"] or told["losses"][0]
        assert told["losses"] == [pytest.approx(expected, rel=TOLERANCE)] * 3, name
    for kind, labels in (("single_label", [0, 1, 2, 0, 1]), ("regression", [[0.5, 2.0, n] for n in range(5)])):
        for seen, predicted in found[f"{kind}, metrics=True"]["metrics"]:
            assert seen == labels
            assert len(set(predicted)) == 5
            assert predicted == pytest.approx(found[f"{kind}, metrics=True"]["metrics"][0][1], abs=1e-5)
