"""The tokenizer as a run asks for it: tokens that are added, a chat template of its own, and the marks of its answers.

Templates by name are Unsloth's, and so is what finds the marks: `preview` and the processes ask the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.template_fields import is_template_name
from ..errors import ConfigError, Problem, first_line
from ..files import read_bytes
from .template_limit import syntax_fault

if TYPE_CHECKING:
    from ..config.run_config import RunConfig

_MOST_TEMPLATE = 2**20
"""Largest file of a chat template, in bytes: one has a few kilobytes."""
_MARK_THEM = (
    "data.instruction_marker and data.response_marker, the texts that a user's message and an answer begin with; or "
    "model.chat_template with one that marks them, such as chatml; or data.train_on=all and no message with weight 0"
)


def tokens_to_add(tokenizer: Any, run: RunConfig) -> list[str]:
    """Return those of the run's added tokens that `tokenizer` doesn't have."""
    known = tokenizer.get_vocab() if run.model.added_tokens else {}
    return [token for token in run.model.added_tokens if token not in known]


def choose_template(tokenizer: Any, run: RunConfig) -> Any:
    """Return `tokenizer` with the chat template and the end-of-sequence token that the run names, if it does.

    A template by its name may come with a new tokenizer, in which Unsloth has renamed an unused token to the one that
    ends an answer. Raises `ConfigError` for what can't be read, and for tokens that `tokenizer` has not.
    """
    template, end = run.model.chat_template, run.training.get("eos_token")
    if template and is_template_name(template):
        tokenizer = _by_name(tokenizer, template)
    elif template:
        tokenizer.chat_template = template_of_file(template)
    for name in ("eos_token", "pad_token"):
        token = run.training.get(name)
        if token and token not in tokenizer.get_vocab():
            consequence, fix = "is no token of the model's tokenizer.", "name one of its special tokens, or remove it"
            raise ConfigError(Problem(key=f"training.{name}", value=token, consequence=consequence, fix=fix))
    if end:
        tokenizer.eos_token = end
    return tokenizer


def template_of_file(template: str) -> str:
    """Return the text of a chat template's file; raises `ConfigError` where it can't be read, or isn't Jinja."""
    try:
        text = read_bytes(Path(template).expanduser(), _MOST_TEMPLATE).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise _refused(template, f"can't be read: {first_line(error)}.", "name a .jinja file in UTF-8") from None
    if not text.strip():
        raise _refused(template, "is empty: no chat becomes text by it.", "write the template into it")
    if fault := syntax_fault(text):
        raise _refused(template, f"is no template of Jinja: {fault}.", "correct it there, or name another one")
    return text


def _by_name(tokenizer: Any, name: str) -> Any:
    import unsloth  # noqa: F401  isort: skip  (before transformers, which it patches)
    from unsloth.chat_templates import get_chat_template

    try:
        return get_chat_template(tokenizer, chat_template=name, patch_saving=False)
    except Exception as error:  # a token that it would rename is not there, a tokenizer of another kind
        fix = "the name of this model's family, chatml, or a .jinja file"
        raise _refused(name, f"does not fit the model's tokenizer: {first_line(error)}.", fix) from None


def _refused(template: str, consequence: str, fix: str) -> ConfigError:
    return ConfigError(Problem(key="model.chat_template", value=template, consequence=consequence, fix=fix))


def found_markers(tokenizer: Any) -> tuple[str, str]:
    """Return the texts that a question and an answer begin with, as Unsloth finds them in the chat template.

    Raises `ConfigError` where it finds none. Imports unsloth.
    """
    import unsloth  # noqa: F401  isort: skip  (unsloth_zoo can't be imported before)

    try:
        from unsloth_zoo.dataset_utils import get_chat_template_parts

        found: tuple[str, str] = get_chat_template_parts(tokenizer)
        fault = "" if found[0].strip() != found[1].strip() else f"all messages begin alike, with {found[1]!r}"
    except Exception as error:  # it raises several kinds, all about the template
        found, fault = ("", ""), first_line(error)
    if fault:
        consequence = f"the chat template does not tell where a response begins: {fault}."
        raise ConfigError(Problem(key="data.train_on", value="responses", consequence=consequence, fix=_MARK_THEM))
    return found


def response_labels(tokenizer: Any, instruction: str, response: str) -> Callable[[Any], Any]:
    """Return Unsloth's function from `input_ids` to `labels`, in lists, of which only the tokens of answers are not
    -100: those from `response` to the next `instruction`.

    Raises `ConfigError` where a marker has no tokens that can be found. Imports unsloth.
    """
    import unsloth  # noqa: F401  isort: skip  (unsloth_zoo can't be imported before)
    from unsloth_zoo.dataset_utils import train_on_responses_only

    try:
        found: Callable[[Any], Any] = train_on_responses_only(
            None, tokenizer=tokenizer, instruction_part=instruction, response_part=response, return_function=True
        )
    except Exception as error:
        consequence = f"no answer can be found by {json.dumps(response, ensure_ascii=False)}: {first_line(error)}."
        key, fix = "data.response_marker", "texts that stand before the messages in the rows' own text: see preview"
        raise ConfigError(Problem(key=key, value=response, consequence=consequence, fix=fix)) from None
    return found
