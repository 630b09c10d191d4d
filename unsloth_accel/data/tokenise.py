"""Tokenising canonical rows, and choosing the trained tokens: shared by training and `preview`.

Chats go through the tokenizer's chat template. Their responses are found by Unsloth's own `train_on_responses_only`.
Text and completions end with the end-of-sequence token, as TRL has it, so that the model learns to stop.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from ..config.template_fields import MARKERS
from ..config.trainer_settings import settings
from ..errors import ConfigError, Problem, counted, first_line
from ..methods import METHODS
from .chat_messages import for_chat_template, is_left_out
from .chat_template import found_markers, response_labels
from .formats import template_arguments
from .pack import DIVIDING
from .preferences import SIDES, shared_length
from .template_limit import check_template

if TYPE_CHECKING:
    from ..config.run_config import RunConfig
    from .rows import Rows

IGNORED = -100
"""The label of a token that is not trained: torch's and transformers' `ignore_index`."""
Batch = dict[str, list[Any]]
Row = dict[str, Any]
COMPARED = ("preference", "unpaired-preference")
"""Kinds of rows whose answers are compared; TRL's trainers tokenise them themselves."""
_QUIET = {"verbose": False}
"""Arguments that silence the tokenizer's warning about rows longer than the model takes: they are counted and cut."""
_LOOKED_AT = 200
"""Rows of which it is seen whether their messages are in their text."""
_TELLING = 24
"""Letters and digits by which a message is found in a text."""


@dataclass(frozen=True)
class Side:
    """Tokens of a row, or of one of a pair's sides, and their labels."""

    ids: list[int]
    labels: list[int]
    length: int
    """Length in tokens before it was cut."""

    @property
    def trained(self) -> int:
        """Number of tokens that have a say in the loss; the first has none."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that decide which tokens come out, beside rows and tokenizer."""

    kind: str
    """Kind of the rows (`formats.Kind`)."""
    responses: bool
    """Train only on the assistant's messages or the completion."""
    limit: int
    """Maximum length in tokens."""
    keep: str = "keep_start"
    """End of a longer row that stays: TRL's truncation_mode."""
    cut: bool = True
    """Whether longer rows are cut; False where they are dropped, or packing divides them."""
    drop: bool = False
    """Whether longer rows are dropped."""
    weighted: bool = False
    """Whether rows may have messages that are not to be trained."""
    markers: tuple[str, str] | None = None
    """Texts that a question and an answer begin with, as the run tells them; None where the chat template does."""

    @property
    def compares(self) -> bool:
        """Whether answers are compared."""
        return self.kind in COMPARED

    @property
    def prompts(self) -> bool:
        """Whether rows are prompts, to which the model writes the answers."""
        return self.kind == "prompt"

    @property
    def by_trl(self) -> bool:
        """Whether TRL's trainer makes the tokens itself, of text or messages."""
        return self.compares or self.prompts

    @property
    def labels(self) -> bool:
        """Whether rows need labels of their own, since not every token is trained."""
        return self.responses or self.weighted

    @property
    def finds_responses(self) -> bool:
        """Whether Unsloth is asked where responses are: in a chat, or in text that has the marks of one."""
        return self.kind in ("messages", "text") and self.labels

    @classmethod
    def of(cls, run: RunConfig, kind: str, *, weighted: bool = False) -> Recipe:
        """The recipe of a run for rows of `kind`; raises `ConfigError` where they have no responses to train on."""
        train_on, told = run.data.train_on, (run.data.instruction_marker, run.data.response_marker)
        markers = (told[0], told[1]) if told[0] is not None and told[1] is not None else None
        if kind == "text" and train_on == "responses" and not markers:
            raise ConfigError(responses_need_turns())
        if kind in COMPARED and train_on == "all":
            raise ConfigError(answers_are_compared())
        if kind == "prompt":  # whole: half a question is another one
            return cls(kind=kind, responses=True, limit=prompt_limit(run), cut=False, drop=True)
        answered = METHODS[run.method].needs_prompt or kind == "prompt-completion"
        # A score is read at a text's end: RewardTrainer leaves out what is too long.
        scored = kind in COMPARED and not answered
        packing = run.training.get("packing") and run.training.get("packing_strategy") in DIVIDING
        return cls(
            kind=kind,
            responses=not scored and (train_on == "responses" or (train_on == "auto" and answered)),
            limit=run.model.max_seq_length,
            keep=run.training.get("truncation_mode", "keep_start"),
            cut=run.data.too_long == "cut" and not packing and not scored,
            drop=run.data.too_long == "drop" or scored,
            weighted=weighted,
            markers=markers,
        )


