"""docs/environment.md names every variable that the package reads or sets."""

import re

from conftest import ROOT

from unsloth_accel.strategies import STRATEGIES

READ = re.compile(
    r'environ(?:\.\w+\(|\[)\s*"([A-Z][A-Z0-9_]+)"|"([A-Z][A-Z0-9_]+)" (?:not )?in (?:os\.|machine\.)?environ'
)


def used() -> set[str]:
    """The variables by name: what is read or set in an environment, our own, and what strategies set."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "unsloth_accel").rglob("*.py")]
    found = {name for source in sources for pair in READ.findall(source) for name in pair if name}
    found |= {name for source in sources for name in re.findall(r"UNSLOTH_ACCEL_[A-Z]+(?:_[A-Z]+)*", source)}
    found |= {name for source in sources for name in re.findall(r'variables\["([A-Z_]+)"\]', source)}
    for strategy in STRATEGIES:
        found |= {*strategy.environment, *strategy.environment_16_bit, *strategy.process_environment}
    return found


def test_every_variable_is_on_the_page() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    named = {*re.findall(r"`([A-Z][A-Z0-9_]+)(?:=\w+)?`", page)}
    assert len(used()) > 40
    assert used() - named == set()
