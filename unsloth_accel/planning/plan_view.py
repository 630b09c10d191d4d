"""A plan as text, as a rich table, as HTML for notebooks and as JSON."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..config.run_config import KEPT_CHECKPOINTS
from ..errors import counted
from ..methods import USUAL_METHOD

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement

    from .plan import Plan


def as_dict(plan: Plan) -> dict[str, Any]:
    """See `Plan.to_dict`."""
    speed, config = plan.speed, plan.accelerate_config
    return {
        "method": plan.run.method,
        "strategy": plan.strategy,
        "num_processes": plan.num_processes,
        "num_machines": plan.num_machines,
        "device": plan.device,
        "global_batch_size": plan.batch.global_size,
        "per_device_batch_size": plan.batch.per_device,
        "gradient_accumulation_steps": plan.batch.accumulation,
        "mixed_precision": plan.mixed_precision,
        "keep_activations": plan.keep_activations,
        "memory_gib": plan.memory.to_dict() if plan.memory else {},
        "idle_gib": None if plan.idle_gib is None else round(plan.idle_gib, 3),
        "checkpoints": checkpoints(plan),
        "estimated_step_seconds": round(speed.step_seconds, 4) if speed else None,
        "estimated_tokens_per_second": round(speed.tokens_per_second) if speed else None,
        "mean_row_tokens": round(plan.lengths.mean, 1) if plan.lengths else None,
        "run": plan.time.to_dict() if plan.time else None,
        "reasons": list(plan.reasons),
        "rejected": [asdict(option) for option in plan.rejected],
        "accelerate_config": config.to_dict(),
        "launch_flags": list(config.launch_flags),
        "environment": plan.environment,
        "hardware": plan.hardware.to_dict(),
        "model": model(plan),
        "adapter": plan.adapter.name if plan.adapter else None,
    }


def model(plan: Plan) -> dict[str, Any]:
    """Return what is known about the model."""
    spec = plan.spec
    if spec is None:
        return {"name": plan.adapter.base if plan.adapter else plan.run.model.name}
    return {
        "name": spec.name,
        "model_type": spec.model_type,
        "parameters": spec.num_parameters,
        "source": spec.source,
        "decoder_layer_class": spec.decoder_layer_class,
    }


def checkpoints(plan: Plan) -> dict[str, Any] | None:
    """Return what is known about checkpoints by the clock; None where the run has none."""
    run, size = plan.run, plan.checkpoint_gib
    if run.save_minutes is None:
        return None
    kept = run.training.get("save_total_limit", KEPT_CHECKPOINTS)
    return {"save_minutes": run.save_minutes, "kept": kept, "gib_each": None if size is None else round(size, 3)}


def as_text(plan: Plan) -> str:
    """Return the plan as aligned lines, as `launch` prints them."""
    return "\n".join(f"  {name:<10} {text}" for name, text in lines(plan))


def lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the lines of a plan, each a word and its text."""
    yield "hardware", str(plan.hardware)
    if plan.spec:
        yield "model", f"{plan.spec.name}, {_count(plan.spec.num_parameters)} parameters ({plan.spec.source})"
    if plan.adapter:
        yield "adapter", f"{plan.adapter.name}, rank {plan.run.lora.r}, alpha {plan.run.lora.alpha}"
    if plan.run.method != USUAL_METHOD:
        yield "method", plan.run.method
    yield "strategy", plan.strategy
    machines = f" over {plan.num_machines} machines" if plan.num_machines > 1 else ""
    where = "the CPU" if plan.device == "cpu" else "a GPU" if plan.num_processes == 1 else "GPUs"
    yield "processes", f"{plan.num_processes} on {where}{machines}"
    yield "precision", plan.mixed_precision
    yield "batch", str(plan.batch)
    if plan.keep_activations is not None and plan.spec:
        others = plan.spec.num_layers - plan.keep_activations
        again = f", {others} compute them again" if others else ""
        of = f"{plan.keep_activations} of {counted(plan.spec.num_layers, 'block')}"
        yield "kept", f"activations of {of}{again}"
    if plan.memory:
        terms = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in _large(plan.memory.terms))
        where = "process" if plan.device == "cpu" else "GPU"
        yield "memory", f"{plan.memory.total:.1f} GiB per {where}{idle(plan)}: {terms}"
    if plan.speed:
        pace = f"about {plan.speed.tokens_per_second:,.0f} tokens/s, {plan.speed.step_seconds:.2f} s per step"
        yield "speed", f"{pace}{of_rows(plan)}"
    if plan.time:
        yield "run", str(plan.time)
    if found := checkpoints(plan):
        kept = f", the newest {found['kept']} kept" if found["kept"] else ""
        what = "adapter" if plan.run.training.get("save_only_model") else "adapter, optimizer"
        size = f": {_size(plan.checkpoint_gib)} each ({what})" if plan.checkpoint_gib else ""
        yield "saving", f"a checkpoint every {found['save_minutes']:g} minutes{kept}{size}"
    for reason in plan.reasons:
        yield "because", reason
    for option in plan.rejected:
        yield f"not {option.strategy}"[:10] if len(option.strategy) < 7 else "not", _named(option)


