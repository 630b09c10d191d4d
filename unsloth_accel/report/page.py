"""The page of one run: its figures put in order, and the template that shows them."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .. import __version__
from . import memory_chart, messages, numbers
from .charts import Bar, Segment, bars, line_chart
from .figures import PARTS, Figures, column, figures, memory, shares, throughput
from .recorded import Recorded, at, number, rows, text

_TEMPLATES = Path(__file__).parent / "templates"
_COLOURS = {"compute": "c1", "data": "c2", "wait": "c5"}


def page(run: Recorded) -> str:
    """The whole page as HTML."""
    found = figures(run)
    on_cpu = found.device == "cpu"
    predicted, measured = at(run.plan, "memory_gib") or {}, memory(run)
    shown = messages.grouped(run.messages)
    return rendered(
        "run.html",
        title=f"{short_name(found.model)} · {run.directory.absolute().name}",
        run=run,
        found=found,
        name=short_name(found.model).rpartition("/"),
        ended=numbers.moment(found.finished),
        facts=headline(run, found),
        cards=cards(found),
        problems=messages.problems(found.message),
        messages=shown[: messages.MOST],
        more_messages=max(0, len(shown) - messages.MOST),
        stragglers=_stragglers(run),
        charts=training_charts(run),
        speed=speed_charts(run),
        shares=shares_chart(run),
        mfu=_mfu(found),
        memory=memory_chart.chart(predicted, measured, on_cpu=on_cpu, of_gib=_smallest(run)),
        memory_verdict=memory_chart.verdict(predicted, measured, on_cpu=on_cpu),
        terms=[(name.replace("_", " "), number(value)) for name, value in predicted.items()],
        answers=answers(run),
        plan=run.plan,
        batch=_batch(run),
        loading=loading(run),
        ranks=[(rank.number, rank.start, rank.phases) for rank in run.ranks],
        phases=_phases(run),
        versions=at(run.results, "versions") or next((r.start.get("versions") for r in run.ranks), None) or {},
        hardware=_hardware(run),
    )


def rendered(template: str, **values: Any) -> str:
    """A template with the page's style and script, which are all it may use."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "figure": numbers.figure,
        "gib": numbers.gib,
        "percent": numbers.percent,
        "duration": numbers.duration,
    }
    style, script = (Markup((_TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    made = numbers.moment(time.time())
    return environment.get_template(template).render(
        style=style, script=script, script_hash=digest, version=__version__, made=made, **values
    )


def short_name(model: str) -> str:
    """A hub id as it is, a directory's last part."""
    path = Path(model)
    return path.name if path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2 else model or "a run"


def headline(run: Recorded, found: Figures) -> list[str]:
    """What ran where, in a few words each."""
    batch = at(run.plan, "global_batch_size") or at(run.run, "batch", "global_size")
    precision = at(run.plan, "mixed_precision")
    facts = [found.strategy, found.where]
    facts += [f"{batch} rows per step"] if batch else []
    facts += ["fp32" if precision == "no" else text(precision)] if precision else []
    facts += ["4-bit base"] if at(run.run, "model", "load_in_4bit") else []
    facts += [f"trained in {numbers.count(run.attempts, 'part')}"] if run.attempts > 1 else []
    return [fact for fact in facts if fact]


def cards(found: Figures) -> list[tuple[str, str, str]]:
    """The key figures: a name, the figure, and what it means."""
    made = []
    if found.loss_first is not None and found.loss_last is not None:
        over = f"mean of the first and last {found.loss_over} logged steps" if found.loss_over > 1 else "first and last step"
        made.append(("training loss", f"{numbers.figure(found.loss_first, 3)} → {numbers.figure(found.loss_last, 3)}", over))
    before, after = found.held_loss
    if after is not None:
        start = f"{numbers.figure(before, 3)} → " if before is not None else ""
        made.append(("held-out loss", f"{start}{numbers.figure(after, 3)}", "before and after training" if start else "after training"))
    before, after = found.held_accuracy
    if after is not None:
        start = f"{numbers.percent(before)} → " if before is not None else ""
        many = f"of {found.held_rows} held-out answers" if found.held_rows else "of held-out answers"
        made.append(("exact match", f"{start}{numbers.percent(after)}", many))
    if found.tokens_per_second is not None:
        each = found.tokens_per_second_per_gpu
        unit = "GPU" if found.device == "cuda" else "process"
        per = f"{numbers.figure(each)} per {unit}" if each is not None and found.processes > 1 else "real tokens, padding left out"
        mfu = f", MFU {numbers.percent(found.mfu)}" if found.mfu is not None else ""
        made.append(("tokens per second", numbers.figure(found.tokens_per_second), per + mfu))
    if found.seconds is not None:
        each = f", {numbers.figure(found.step_seconds, 3)} s each" if found.step_seconds is not None else ""
        made.append(("training time", numbers.duration(found.seconds), numbers.count(found.steps, "step") + each))
    if found.peak_gib is not None:
        made.append(("peak memory", numbers.gib(found.peak_gib), "allocated by torch, per GPU"))
    return made


def training_charts(run: Recorded) -> list[Markup]:
    """Loss first, then what explains it; those of which nothing was logged are left out."""
    loss = column(run.steps, "loss", "training")
    held = _held_out(run)
    over = len(loss.xs) // 20 if len(loss.xs) >= 100 else 0
    note = f"Every logged step, and the running mean of {over}." if over > 1 else ""
    made = [
        line_chart("Loss", [loss], dots=[held], note=note, mean_of=over),
        line_chart("Learning rate", [column(run.steps, "learning_rate", "learning rate")], from_zero=True),
        line_chart("Gradient norm", [column(run.steps, "grad_norm", "gradient norm")], from_zero=True, mean_of=over),
    ]
    return [chart for chart in made if chart]


def _held_out(run: Recorded) -> Any:
    """Held-out loss at every evaluation, before and after training included."""
    before, after = (number(at(run.results, when, "loss")) for when in ("before", "after"))
    lines: dict[float, float] = {} if before is None else {0.0: before}
    for line in run.evaluations:
        value = number(line.get("eval_loss"))
        if value is not None:
            lines[float(line["step"])] = value
    if after is not None and run.steps:
        lines[float(run.steps[-1]["step"])] = after
    return column([{"step": step, "loss": loss} for step, loss in lines.items()], "loss", "held-out")


def speed_charts(run: Recorded) -> list[Markup]:
    speed = throughput(run)
    over = len(speed.xs) // 20 if len(speed.xs) >= 100 else 0
    note = "All ranks together, padding left out" + (f"; the bold line is the running mean of {over} steps." if over > 1 else ".")
    chart = line_chart("Tokens per second", [speed], note=note, from_zero=True, mean_of=over)
    return [chart] if chart else []


def shares_chart(run: Recorded) -> Markup:
    drawn = [
        Bar(
            f"rank {share.rank}",
            tuple(Segment(part, share.parts[part], _COLOURS[part], numbers.percent(share.parts[part])) for part in PARTS),
            f"{numbers.figure(share.seconds, 3)} s",
        )
        for share in shares(run)
    ]
    note = "compute on the rank itself, waiting for rows (data), waiting for the other ranks (wait); at the end, its median step"
    return bars("Where a step's time goes", drawn, note=note, whole=1.0)


def answers(run: Recorded) -> list[dict[str, Any]]:
    """Sample answers to held-out questions, before and after."""
    old, new = (
        [one for one in rows(at(run.results, when, "answers")) if isinstance(one, dict)] for when in ("before", "after")
    )
    return [
        {**one, "before": old[index].get("answer") if index < len(old) else None} for index, one in enumerate(new)
    ]


def loading(run: Recorded) -> dict[str, Any]:
    """Code that loads what the run made, and what else can be done with it."""
    adapter = run.adapter or run.checkpoint
    facts = {
        "adapter": text(adapter) if adapter else "",
        "is_checkpoint": run.adapter is None and run.checkpoint is not None,
        "length": at(run.run, "model", "max_seq_length") or 2048,
        "in_4bit": bool(at(run.run, "model", "load_in_4bit")),
    }
    if not adapter:
        return facts
    path = str(adapter)
    facts["unsloth"] = (
        "from unsloth import FastLanguageModel\n\n"
        "model, tokenizer = FastLanguageModel.from_pretrained(\n"
        f"    {path!r},\n    max_seq_length={facts['length']},\n    load_in_4bit={facts['in_4bit']},\n)\n"
        "FastLanguageModel.for_inference(model)"
    )
    facts["peft"] = (
        "from peft import AutoPeftModelForCausalLM\n\n"
        f"model = AutoPeftModelForCausalLM.from_pretrained({path!r})"
    )
    import shlex

    facts["merge"] = f"unsloth-accel merge {shlex.quote(str(run.directory if run.adapter else adapter))}"
    facts["resume"] = f"unsloth-accel launch {shlex.quote(str(run.directory / 'run.yaml'))} training.resume=true"
    return facts


def _batch(run: Recorded) -> list[tuple[str, str]]:
    """The factors of the global batch, and their product."""
    per_device = at(run.plan, "per_device_batch_size") or at(run.run, "training", "per_device_train_batch_size")
    accumulation = at(run.plan, "gradient_accumulation_steps") or at(run.run, "training", "gradient_accumulation_steps")
    processes = at(run.plan, "num_processes") or at(run.run, "distributed", "num_processes")
    product = at(run.plan, "global_batch_size") or at(run.run, "batch", "global_size")
    if not all((per_device, accumulation, processes, product)):
        return []
    return [
        (text(per_device), "rows per device"),
        (text(accumulation), "accumulation"),
        (text(processes), "processes"),
        (text(product), "rows per step"),
    ]


def _smallest(run: Recorded) -> float | None:
    sizes = [number(at(device, "memory_gib")) for device in at(run.plan, "hardware", "devices") or []]
    return min((size for size in sizes if size is not None), default=None)


def _mfu(found: Figures) -> str:
    if found.mfu is not None:
        return f"Model FLOPs utilisation {numbers.percent(found.mfu, 1)}. {found.mfu_why}"
    return f"No model FLOPs utilisation: {found.mfu_why}" if found.mfu_why else ""


def _stragglers(run: Recorded) -> list[dict[str, Any]]:
    """Slow ranks that no warning tells of."""
    told = [text(line.get("rank")) for line in run.messages if "straggler" in text(line.get("source"))]
    told += [text(line.get("slow_rank")) for line in run.messages]
    found = [one for one in rows(run.summary.get("stragglers")) if isinstance(one, dict)]
    return [{**one, "steps": messages.steps(one.get("steps"))} for one in found if text(one.get("rank")) not in told]


def _phases(run: Recorded) -> list[tuple[str, str]]:
    """How long each phase took on the slowest rank."""
    longest: dict[str, float] = {}
    for rank in run.ranks:
        for phase in rank.phases:
            name = text(phase.get("name"))
            longest[name] = max(longest.get(name, 0.0), number(phase.get("seconds")) or 0.0)
    return [(name, numbers.duration(seconds)) for name, seconds in longest.items() if name]


def _hardware(run: Recorded) -> list[tuple[str, str]]:
    """The machine as the plan saw it, and each rank's place in it."""
    hardware = at(run.plan, "hardware") or {}
    facts = []
    cores, host = number(at(hardware, "cpu_cores")), number(at(hardware, "host_memory_gib"))
    if cores is not None:
        facts.append(("host", f"{cores:.0f} cores" + (f", {numbers.gib(host)}" if host is not None else "")))
    if at(hardware, "link"):
        facts.append(("link", text(hardware["link"])))
    if at(hardware, "reason"):
        facts.append(("found by", text(hardware["reason"])))
    facts += [(f"rank {rank.number}", _place(rank.start)) for rank in run.ranks if rank.start]
    if not run.ranks:
        devices: Iterable[Any] = at(hardware, "devices") or []
        facts += [
            (f"GPU {text(at(device, 'index'))}", f"{text(at(device, 'name'))}, {numbers.gib(number(at(device, 'memory_gib')))}")
            for device in devices
        ]
    return facts


def _place(start: dict[str, Any]) -> str:
    return ", ".join(part for part in (text(start.get("device")), text(start.get("host"))) if part)
