"""The rule about logging.report_to: reporters that the Trainer knows, and whose package is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from ...config.installed_source import table
from .document import Document, Finding, Repair
from .rule_registry import rule
from .run_words import word_fix

_MODULES = {
    "azure_ml": ("azureml",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""Modules of which a reporter needs one; any other needs the module of its name."""
_PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Packages of another name than the reporter's."""
_MEANT = {"weights_and_biases": "wandb", "comet": "comet_ml", "azureml": "azure_ml", "tb": "tensorboard"}
KEY = "logging.report_to"


@rule("run-reporter", on=("run",))
def run_reporter(config: Document) -> Iterator[Finding]:
    """A tracker that the Trainer doesn't know, or whose package isn't installed: every process fails once the model is
    loaded.

    Reference: transformers/integrations/integration_utils.py: get_reporting_integration_callbacks, "is not supported,
    only", "WandbCallback requires wandb to be installed".
    """
    said = config.get(KEY, "none")
    words = said if isinstance(said, list) else [said]
    if words in (["none"], ["all"]):
        return
    known = table("transformers/integrations/integration_utils.py:INTEGRATION_TO_CALLBACK")
    for word in words:
        if not isinstance(word, str) or "${" in word or not known:
            continue  # told by the reader
        if word not in known:
            near = _MEANT.get(word.lower())
            fix, near = (f"did you mean {near}?", near) if near else word_fix(word, (*known, "none", "all"))
            package = _lacking(near) if near else None
            more = f" Then also: pip install {package}" if package else ""
            repair = Repair(kind="set", key=KEY, value=None if more or said != word else near)
            consequence = f"the Trainer knows no reporter {word!r}; every process fails."
            yield config.problem(KEY, consequence, f"{fix}{more}", repair)
        elif package := _lacking(word):
            consequence = f"{word} needs the package {package}, which is not installed: every process fails."
            yield config.problem(KEY, consequence, f"{KEY}: none, or pip install {package}")


def _lacking(reporter: str) -> str | None:
    """Return the package that a reporter needs and that isn't installed."""
    modules = _MODULES.get(reporter, (reporter,))
    if not modules or reporter in ("none", "all") or any(importlib.util.find_spec(module) for module in modules):
        return None
    return _PACKAGES.get(reporter, reporter)
