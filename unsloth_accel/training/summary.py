"""Summary that a run prints at its end."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Any

from ..artifacts.score_adapter import score_code
from ..config.start_adapter import ADAPTER_CONFIG
from ..errors import counted, shortened
from ..files import read_json


def summary(results: dict[str, Any], adapter: Path | None) -> str:
    """Return a run's held-out figures and answers before and after training, and where the adapter is, if anywhere."""
    before, after = results.get("before"), results.get("after")
    training = results["training"]
    speed = training["tokens"] / training["seconds"] if training["seconds"] else 0.0
    resumed = f", going on from step {training['resumed_at']}" if training.get("resumed_at") else ""
    steps = counted(training["steps"], "step")
    lines = [f"trained {steps} in {training['seconds']:.0f} s ({speed:,.0f} tokens/s){resumed}"]
    lines += [training["stopped_early"]] if "stopped_early" in training else []
    answers = (after or {}).get("answers", [])
    earlier = before.get("answers", []) if before else [None] * len(answers)  # none where the strategy shards
    for old, new in zip(earlier, answers, strict=True):
        verdict = "(right)" if new["right"] else f"(expected {new['reference']})"
        lines += [
            "",
            f"question  {new['question']}",
            *([f"  before  {_one_line(old['answer'])}"] if old else []),
            f"  after   {_one_line(new['answer'])}  {verdict}",
        ]
    kept = results.get("adapter", {})
    of_step = f"  (of step {kept['step']}{': ' + kept['message'] if kept['message'] else ''})" if "step" in kept else ""
    if adapter is not None:
        lines += ["", f"adapter   {adapter}{of_step}"]
        of_score = score_code(read_json(adapter / ADAPTER_CONFIG), str(adapter))
        code = of_score or f'FastLanguageModel.from_pretrained("{adapter}")'
        lines += [f"load it   {indent(code, ' ' * 10).lstrip()}"]
    if evaluations := results.get("evaluations"):
        last, best = evaluations[-1], min(evaluations, key=lambda one: one["loss"])
        least = "" if best is last else f", least at step {best['step']}: {best['loss']:.4f}"
        if least or "loss" not in (after or {}):
            lines.append(f"held-out loss      {last['loss']:.4f} at step {last['step']}{least}")
    if before and after:
        if "loss" in before:
            lines.append(f"held-out loss      {before['loss']:.4f} before → {after['loss']:.4f} after")
        if None not in (before.get("reward"), after.get("reward")):
            lines.append(f"held-out reward    {before['reward']:.4f} before → {after['reward']:.4f} after")
        if "pair_accuracy" in before:
            figures = f"{before['pair_accuracy']:.1%} before → {after['pair_accuracy']:.1%} after"
            lines.append(f"held-out pairs     {figures} (the chosen answer wins)")
        if "accuracy" in before:
            figures = f"{before['accuracy']:.1%} before → {after['accuracy']:.1%} after"
            lines.append(f"held-out accuracy  {figures} (exact match, {after['rows']} rows)")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return shortened(" ".join(text.split()), 160)
