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
        # Where completions are scored the loss passes through 0: their reward is what is learned.
        rewarded = [one for one in evaluations if one.get("reward") is not None]
        name, word, choose = ("reward", "most", max) if rewarded else ("loss", "least", min)
        found = rewarded or evaluations
        last, best = found[-1], choose(found, key=lambda one: one[name])
        other = "" if best[name] == last[name] else f", {word} at step {best['step']}: {best[name]:.4f}"
        if other or name not in (after or {}):
            lines.append(f"{f'held-out {name}':<17}  {last[name]:.4f} at step {last['step']}{other}")
    if before and after:
        name = "reward" if "reward" in before else "loss"
        if None not in (before.get(name), after.get(name)):
            lines.append(f"{f'held-out {name}':<17}  {before[name]:.4f} before → {after[name]:.4f} after")
        if "pair_accuracy" in before:
            figures = f"{before['pair_accuracy']:.1%} before → {after['pair_accuracy']:.1%} after"
            lines.append(f"held-out pairs     {figures} (the chosen answer wins)")
        if "accuracy" in before:
            figures = f"{before['accuracy']:.1%} before → {after['accuracy']:.1%} after"
            lines.append(f"held-out accuracy  {figures} (exact match, {after['rows']} rows)")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return shortened(" ".join(text.split()), 160)
