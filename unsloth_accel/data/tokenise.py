"""Tokenising canonical rows, and choosing the trained tokens: shared by training and `preview`.

Chats go through the tokenizer's chat template. Their responses are found by Unsloth's own `train_on_responses_only`.
Text and completions end with the end-of-sequence token, as TRL has it, so that the model learns to stop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, Problem, first_line
from .pack import DIVIDING

if TYPE_CHECKING:
    from ..config.run_config import RunConfig

IGNORED = -100
"""The label of a token that is not trained: torch's and transformers' `ignore_index`."""
Batch = dict[str, list[Any]]
_QUIET = {"verbose": False}
"""Arguments that silence the tokenizer's warning about rows longer than the model takes: they are counted and cut."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that decide which tokens come out, beside rows and tokenizer."""

    kind: str
    """`messages`, `prompt-completion` or `text`."""
    responses: bool
    """Train only on the assistant's messages or the completion."""
    limit: int
    """Maximum length in tokens."""
    keep: str = "keep_start"
    """End of a longer row that stays: TRL's truncation_mode."""
    cut: bool = True
    """Whether longer rows are cut; False where they are dropped, or packing divides them."""

    @classmethod
    def of(cls, run: RunConfig, kind: str) -> Recipe:
        """The recipe of a run for rows of `kind`; raises `ConfigError` where they have no responses to train on."""
        train_on = run.data.train_on
        if kind == "text" and train_on == "responses":
            raise ConfigError(responses_need_turns())
        packing = run.training.get("packing") and run.training.get("packing_strategy") in DIVIDING
        return cls(
            kind=kind,
            responses=train_on == "responses" or (train_on == "auto" and kind == "prompt-completion"),
            limit=run.model.max_seq_length,
            keep=run.training.get("truncation_mode", "keep_start"),
            cut=run.data.too_long == "cut" and not packing,
        )


def responses_need_turns() -> Problem:
    """Return the problem of `data.train_on: responses` with rows of plain text."""
    consequence = "needs rows of chats or of prompts with completions to know what a response is; these are text."
    fix = "data.train_on=all, or give rows with messages, or with prompt and completion"
    return Problem(key="data.train_on", value="responses", consequence=consequence, fix=fix)


