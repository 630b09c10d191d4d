"""Held-out loss and exact-match accuracy, over all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..adapters.fsdp2.generation import generating
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..config.run_config import RunConfig
from ..data.formats import Question, question_of
from ..data.mix import HELD_OUT, run_rows
from ..errors import raise_errors
from ..validation.inputs import exact_match_problems

if TYPE_CHECKING:
    from transformers import Trainer

    from ..methods import Method

BATCH = 16
"""Number of rows that one process answers at once."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out rows, and what to measure on them."""

    loss: bool
    questions: tuple[Question, ...]
    max_new_tokens: int
    samples: int

    @classmethod
    def of(cls, run: RunConfig) -> HeldOut | None:
        """Return what `run.evaluation` asks for; None when there are no held-out rows.

        Raises `ConfigError` where exact match has nothing to ask: a plan doesn't look into a hub's rows.
        """
        if not run.data.holds_out or not (run.evaluation.loss or run.evaluation.exact_match):
            return None
        asked: list[Question] = []
        if run.evaluation.exact_match:
            rows = run_rows(run, HELD_OUT)
            raise_errors(exact_match_problems(rows))
            asked = [found for row in rows if (found := question_of(row))]
        return cls(
            loss=run.evaluation.loss,
            questions=tuple(asked[: run.evaluation.max_rows]),
            max_new_tokens=run.evaluation.max_new_tokens,
            samples=run.evaluation.samples,
        )


class AsTrainingBegins(TrainerCallback):
    """Calls `examine` as training begins: a strategy that shards has sharded the model by then, and not before.

    It belongs after `PeakMemory`, whose peak of training it is not part of, and before the other callbacks that
    measure. `seconds` is how long it took.
    """

    def __init__(self, examine: Callable[[], None]) -> None:
        self.seconds = 0.0
        self._examine = examine

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        import torch

        started = time.perf_counter()
        self._examine()
        if torch.cuda.is_available():
            # As after the rehearsal: by what is free Unsloth takes its buffers, in the first step.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.seconds = time.perf_counter() - started


def evaluate(held: HeldOut, trainer: Trainer, method: Method) -> dict[str, Any]:
    """Held-out figures: `loss`; `reward`, the mean over completions, where `method` scores them; `pair_accuracy` (the
    share of pairs in which the chosen answer wins, 0 to 1) where it has one; `accuracy` (0 to 1) of `rows` answers,
    sample `answers`.

    The loss is the method's: of supervised fine-tuning in nats per trained token, the mean over those of all rows.
    Every rank must call this; every rank gets the same figures.
    """
    figures: dict[str, Any] = {}
    if held.loss:
        found = trainer.evaluate()
        figures["loss"] = float(found["eval_loss"])
        if method.score:
            figures[method.score] = found[f"eval_{method.score}"]
        if method.accuracy:
            # A model that is its own reference, as it is before the first step, prefers neither answer.
            neither = method.reference_passes and not trainer.state.global_step
            figures["pair_accuracy"] = 0.5 if neither else float(found[f"eval_{method.accuracy}"])
    if held.questions:
        answers = _answers(held, trainer)
        figures["rows"] = len(answers)
        figures["accuracy"] = sum(answer["right"] for answer in answers) / len(answers)
        figures["answers"] = answers[: held.samples]
    return figures


def _answers(held: HeldOut, trainer: Trainer) -> list[dict[str, Any]]:
    """Answer every question greedily: each rank answers its share, all ranks get all."""
    import torch
    from accelerate.utils import gather_object
    from unsloth import FastLanguageModel

    state = trainer.accelerator
    mine = range(state.process_index, len(held.questions), state.num_processes)
    tokenizer: Any = trainer.processing_class
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    FastLanguageModel.for_inference(model)
    found: list[tuple[int, dict[str, Any]]] = []
    try:
        with generating(model):
            for start in range(0, len(mine), BATCH):
                chosen = list(mine[start : start + BATCH])
                asked = [
                    tokenizer.apply_chat_template(q.messages, tokenize=False, add_generation_prompt=True, **q.given)
                    for q in map(held.questions.__getitem__, chosen)
                ]
                inputs = tokenizer(asked, padding=True, add_special_tokens=False, return_tensors="pt").to(state.device)
                with torch.inference_mode():
                    output = model.generate(
                        **inputs,
                        max_new_tokens=held.max_new_tokens,
                        do_sample=False,
                        pad_token_id=tokenizer.pad_token_id,
                        synced_gpus=False,  # the weights are all here, and ranks have different numbers of batches
                    )
                texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                for index, text in zip(chosen, texts, strict=True):
                    question = held.questions[index]
                    right = text.strip() == question.answer.strip()
                    shown = {"question": question.messages[-1].get("content", ""), "answer": text.strip()}
                    found.append((index, {**shown, "reference": question.answer, "right": right}))
    finally:
        tokenizer.padding_side = side
        FastLanguageModel.for_training(model)
    return [answer for _, answer in sorted(gather_object(found), key=lambda pair: pair[0])]
