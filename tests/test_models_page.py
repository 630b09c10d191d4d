"""docs/models.md, and how much of Unsloth's mapper is planned."""

import json
import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conftest import ROOT
from other_models import FUSED, TOWERS_TRAINED, TRAINED_ALONE

from benchmarks import models_page
from benchmarks.random_checkpoint import FAMILIES


def mapper() -> list[str]:
    """The names of Unsloth's own table, one for each entry."""
    package = find_spec("unsloth")
    assert package is not None
    assert package.origin is not None
    found: dict[str, Any] = runpy.run_path(str(Path(package.origin).parent / "models" / "mapper.py"))
    return [*found["__INT_TO_FLOAT_MAPPER"]]


def test_nearly_all_of_unsloths_mapper_is_planned() -> None:
    missing = [name for name in mapper() if not models_page.planned(models_page.family_of(name))]
    share = 1 - len(missing) / len(mapper())
    print(f"{share:.1%} of {len(mapper())}; not: {', '.join(missing)}")
    assert share >= 0.95, missing


def test_every_pattern_of_a_name_fits_one() -> None:
    names = [name.lower().rpartition("/")[2] for name in mapper()]
    assert [pattern for pattern, _ in models_page.NAMES if not any(re.search(pattern, name) for name in names)] == []


def test_what_is_said_to_be_trained_on_a_cpu_is_what_tests_train() -> None:
    by_ddp = {values["model_type"] for values in FAMILIES.values()}
    expected = {
        **dict.fromkeys(TRAINED_ALONE, ("single",)),
        **dict.fromkeys(by_ddp, ("single", "ddp")),
        **dict.fromkeys(FUSED, ("single", "ddp", "fsdp2_native")),
        **{name: ("single", strategy) for name, strategy in TOWERS_TRAINED.items()},
    }
    assert expected == models_page.ON_CPU


def test_a_check_without_compiling_does_not_hide_one_that_failed() -> None:
    failed, passed = ({"ok": ok, "gpu": "NVIDIA H200", "figures": {}} for ok in (False, True))
    checks = {"family-qwen3_vl-ddp": failed, "family-qwen3_vl-ddp-eager": passed, "family-lfm2-ddp-eager": passed}
    for ordered in (checks, dict(reversed(checks.items()))):
        found = models_page.on_gpus({"checks": ordered})
        assert (found["qwen3_vl"]["ddp"], found["lfm2"]["ddp"]) == ("failed, H200", "yes, H200")


def test_the_page_is_what_the_results_say() -> None:
    report = json.loads((ROOT / models_page.RESULTS).read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == models_page.page(report)
    assert "| gemma3_text | exact | single, ddp | yes, H100 | yes, H100 | yes, H100 |  |" in models_page.page(report)


def test_the_column_of_4_bit_is_of_the_checks() -> None:
    figures = {"ddp": {}, "fsdp2": {}}
    checks = {
        "verify-4bit": {"ok": True, "gpu": "NVIDIA H200", "figures": figures},
        "family-qwen3-4bit": {"ok": False, "gpu": "NVIDIA H100", "figures": figures},
        "saving-fsdp2-4bit": {"ok": True, "gpu": "NVIDIA H200", "figures": {"equal": []}},
    }
    assert models_page.in_4_bit({"checks": checks}) == {"llama": "ddp, fsdp2: H200", "qwen3": "failed: H100"}