class Tokenise:
    """Turns a batch of canonical rows (columns as lists) into columns of one row each, none of them dropped:

    `input_ids`; `labels` where not all tokens are trained; `length`, in tokens, before it was cut; `trained`, the
    tokens that have a say in the loss. The first token of a row never has: nothing comes before it.
    """

    def __init__(self, tokenizer: Any, recipe: Recipe) -> None:
        chat = recipe.kind == "messages"
        if chat and not tokenizer.chat_template:
            consequence = "the model's tokenizer has no chat template, so nobody knows how chats become text."
            fix = "an instruct model, training.chat_template_path=FILE.jinja, or rows of text"
            raise ConfigError(Problem(key="data.path", consequence=consequence, fix=fix))
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.response_labels = response_labels(tokenizer) if chat and recipe.responses else None

    def __call__(self, batch: Mapping[str, list[Any]]) -> Batch:
        recipe = self.recipe
        ids, labels = getattr(self, f"_{recipe.kind.replace('-', '_')}")(batch)
        lengths = [len(row) for row in ids]
        if recipe.cut:
            part = slice(-recipe.limit, None) if recipe.keep == "keep_end" else slice(None, recipe.limit)
            ids, labels = [row[part] for row in ids], [row[part] for row in labels]
        trained = [sum(label != IGNORED for label in row[1:]) for row in labels]
        made: Batch = {"input_ids": ids, "length": lengths, "trained": trained}
        return made | {"labels": labels} if recipe.responses else made

    def _messages(self, batch: Mapping[str, list[Any]]) -> tuple[list[list[int]], list[list[int]]]:
        ids = self._chats(batch["messages"])
        return ids, self.response_labels({"input_ids": ids})["labels"] if self.response_labels else ids

    def _text(self, batch: Mapping[str, list[Any]]) -> tuple[list[list[int]], list[list[int]]]:
        ids = self._texts([self._ended(text) for text in batch["text"]])
        return ids, ids

    def _prompt_completion(self, batch: Mapping[str, list[Any]]) -> tuple[list[list[int]], list[list[int]]]:
        prompts, completions = batch["prompt"], batch["completion"]
        if prompts and isinstance(prompts[0], list):
            whole = self._chats([a + b for a, b in zip(prompts, completions, strict=True)])
            begins = self._chats(prompts, add_generation_prompt=True)
        else:
            whole = self._texts([a + self._ended(b) for a, b in zip(prompts, completions, strict=True)])
            begins = self._texts(prompts)
        if not self.recipe.responses:
            return whole, whole
        same = map(_common, whole, begins)
        return whole, [[IGNORED] * count + ids[count:] for ids, count in zip(whole, same, strict=True)]

    def _ended(self, text: str) -> str:
        end = self.tokenizer.eos_token or ""
        return text if text.endswith(end) else text + end

    def _texts(self, texts: list[str]) -> list[list[int]]:
        begin = self.tokenizer.bos_token
        twice = [bool(begin) and text.startswith(begin) for text in texts]  # such text has its first token already
        if not any(twice):
            return _lists(self.tokenizer(texts, verbose=False)["input_ids"])
        return [
            list(self.tokenizer(text, add_special_tokens=not has, verbose=False)["input_ids"])
            for text, has in zip(texts, twice, strict=True)
        ]

    def _chats(self, chats: list[list[dict[str, Any]]], **kwargs: Any) -> list[list[int]]:
        # Arrow fills what a message lacks with nulls, which templates take for given.
        plain = [[{k: v for k, v in message.items() if v is not None} for message in chat] for chat in chats]
        try:
            made = self.tokenizer.apply_chat_template(
                plain, tokenize=True, return_dict=True, tokenizer_kwargs=_QUIET, **kwargs
            )
        except Exception as error:  # templates raise what they like: "Conversation roles must alternate"
            consequence = f"the chat template refuses a row: {first_line(error)}."
            fix = "correct the rows (roles in turn, a system message only first), or give another chat template"
            raise ConfigError(Problem(key="data.path", consequence=consequence, fix=fix)) from None
        return _lists(made["input_ids"])


def response_labels(tokenizer: Any) -> Callable[[Batch], Batch]:
    """Unsloth's function from `input_ids` to `labels` of which only the assistant's tokens are not `IGNORED`.

    Raises `ConfigError` where it finds no beginning of a response in the chat template. Imports unsloth.
    """
    import unsloth  # noqa: F401  isort: skip  (unsloth_zoo can't be imported before)
    from unsloth_zoo.dataset_utils import train_on_responses_only

    try:
        found: Callable[[Batch], Batch] = train_on_responses_only(None, tokenizer=tokenizer, return_function=True)
    except Exception as error:  # it raises several kinds, all about the template
        consequence = f"the chat template does not tell where a response begins: {first_line(error)}."
        fix = "data.train_on=all, or a model whose chat template marks user and assistant"
        problem = Problem(key="data.train_on", value="responses", consequence=consequence, fix=fix)
        raise ConfigError(problem) from None
    return found


def choose_template(tokenizer: Any, run: RunConfig) -> None:
    """Give `tokenizer` the chat template and the end-of-sequence token that the run names, if it does."""
    path, end = run.training.get("chat_template_path"), run.training.get("eos_token")
    if path:
        tokenizer.chat_template = Path(path).expanduser().read_text(encoding="utf-8")
    if end:
        tokenizer.eos_token = end


def fingerprint_of(tokenizer: Any, recipe: Recipe) -> str:
    """Return a fingerprint of the tokens that `tokenizer` makes by `recipe`, the same in every process."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    if backend is not None:  # using a tokenizer resets these two
        words = {name: value for name, value in json.loads(words).items() if name not in ("truncation", "padding")}
    said = [words, tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, asdict(recipe)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _common(ids: list[int], prompt: list[int]) -> int:
    """Return the number of equal leading tokens: the prompt's last token may merge with the completion's first."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt, strict=False))))


def _lists(rows: Any) -> list[list[int]]:
    return [list(row) for row in rows]