def prompt_limit(run: RunConfig) -> int:
    """Return the most tokens of a prompt: those that its completion leaves of `model.max_seq_length`."""
    return run.model.max_seq_length - int(settings(run).get("max_completion_length") or 0)


def responses_need_turns() -> Problem:
    """Return the problem of `data.train_on: responses` with rows of plain text."""
    consequence = "needs rows of chats or of prompts with completions to know what a response is; these are text."
    fix = "data.train_on=all; rows with messages, or with prompt and completion; or, where the text has the marks of "
    fix += "messages, data.instruction_marker and data.response_marker"
    return Problem(key="data.train_on", value="responses", consequence=consequence, fix=fix)


def answers_are_compared() -> Problem:
    """Return the problem of `data.train_on: all` with rows of preferences."""
    consequence = "rows of preferences are trained by their answers alone; the prompts are not."
    return Problem(key="data.train_on", value="all", consequence=consequence, fix="leave data.train_on out")


class Tokenise:
    """Turns canonical rows, as JSON text, into columns with one entry for each row, none of them dropped:

    `input_ids`; `labels` where not all tokens are trained; `length`, in tokens, before it was cut, of a pair's longer
    side; `tokens`, after it; `trained`, the tokens that have a say in the loss. The first token of a row never has:
    nothing comes before it. Rows whose answers are compared have neither `input_ids` nor `labels`: TRL's trainers make
    them, alike.
    """

    def __init__(self, tokenizer: Any, recipe: Recipe) -> None:
        if recipe.kind == "messages" and not tokenizer.chat_template:
            consequence = "the model's tokenizer has no chat template, so nobody knows how chats become text."
            fix = "an instruct model, model.chat_template=chatml (or another's name, or a file), or rows of text"
            raise ConfigError(Problem(key="data.path", consequence=consequence, fix=fix))
        if recipe.kind != "text":
            check_template(tokenizer.chat_template)
        self.tokenizer = tokenizer
        self.recipe = recipe
        if recipe.finds_responses and recipe.responses:
            _ = self.response_labels  # raises now what it would raise with the first row

    @cached_property
    def markers(self) -> tuple[str, str]:
        """Texts that a question and an answer begin with."""
        return self.recipe.markers or found_markers(self.tokenizer)

    @cached_property
    def response_labels(self) -> Callable[[Batch], Batch]:
        return response_labels(self.tokenizer, *self.markers)

    def __call__(self, texts: Sequence[str]) -> Batch:
        if self.recipe.prompts:  # nothing of them is trained, and all of them are answered
            lengths = [row.length for row in self.sides(texts)[""]]
            return {"length": lengths, "tokens": lengths, "trained": [1] * len(lengths)}
        sides = list(self.sides(texts).values())
        trained = [[side.trained for side in row] for row in zip(*sides, strict=True)]
        made: Batch = {
            "length": [max(side.length for side in row) for row in zip(*sides, strict=True)],
            "tokens": [sum(len(side.ids) for side in row) for row in zip(*sides, strict=True)],
            "trained": [sum(counts) if all(counts) else 0 for counts in trained],  # a side alone says nothing
        }
        if self.recipe.compares:
            return made
        made["input_ids"] = [row.ids for row in sides[0]]
        return made | {"labels": [row.labels for row in sides[0]]} if self.recipe.labels else made

    def sides(self, texts: Sequence[str]) -> dict[str, list[Side]]:
        """The tokens of each row, cut as the recipe says, by the sides of a row: a pair's two, otherwise one."""
        recipe = self.recipe
        rows = [json.loads(text) for text in texts]
        if recipe.kind == "preference":
            made = self._preference(rows)
        else:
            make = "prompt-completion" if recipe.compares else recipe.kind
            made = {"": getattr(self, f"_{make.replace('-', '_')}")(rows)}
        part = slice(None)
        if recipe.cut:
            part = slice(-recipe.limit, None) if recipe.keep == "keep_end" else slice(None, recipe.limit)
        return {
            name: [Side(one[part], own[part], len(one)) for one, own in zip(ids, labels, strict=True)]
            for name, (ids, labels) in made.items()
        }

    def _messages(self, rows: list[Row]) -> tuple[list[list[int]], list[list[int]]]:
        ids = self._chats([row["messages"] for row in rows], rows)
        if not self.recipe.responses and not any(is_left_out(message) for row in rows for message in row["messages"]):
            return ids, ids
        asked = [any(message["role"] == "user" for message in row["messages"]) for row in rows]
        answers = self._answers(ids, asked)
        gone = [_left_out(own, row["messages"]) for own, row in zip(answers, rows, strict=True)]
        labels = [
            own if self.recipe.responses or _leaves_out_asked(row["messages"]) else all_of
            for own, all_of, row in zip(answers, ids, rows, strict=True)
        ]
        return ids, [
            [IGNORED if position in out else label for position, label in enumerate(own)] if out else own
            for own, out in zip(labels, gone, strict=True)
        ]

    def _answers(self, ids: list[list[int]], asked: list[bool]) -> list[list[int]]:
        """Labels of rows, of which only the tokens of answers are trained; raises `ConfigError` where in one that has
        questions (`asked`) these, too, would be, since the marker that they should begin with is another."""
        labels = _lists(self.response_labels({"input_ids": ids})["labels"])
        question, answer = (marker.strip() for marker in self.recipe.markers or ("", ""))
        for one, own, has in zip(ids, labels, asked, strict=True) if question and answer else ():
            text = self.tokenizer.decode(one)
            trained = self.tokenizer.decode([label for label in own if label != IGNORED])
            if question in trained and self._answers_a_question(one, own, question, answer):
                consequence = "has other tokens in a row than by itself: what a user says there would be trained."
                fix = "have each question begin in a line of its own, or rows of chats (messages)"
                raise ConfigError(Problem(key=MARKERS[0], value=question, consequence=consequence, fix=fix))
            if not has or question in text or text.count(answer) < 2:
                continue
            answers = text.partition(answer)[2].replace(answer, "")
            if "".join(trained.split()) == "".join(answers.split()):  # all but the markers
                consequence = "is nowhere in a row of several answers: what a user says between them would be trained."
                fix = "the text that a user's message begins with in the rows' own text: see preview"
                raise ConfigError(Problem(key=MARKERS[0], value=question, consequence=consequence, fix=fix))
        return labels

    def _answers_a_question(self, ids: list[int], labels: list[int], question: str, answer: str) -> bool:
        """Whether a trained part of a row has the marker of questions, and an answer begins right after it: a question
        by other tokens. An answer that only speaks of the marker ends at a question, or with the row."""
        end = 0
        for is_trained, part in groupby(labels, key=lambda label: label != IGNORED):
            start, end = end, end + len(list(part))
            if is_trained and question in self.tokenizer.decode(ids[start:end]):
                if self.tokenizer.decode(ids[end:]).lstrip().startswith(answer):
                    return True
        return False

    def _prompt(self, rows: list[Row]) -> tuple[list[list[int]], list[list[int]]]:
        prompts = self._prompts(rows)
        return prompts, [[IGNORED] * len(ids) for ids in prompts]

    def _text(self, rows: list[Row]) -> tuple[list[list[int]], list[list[int]]]:
        ids = self._texts([self._ended(row["text"]) for row in rows])
        return ids, self._answers(ids, [True] * len(ids)) if self.recipe.responses else ids

    def _prompt_completion(self, rows: list[Row]) -> tuple[list[list[int]], list[list[int]]]:
        whole = self._answered(rows, "completion")
        if not self.recipe.responses:
            return whole, whole
        return whole, _after(map(shared_length, whole, self._prompts(rows)), whole)

    def _preference(self, rows: list[Row]) -> dict[str, tuple[list[list[int]], list[list[int]]]]:
        sides = {side: self._answered(rows, side) for side in SIDES}
        if not self.recipe.responses:  # the score at the last token
            return {side: (whole, _after((len(ids) - 1 for ids in whole), whole)) for side, whole in sides.items()}
        prompts = self._prompts(rows)
        shared = [list(map(shared_length, whole, prompts)) for whole in sides.values()]
        same = list(map(min, *shared))  # as TRL has it: both answers begin at one place
        return {side: (whole, _after(same, whole)) for side, whole in sides.items()}

    def _answered(self, rows: list[Row], answer: str) -> list[list[int]]:
        """Tokens of each row's prompt, where it has one, with the answer in field `answer`."""
        if isinstance(rows[0][answer], list):
            return self._chats([row.get("prompt", []) + row[answer] for row in rows], rows)
        return self._texts([row.get("prompt", "") + self._ended(row[answer]) for row in rows])

    def _prompts(self, rows: list[Row]) -> list[list[int]]:
        """Tokens of each row's prompt, up to where an answer begins."""
        prompts = [row["prompt"] for row in rows]
        if isinstance(prompts[0], list):
            return self._chats(prompts, rows, add_generation_prompt=True)
        return self._texts(prompts)

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

    def _chats(self, chats: list[list[Row]], rows: list[Row], **kwargs: Any) -> list[list[int]]:
        """Tokens of each chat, with the tools and words that its row brings for the template."""
        made: list[list[int]] = []
        # As text: to Python 1, 1.0 and true are equal, and so are mappings in another order, which templates write out.
        key = [json.dumps(template_arguments(row)) for row in rows]
        for words, group in groupby(zip(chats, key, strict=True), key=lambda pair: pair[1]):
            given = json.loads(words)
            try:
                together = self.tokenizer.apply_chat_template(
                    [self._for_template(chat, given) for chat, _ in group],
                    tokenize=True,
                    return_dict=True,
                    tokenizer_kwargs=_QUIET,
                    **kwargs,
                    **given,
                )
            except ConfigError:
                raise
            except Exception as error:  # templates raise what they like: "Conversation roles must alternate"
                consequence = f"the chat template refuses a row: {first_line(error)}."
                fix = "correct the rows (roles in turn, a system message only first), or give another chat template"
                fix = f"other values of {', '.join(given)} (data.chat_template_kwargs); or {fix}" if given else fix
                raise ConfigError(Problem(key="data.path", consequence=consequence, fix=fix)) from None
            made += _lists(together["input_ids"])
        return made

    def _for_template(self, chat: list[Row], given: Row) -> list[Row]:
        """The chat for its template; raises `ConfigError` where that would leave a call of a tool out of the text."""
        if any(message.get("tool_calls") for message in chat) and not _has_place("tool_calls", self.tokenizer, given):
            consequence = "has calls of tools (`tool_calls`), which the model's chat template leaves out of the text."
            fix = "model.chat_template=FILE.jinja with a template that has them, or calls as text in `content`"
            raise ConfigError(Problem(key="data.path", consequence=consequence, fix=fix))
        return for_chat_template(chat)


