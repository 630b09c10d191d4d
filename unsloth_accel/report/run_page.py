"""The page of one run: its figures put in order, and the template that shows them."""

from __future__ import annotations

from typing import Any

from . import curves, failure, memory_chart, messages, numbers, run_context
from .figures import figures, memory_by_rank
from .headline import cards, facts, short_name
from .rendering import rendered
from .run_record import Recorded, at, number, rows, table, tables, text, values


def page_of_run(run: Recorded) -> str:
    """The whole page as HTML."""
    found = figures(run)
    on_cpu = found.device == "cpu"
    predicted, measured = table(at(run.plan, "memory_gib")), memory_by_rank(run)
    shown = messages.grouped(run.messages)
    return rendered(
        "run.html",
        title=f"{short_name(found.model)} · {run.directory.absolute().name}",
        run=run,
        found=found,
        name=short_name(found.model).rpartition("/"),
        ended=numbers.moment(found.finished),
        facts=facts(run, found),
        cards=list(cards(found)),
        problems=messages.problems(found.message),
        failure=failure.failure(run),
        messages=shown[: messages.MOST],
        more_messages=max(0, len(shown) - messages.MOST),
        stragglers=_stragglers(run),
        charts=curves.training(run),
        speed=curves.speed(run),
        shares=curves.step_time(run),
        memory=memory_chart.chart(predicted, measured, on_cpu=on_cpu, of_gib=_smallest(run)),
        rehearsed=text(at(run.results, "rehearsal", "told")),
        memory_verdict=memory_chart.verdict(predicted, measured, on_cpu=on_cpu),
        terms=[(name.replace("_", " "), number(value)) for name, value in predicted.items()],
        answers=answers(run),
        completions=completions(run),
        plan=_plan(run),
        batch=run_context.batch(run),
        data=run_context.data(run),
        loading=run_context.loading(run),
        phases=run_context.phases(run),
        versions=run_context.versions(run),
        hardware=run_context.hardware(run),
    )


def answers(run: Recorded) -> list[dict[str, Any]]:
    """Sample answers to held-out questions, before and after."""
    old, new = (tables(at(run.results, when, "answers")) for when in ("before", "after"))
    return [{**one, "before": old[index].get("answer") if index < len(old) else None} for index, one in enumerate(new)]


def completions(run: Recorded) -> list[dict[str, Any]]:
    """Completions of the first and the last log that has some, with the rewards of each."""
    steps = sorted({step for line in run.completions if (step := number(line.get("step"))) is not None})
    shown = dict.fromkeys((*steps[:1], *steps[-1:]))
    return [
        {
            "step": f"{step:g}",
            "prompt": text(line.get("prompt")),
            "completion": text(line.get("completion")),
            "rewards": [(name, numbers.figure(number(one), 3)) for name, one in table(line.get("rewards")).items()],
        }
        for step in shown
        for line in run.completions
        if line.get("step") == step
    ]


def _plan(run: Recorded) -> dict[str, Any]:
    """Return what the template shows of plan.json, in the types that it needs."""
    return {
        "reasons": [text(reason) for reason in rows(at(run.plan, "reasons"))],
        "rejected": tables(at(run.plan, "rejected")),
        "environment": table(at(run.plan, "environment")),
        "tokens_per_second": number(at(run.plan, "estimated_tokens_per_second")),
    }


def _smallest(run: Recorded) -> float | None:
    return min(values(rows(at(run.plan, "hardware", "devices")), "memory_gib"), default=None)


def _stragglers(run: Recorded) -> list[dict[str, Any]]:
    """Slow ranks that no warning tells of."""
    told = [text(line.get("rank")) for line in run.messages if "straggler" in text(line.get("source"))]
    told += [text(line.get("slow_rank")) for line in run.messages]
    found = tables(run.summary.get("stragglers"))
    return [{**one, "steps": messages.steps(one.get("steps"))} for one in found if text(one.get("rank")) not in told]
