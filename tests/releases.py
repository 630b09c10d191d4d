"""Releases of Unsloth by their files' and functions' names, as if installed."""

import json
from pathlib import Path
from typing import Any

from conftest import ROOT

from unsloth_accel.capabilities.patches import PATCHES
from unsloth_accel.capabilities.probe import Capabilities, probe

RELEASES: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests" / "fixtures" / "unsloth_versions.json").read_text(encoding="utf-8")
)
NEWEST, OLDER = "2026.10.9", ["2025.12.10", "2026.8.22", "2026.9.14"]
UNSLOTH = [one for one in PATCHES if {place.partition("/")[0] for place in one.places} <= {"unsloth", "unsloth_zoo"}]


def install(directory: Path, version: str, *, without: str = "") -> list[str]:
    """A directory with the files and names of a release, less those of the file `without`, as if installed there."""
    release = RELEASES[version]
    for path, names in release["files"].items():
        if path != without:
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"def {name}(): ...\n" for name in names), encoding="utf-8")
    for name, installed in (("unsloth", version), ("unsloth_zoo", release["unsloth_zoo"])):
        info = directory / f"{name}-{installed}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {installed}\n", encoding="utf-8")
    return [str(directory)]


def looked(directory: Path, version: str, **changes: str) -> Capabilities:
    return probe(install(directory, version, **changes), UNSLOTH)
