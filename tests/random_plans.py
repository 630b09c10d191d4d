"""Random runs on random hardware, and what the planner makes of them. `python tests/random_plans.py 1000 [SEED]`."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fixes import Fix, fixes

from unsloth_accel.capabilities.probe import here
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.gpu_table import CARDS
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.models.known_names import known_models
from unsloth_accel.planning.memory_estimate import WORST_ERROR, usable_gib
from unsloth_accel.planning.options import free_gib
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan
from unsloth_accel.strategies import STRATEGIES

TRAIN = Path(__file__).resolve().parent.parent / "examples" / "data" / "elements-train.jsonl"
Description = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Drawn:
    """A run on hardware."""

    values: Description
    hardware: Hardware
    text: str

    def plan(self, *, elsewhere: bool = True) -> Plan:
        run = from_dict(self.values, to_plan=True)
        return plan(run, self.hardware, capabilities=here(), elsewhere=elsewhere, price=2.5)

    def fixed(self, fix: Fix) -> Drawn:
        values = {section: dict(keys) for section, keys in self.values.items()}
        for key in fix.without:
            section, _, name = key.partition(".")
            values[section].pop(name)
        for word in fix.words:
            key, _, value = word.partition("=")
            section, _, name = key.partition(".")
            read: Any = {"true": True, "false": False}.get(value, int(value) if value.isdigit() else value)
            values.setdefault(section, {})[name] = read
        hardware = self.hardware
        if fix.gpus:
            one = min(hardware.devices, key=lambda device: device.memory_gib)
            more = tuple(replace(one, index=index, memory_free_gib=None) for index in range(fix.gpus))
            hardware = replace(hardware, devices=more, num_machines=fix.machines or 1)
        return Drawn(values, hardware, self.text)

    def __str__(self) -> str:
        words = (f"{section}.{key}={value}" for section, keys in self.values.items() for key, value in keys.items())
        return f"--hardware {self.text} {' '.join(words)}"


def draw(dice: random.Random) -> Drawn:
    """Draw a run on hardware; each key that is often left out is often left out here."""

    def some(key: str, choices: Any, chance: float) -> dict[str, Any]:
        return {key: dice.choice(choices)} if dice.random() < chance else {}

    names = [name for model in known_models().values() for name in model["hub_ids"]]
    machines, gpus = dice.choice((1, 1, 1, 1, 2, 2, 3, 4)), dice.choice((1, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8))
    card = dice.choice(CARDS).name
    text = dice.choice((f"{gpus}x{card}",) * 3 + (f"{machines}x{gpus}x{card}",) * 3 + ("cpu", "cpu:1", "cpu:64"))
    hardware = Hardware.parse(text)
    if hardware.devices and dice.random() < 0.1:
        first, *rest = hardware.devices
        used = replace(first, memory_free_gib=first.memory_gib * dice.random())
        hardware, text = replace(hardware, devices=(used, *rest)), f"{text} (used)"
    length = dice.choice((128, 512, 1000, 2048, 2048, 2048, 4096, 8192, 32768, 131072))
    size = dice.choice((1, 2, 4, 6, 7, 8, 12, 16, 30, 32, 48, 64, 100, 128, 512, 1000))
    values: Description = {
        "model": {"name": dice.choice(names)}
        | some("load_in_4bit", (True, False), 0.4)
        | some("max_seq_length", (length,), 0.7)
        | some("dtype", ("float32", "float16", "bfloat16"), 0.15)
        | some("gradient_checkpointing", ("unsloth", "true", "false"), 0.3)
        | some("keep_activations", ("auto", "all", 0, 8, 32, 200), 0.3),
        "lora": some("r", (1, 8, 64, 256), 0.4)
        | some("target_modules", (["q_proj", "v_proj"], ["q_proj", "embed_tokens", "lm_head"]), 0.15),
        "batch": dice.choice(
            ({"global_size": size},) * 5
            + ({"global_tokens": size * (length if dice.random() < 0.9 else 1500)},) * 2
            + ({},)
        ),
        "distributed": some("strategy", ("auto", *STRATEGIES.names), 0.6)
        | some("num_processes", ("auto", 1, 2, 3, 4, 8, 16), 0.35)
        | some("device", ("auto", "cuda", "cpu"), 0.2),
        "training": some("per_device_train_batch_size", (1, 2, 3, 4, 8, 16, 64), 0.4)
        | some("gradient_accumulation_steps", (1, 2, 3, 4, 8), 0.3)
        | some("optim", ("adamw_8bit", "adamw_torch", "lion_8bit", "sgd", "paged_adamw_8bit"), 0.3)
        | some("bf16", (True, False), 0.1)
        | some("fp16", (True, False), 0.1)
        | some("activation_offloading", (True,), 0.03)
        | some("max_steps", (100,), 0.3)
        | some("num_train_epochs", (0.5, 1, 3), 0.2)
        | some("packing", (True, False), 0.1)
        | some("dataloader_drop_last", (True,), 0.1),
        "data": some("path", (str(TRAIN),), 0.3) | some("too_long", ("drop",), 0.2) | some("streaming", (False,), 0.1),
    }
    return Drawn({section: keys for section, keys in values.items() if keys}, hardware, text)


@dataclass
class Seen:
    """What came of random plans."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def look(self, drawn: Drawn, *, elsewhere: bool) -> None:
        """Plan `drawn`; where it is refused, apply each fix alone and plan again."""
        made, refusal = self._plan(drawn, drawn, elsewhere)
        if made:
            self.counts["planned"] += 1
            self._fits(made, drawn)
        if not refusal:
            return
        self.counts["refused"] += 1
        alternatives = [fix for problem in refusal.problems for fix in fixes(problem.fix)]
        self.counts["refused without a fix to apply"] += not alternatives
        for fix in alternatives:
            self.counts["fixes applied"] += 1
            again, failed = self._plan(drawn.fixed(fix), drawn, elsewhere)
            if failed:
                self.faults.append(f"a fix that fails: {drawn}\n   {refusal}\n   {fix.text!r} -> {failed}")
            if again:
                self._fits(again, drawn.fixed(fix))

    def _plan(self, drawn: Drawn, origin: Drawn, elsewhere: bool) -> tuple[Plan | None, ConfigError | None]:
        try:
            made = drawn.plan(elsewhere=elsewhere)
            str(made), made.to_dict()
            return made, None
        except ConfigError as error:
            return None, error
        except Exception as error:
            self.faults.append(f"a traceback: {origin}\n   {error!r}")
            return None, None

    def _fits(self, made: Plan, drawn: Drawn) -> None:
        """See that the batch is kept, and that what was chosen is not above its card.

        What was asked for may be above it, by the estimate's worst error and with a warning.
        """
        batch, said = made.batch, drawn.values.get("batch", {})
        if batch.per_device * batch.accumulation * batch.data_parallel != batch.global_size or (
            said.get("global_size", batch.global_size) != batch.global_size
        ):
            self.faults.append(f"another batch ({batch}): {drawn}")
        if made.memory is None or made.device == "cpu":
            return
        has = min(map(free_gib, made.devices))
        asked = drawn.values.get("distributed", {}).get("strategy", "auto") != "auto"
        tight = made.memory.total > usable_gib(has)
        self.counts["tight as asked"] += asked and tight
        if made.memory.total * (1 - WORST_ERROR) > has or (tight and not asked):
            self.faults.append(f"above its card ({made.memory.total:.1f} of {has:.1f} GiB): {drawn}")
        if asked and tight and not any(reason.startswith("tight: ") for reason in made.reasons):
            self.faults.append(f"no warning ({made.memory.total:.1f} of {has:.1f} GiB): {drawn}")


def look_at(count: int, seed: int) -> Seen:
    """Draw and plan `count` runs, which ask no Hub where HF_HUB_OFFLINE is set."""
    dice, seen = random.Random(seed), Seen()
    for number in range(count):
        seen.look(draw(dice), elsewhere=number % 2 == 0)
    return seen


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = look_at(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print("\n".join(found.faults))
    kinds = Counter(fault.partition(":")[0].partition(" (")[0] for fault in found.faults)
    print(dict(found.counts), dict(kinds))
