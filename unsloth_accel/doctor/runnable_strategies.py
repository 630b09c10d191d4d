"""Check of what the installed versions can do: names looked for in their files (`unsloth_accel.capabilities.probe`)."""

from __future__ import annotations

from collections.abc import Iterator

from ..capabilities.probe import Capabilities, probe
from ..errors import ConfigError
from ..methods import METHODS
from ..models.architectures import ARCHITECTURES
from ..registry import PLUGINS
from ..strategies import STRATEGIES
from .machine import Machine
from .result import Result, error, warning


def capabilities(machine: Machine) -> Iterator[Result]:
    """The strategies that the installed versions can run, and what each missing piece costs."""
    found = probe(machine.packages.search_path)
    if "unsloth" not in found.versions:
        return  # already an error of the check of Unsloth
    yield from results(found, "cpu" if machine.without_gpu else "cuda")


def results(found: Capabilities, device: str) -> Iterator[Result]:
    """One line on strategies, and one for each missing piece that matters on `device`."""
    can = found.strategies(device)
    lost = [one.name for one in STRATEGIES if one.name not in can and (one.runs_on_cpu or device != "cpu")]
    cannot = f"; not {', '.join(lost)}" if lost else ""
    detail = f"unsloth {found.versions['unsloth']} can run {', '.join(can) or 'no strategy'}{cannot}"
    yield Result(name="capabilities", detail=detail)
    files = {one.place for one in found.missing}
    for one in found.missing:
        # Where a whole file is missed and its line says so, the names inside are not worth more lines.
        if (one.only == "cpu" and device != "cpu") or one.place.partition(":")[0] in files - {one.place}:
            continue
        # What the adapters mend costs nothing, and a missing package has its own line among the versions.
        harmless = one.missing == "mend" or one.package not in found.versions
        detail = found.sentence(one) + ("; what needs it is refused" if one.missing == "refuse" else "")
        yield Result(name=one.what, detail=detail) if harmless else warning(one.what, detail, one.fix)


def added(machine: Machine) -> Iterator[Result]:
    """The strategies, methods and model families that UNSLOTH_ACCEL_PLUGINS adds."""
    try:
        kinds = [kind for kind in (STRATEGIES, METHODS, ARCHITECTURES) if kind.names]
        found = [f"{kind.key} {name}" for kind in kinds for name in kind.added]
    except ConfigError as refused:
        yield error(PLUGINS, refused.problems[0].consequence, refused.problems[0].fix)
        return
    if found:
        yield Result(name=PLUGINS, detail=f"adds {', '.join(found)}")
