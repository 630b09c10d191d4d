"""The rows of a run as the model will see them, without the model: what `unsloth-accel preview` shows."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..config.run_config import DEFAULT_PER_DEVICE
from ..config.start_adapter import tokenizer_of_model
from ..config.template_fields import is_template_name
from ..errors import ConfigError, Problem, as_word, first_line, raise_errors
from ..models.hub_access import HUB_TIMEOUT
from ..models.locate import is_cached, may_be_hub_id, unreachable
from .answer_end import unending_answers
from .chat_template import choose_template, tokens_to_add
from .hub import access_problems
from .length_statistics import Lengths, lengths_of
from .mix import mix_warnings, run_rows
from .prompts import NESTED
from .sources import locate
from .tokenise import IGNORED, Recipe, Side, Tokenise, notes_on

if TYPE_CHECKING:
    from ..config.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class PreviewedRow:
    """One row, or one side of a pair."""

    place: str
    side: str
    """`chosen` or `rejected`; of an answer with a label that one; empty otherwise."""
    parts: tuple[tuple[str, bool], ...]
    """Text of adjacent tokens that are alike, and whether they are trained; special tokens included."""
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    length: int
    """Length in tokens, before truncation."""
    trained: int
    columns: tuple[str, ...] = ()
    """Columns beside a prompt, which rewards may read."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    kind: str
    rows: tuple[PreviewedRow, ...]
    limit: int
    lengths: Lengths
    """Lengths of the rows; of pairs, of both their sides."""
    trained: float
    """Share of the tokens that are trained."""
    empty: int
    """Rows with nothing to learn."""
    batch: int
    """Number of rows that would be padded together."""
    whole: bool
    """Whether all rows were looked at."""
    notes: tuple[str, ...] = ()
    """Sentences on what of the rows is left out."""
    markers: tuple[str, str] | None = None
    """Texts that a question and an answer begin with, by which answers are found; None where none is looked for."""
    sources: dict[str, int] = field(default_factory=dict)
    """Number of rows from each source of a mix."""
    warnings: tuple[str, ...] = ()
    answered: bool = False
    """Whether rows are prompts, to which the model writes the answers."""

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["lengths"] |= {"rows_each": round(self.lengths.rows_each, 2)}
        return values


def preview_rows(run: RunConfig, shown: int, most: int) -> Preview:
    """The first `shown` rows of a run, and figures of the first `most`; loads the model's tokenizer only.

    Raises `ConfigError` for bad rows, and for a tokenizer that can't be loaded or has no chat template.
    """
    problems = _data_problems(run)
    try:
        _is_local(tokenizer_of_model(run.model.name))
    except ConfigError as error:
        problems = [*error.problems, *problems]
    raise_errors(problems)
    streaming = run.data.streaming
    rows = run_rows(run, most=None if run.data.mix and not streaming else most + 1, streaming=streaming)
    whole = len(rows) <= most
    recipe = Recipe.of(run, rows.kind, weighted=bool(rows.weighted))
    if recipe.finds_responses:
        import unsloth  # noqa: F401  (before transformers, which it patches)
    tokenizer = tokenizer_of(run)
    tokenise = Tokenise(tokenizer, recipe)
    lengths: list[int] = []
    trained: list[int] = []
    kept = 0
    first: list[PreviewedRow] = []
    for start in range(0, min(most, len(rows)), 1000):
        sides = tokenise.sides(rows.texts[start : min(start + 1000, most)])
        for index, row in enumerate(zip(*sides.values(), strict=True), start=start):
            lengths += [side.length for side in row]
            trained.append(sum(side.trained for side in row) if all(side.trained for side in row) else 0)
            kept += sum(len(side.ids) for side in row)
            if index < shown:
                label = json.loads(rows.texts[index]).get("label")
                names = sides if label is None else [f"label {as_word(label)}"]
                beside = tuple(json.loads(rows.texts[index]).get(NESTED, ()))
                first += [
                    replace(_shown(side, name, rows.place(index), tokenizer), columns=beside)
                    for name, side in zip(names, row, strict=True)
                ]
    unending = unending_answers(run, tokenizer)
    size = run.training.get("per_device_train_batch_size") or DEFAULT_PER_DEVICE
    return Preview(
        kind=rows.kind,
        rows=tuple(first),
        limit=recipe.limit,
        lengths=lengths_of(lengths, recipe.limit, size * (len(lengths) // len(trained))),
        trained=sum(trained) / kept if kept else 0.0,
        empty=0 if recipe.prompts else sum(not count for count in trained),
        answered=recipe.prompts,
        batch=size,
        whole=whole,
        notes=notes_on(rows, tokenizer),
        markers=tokenise.markers if recipe.finds_responses else None,
        sources=rows.sources,
        warnings=tuple(str(one) for one in (*mix_warnings(run.data), unending) if one),
    )


def _data_problems(run: RunConfig) -> list[Problem]:
    hubs = [(key, source, locate(source.path, key).hub) for key, source in run.data.sources.items()]
    return [problem for key, source, hub in hubs if hub for problem in access_problems(hub, key, source)]


def _is_local(name: str) -> bool:
    """Return whether the tokenizer `name` must do without the Hub; raises `ConfigError` where it can't."""
    if not may_be_hub_id(name):
        return False
    cached = is_cached(name, tokenizer_only=True)
    problem = unreachable(name, seconds=HUB_TIMEOUT if cached else None)
    raise_errors([problem] if problem and not cached else [])
    return cached and problem is not None


def tokenizer_of(run: RunConfig) -> Any:
    """The tokenizer of the run's model, as the run asks for it; raises `ConfigError` with why it can't be had."""
    if run.model.chat_template and is_template_name(run.model.chat_template):
        import unsloth  # noqa: F401  (before transformers, which it patches)
    name = tokenizer_of_model(run.model.name)
    local = _is_local(name)
    from transformers import AutoTokenizer

    try:
        # Where nobody answers, it would ask again and again for files that a tokenizer need not have.
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=run.model.trust_remote_code, local_files_only=local
        )
    except Exception as error:  # of the hub, the network or the files
        consequence = f"its tokenizer can't be loaded: {type(error).__name__}: {first_line(error)[:300]}."
        fix = "give a directory or hub id that has tokenizer files"
        raise ConfigError(Problem(key="model.name", value=run.model.name, consequence=consequence, fix=fix)) from None
    tokenizer.add_tokens(tokens_to_add(tokenizer, run))
    return choose_template(tokenizer, run)


def _shown(side: Side, name: str, place: str, tokenizer: Any) -> PreviewedRow:
    # Runs, since one letter may be of several tokens; the first token is trained by nothing before it.
    marked = [(token, label != IGNORED) for token, label in zip(side.ids, [IGNORED, *side.labels[1:]], strict=False)]
    parts = []
    for trains, group in itertools.groupby(marked, key=lambda pair: pair[1]):
        parts.append((tokenizer.decode([token for token, _ in group], skip_special_tokens=False), trains))
    return PreviewedRow(
        place=place,
        side=name,
        parts=tuple(parts),
        ids=tuple(side.ids),
        labels=tuple(side.labels),
        length=side.length,
        trained=side.trained,
    )