def notes_on(rows: Rows, tokenizer: Any) -> tuple[str, ...]:
    """Sentences on what of `rows` is not in their tokens: columns, and what the chat template has no place for."""
    lost: Counter[str] = Counter()
    for given in map(template_arguments, rows):
        lost.update(name for name in given if not _has_place(name, tokenizer, given))
    absent = [
        f"{counted(count, 'row')} with {name!r}, which the chat template does not use: it is not in their text."
        for name, count in lost.items()
    ]
    notes = (*rows.notes, rows.unused_in_words(), *absent, _lost_in_words(rows, tokenizer))
    return tuple(note for note in notes if note)


def _lost_in_words(rows: Rows, tokenizer: Any) -> str:
    """Return whose messages the chat template leaves out of the text of the first rows, as a sentence; empty for none.

    A message counts as there where its first letters and digits are: templates trim, and write some as JSON. Raises
    `ConfigError` where no answer is there at all.
    """
    said: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for row in islice(rows, _LOOKED_AT):
        chat = row.get("messages") or ()
        try:
            text = chat and tokenizer.apply_chat_template(
                for_chat_template(chat), tokenize=False, **template_arguments(row)
            )
        except Exception:  # told where it is tokenised
            return ""
        shown = _letters(str(text))
        for message in chat:
            content = str(message.get("content") or "").rpartition("</think>")[2]  # which templates cut off
            begins = _letters(content.strip().partition("\n")[0])[:_TELLING]
            said[message["role"]] += bool(begins)
            lost[message["role"]] += begins not in shown
    if said["assistant"] and lost["assistant"] == said["assistant"]:
        consequence = "the chat template leaves every answer out of the text: none would be trained."
        fix = "a template that writes message['content'], and look at preview"
        raise ConfigError(Problem(key="model.chat_template", consequence=consequence, fix=fix))
    gone = [f"{counted(count, 'message')} of the {role}" for role, count in lost.items() if count]
    return f"the chat template leaves {', '.join(gone)} out of the text of the first rows." if gone else ""


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _has_place(name: str, tokenizer: Any, given: Row) -> bool:
    """Whether the chat template names this; a row may bring another one, a tokenizer may have several by name."""
    template = str(given.get("chat_template") or tokenizer.chat_template)
    return name == "chat_template" or re.search(rf"\b{re.escape(name)}\b", template) is not None