def idle(plan: Plan) -> str:
    """Say how much memory stays free."""
    return "" if plan.idle_gib is None else f", {max(plan.idle_gib, 0):.1f} idle"


def of_rows(plan: Plan) -> str:
    """Say for which rows the speed holds."""
    if plan.run.training.get("packing"):
        return ", packed rows"
    if plan.method.generates:
        return ", if all prompts and completions have their full length"
    return f", rows of {plan.lengths}" if plan.lengths else ", if rows are full"


def as_table(plan: Plan) -> Any:
    """Return a table for rich consoles: what was decided, memory term by term, reasons, what was rejected."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold cyan", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in lines(plan):
        if name in ("because", "memory") or name.startswith("not"):
            continue
        facts.add_row(name, Text(text, style="bold" if name == "strategy" else ""))
    parts: list[Any] = [facts]
    if plan.memory:
        title = f"memory per {'process' if plan.device == 'cpu' else 'GPU'}: {plan.memory.total:.1f} GiB{idle(plan)}"
        terms = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        terms.add_column(no_wrap=True)
        terms.add_column(justify="right", no_wrap=True)
        terms.add_column(style="cyan")
        for name, value in plan.memory.terms.items():
            bar = _Bar(value / plan.memory.total, max(plan.memory.terms.values()) / plan.memory.total)
            terms.add_row(name.replace("_", " "), f"{value:.2f}", bar)
        parts += ["", terms]
    reasons = Table.grid(padding=(0, 1))
    reasons.add_column()
    reasons.add_column(overflow="fold")
    for reason in plan.reasons:
        reasons.add_row(" ·", Text(reason))
    parts += ["", Text("because", style="bold"), reasons]
    if plan.rejected:
        rejected = Table(title="rejected", title_justify="left", title_style="bold", box=None, show_header=False)
        rejected.add_column(style="bold yellow", no_wrap=True)
        rejected.add_column(overflow="fold")
        for option in plan.rejected:
            rejected.add_row(option.strategy, Text(option.reason))
        parts += ["", rejected]
    return Group(*parts)


@dataclass(frozen=True)
class _Bar:
    """A bar of at most 30 characters, shorter where the longest of its table finds no room."""

    share: float
    longest: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[str]:
        yield "▇" * round(30 * self.share * min(1.0, options.max_width / max(1, round(30 * self.longest))))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(1, max(1, round(30 * self.share)))


_STYLE = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"


def as_html(plan: Plan) -> str:
    """Return HTML for notebooks, with bars for memory; colours come from the notebook's theme."""
    rows = [_row(n, html.escape(t)) for n, t in lines(plan) if n != "memory" and not n.startswith("not")]
    if plan.memory:
        bars = "".join(
            f"<tr><td style='{_STYLE}'>{html.escape(name.replace('_', ' '))}</td>"
            f"<td style='text-align:right;padding-right:8px'>{value:.2f}</td>"
            f"<td style='text-align:left'><div style='height:0.7em;width:{200 * value / plan.memory.total:.0f}px;"
            "background:#4c8dd6'></div></td></tr>"
            for name, value in plan.memory.terms.items()
        )
        title = f"memory, {plan.memory.total:.1f} GiB per {'process' if plan.device == 'cpu' else 'GPU'}{idle(plan)}"
        rows.append(_row(title, f"<table>{bars}</table>"))
    faint = f"{_STYLE};opacity:0.6"
    rows += [_row(f"not {option.strategy}", html.escape(option.reason), faint) for option in plan.rejected]
    return f"<table>{''.join(rows)}</table>"


def _row(name: str, cell: str, style: str = _STYLE) -> str:
    return f"<tr><th style='{style}'>{html.escape(name)}</th><td style='{style}'>{cell}</td></tr>"


def _large(terms: dict[str, float]) -> list[tuple[str, float]]:
    """Return the terms that matter, largest first."""
    return sorted(((n, v) for n, v in terms.items() if v >= 0.05), key=lambda term: -term[1])


def _named(option: Any) -> str:
    return option.reason if len(option.strategy) < 7 else f"{option.strategy}: {option.reason}"


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.1f} MiB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
