"""Templates that don't end are told of, in time; those that do, however they end, are nobody's business here."""

from pathlib import Path

import pytest
from conftest import ROOT
from processor_time import seconds_of_children
from row_files import CHAT, write

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.data import template_limit
from unsloth_accel.data.preview import preview_rows
from unsloth_accel.data.template_limit import check_template
from unsloth_accel.errors import ConfigError

LOOP = "{% for a in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ raise_exception('Conversation roles must alternate') }}",
        "{%- generation -%}{{ strftime_now('%Y') }}{% endgeneration %}{% break %}",
        "{{ no_such_thing.x }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_what_ends(template: str | None) -> None:
    check_template(template)


@pytest.mark.parametrize("template", [LOOP, "{{ 9 ** (9 ** 9) }}"])
def test_what_loops_for_ever(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(template_limit, "SECONDS", 1.0)
    before = seconds_of_children()
    with pytest.raises(ConfigError, match=r"takes more than 1 s for two short messages.*FILE\.jinja"):
        check_template(template)
    assert seconds_of_children() - before < 5


def test_a_preview_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(template_limit, "SECONDS", 1.0)
    template = tmp_path / "t.jinja"
    values = {
        "model": {"name": str(ROOT / "models" / "SmolLM2-135M-Instruct")},
        "data": {"path": str(write(tmp_path / "rows.jsonl", [CHAT]))},
        "training": {"chat_template_path": str(template)},
        "output_dir": "-",
    }
    template.write_text(LOOP)
    with pytest.raises(ConfigError, match="may loop for ever"):
        preview_rows(from_dict(values), 1, 1)
    template.write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"model.chat_template=.*can't be read: .*Fix: name a \.jinja file in UTF-8"):
        preview_rows(from_dict(values), 1, 1)