def _leaves_out_asked(messages: list[Row]) -> bool:
    """Whether a message that is not the assistant's is marked as not to be trained: then only answers are."""
    return any(message["role"] != "assistant" and is_left_out(message) for message in messages)


def _left_out(answers: list[int], messages: list[Row]) -> set[int]:
    """Positions of the tokens of those of the assistant's messages in a row that are not to be trained.

    `answers` are labels of which only the assistant's tokens are not `IGNORED`. Raises `ConfigError` where they can't
    be told apart by message.
    """
    said = [message for message in messages if message["role"] == "assistant"]
    if not any(map(is_left_out, said)):
        return set()
    marked = groupby(range(len(answers)), key=lambda position: answers[position] != IGNORED)
    runs = [list(positions) for is_answer, positions in marked if is_answer]
    if len(runs) != len(said):
        consequence = (
            f"a row has messages with weight 0, and of its {len(said)} answers {len(runs)} are found in its tokens: "
            "which of them to leave out is not known."
        )
        fix = "a chat template that marks each answer, or rows that end before such a message"
        raise ConfigError(Problem(key="data.path", consequence=consequence, fix=fix))
    return {position for run, message in zip(runs, said, strict=True) if is_left_out(message) for position in run}


def fingerprint_of(tokenizer: Any, recipe: Recipe) -> str:
    """Return a fingerprint of the tokens that `tokenizer` makes by `recipe`, the same in every process."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    if backend is not None:  # using a tokenizer resets these two
        words = {name: value for name, value in json.loads(words).items() if name not in ("truncation", "padding")}
    said = [words, tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, asdict(recipe)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _after(counts: Iterable[int], rows: list[list[int]]) -> list[list[int]]:
    """Return labels of rows of which so many leading tokens are not trained. A prompt's are those that it has in common
    with prompt and answer: its last token may merge with the answer's first."""
    return [[IGNORED] * count + ids[count:] for count, ids in zip(counts, rows, strict=True)]


def _lists(rows: Any) -> list[list[int]]:
    return [list(row) for row in rows]
