"""Python and YAML in README and docs/ names what there is; commands are checked in test_docs.py."""

import ast
import re
from dataclasses import fields

import pytest
import yaml
from conftest import ROOT

import unsloth_accel
from unsloth_accel.config import field_page
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.config.trainer_fields import training_fields
from unsloth_accel.methods import METHODS

PAGES = [page.relative_to(ROOT).as_posix() for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
NOTEBOOK = "docs/notebook-to-two-gpus.md"


def code(page: str) -> list[ast.Module]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [ast.parse(block) for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)]


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)])
def test_python_on_a_page_uses_what_the_package_has(page: str) -> None:
    for tree in code(page):
        names = {"unsloth_accel"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.asname for alias in node.names if alias.name == "unsloth_accel" and alias.asname}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                assert node.attr in {*unsloth_accel.__all__}, f"{page}: {ast.unparse(node)}"
            if isinstance(node, ast.ImportFrom) and node.module == "unsloth_accel":
                assert {alias.name for alias in node.names} <= {*unsloth_accel.__all__}, page


def test_the_run_yaml_of_the_notebooks_page_has_keys_that_there_are() -> None:
    rows = re.findall(r"^\| (.+) \| (`.+) \|$", (ROOT / NOTEBOOK).read_text(encoding="utf-8"), flags=re.MULTILINE)
    described = [right for _, right in rows if re.match(r"`\w+: [{…]", right)]
    assert len(described) > 5
    sections = {one.name: one for one in fields(RunConfig)}
    for right in described:
        text = right.partition("`")[2].partition("`")[0].replace("[…]", "0").replace("…: …", "").replace("…", "0")
        for name, values in yaml.safe_load(text).items():
            section = sections[name]
            if isinstance(values, dict) and values and name != "training":
                known = {one.name for one in fields(section.default_factory)}  # type: ignore[arg-type]
                assert {*values} <= known, right


def test_the_notebooks_fields_are_those_of_trl() -> None:
    left = [row for row in (ROOT / NOTEBOOK).read_text(encoding="utf-8").splitlines() if row.startswith("| `per_dev")]
    known = training_fields(METHODS["sft"].config_sources)
    named = {name for row in left for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {"per_device_train_batch_size", "gradient_accumulation_steps"} <= {*known}


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == {*re.findall(r"\]\(([\w-]+\.md)\)", index)}


def test_the_page_of_keys_is_what_the_fields_say() -> None:
    assert field_page.page() == (ROOT / "docs" / "run-yaml.md").read_text(encoding="utf-8"), "run make docs"
