"""What would use memory that a plan leaves idle: tried with the same estimates, and told only where it fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..config.run_config import RunConfig
from ..data.length_estimate import RowLengths
from .memory_estimate import MemoryEstimate, Workload
from .options import Choice, Option
from .packing_choice import SHORT

IDLE = 0.2
"""Share of what a plan may fill from which on idle memory is told of."""
LARGEST_RANK = 256


def uses(run: RunConfig, chosen: Option, choice: Choice, lengths: RowLengths | None, *, only_lora: bool) -> list[str]:
    """Return the reason that names what would use the memory that `chosen` leaves; `only_lora`: nothing else is
    trained, and its rank is free."""
    idle = choice.usable_gib - chosen.memory.total
    if not chosen.fits or idle < IDLE * choice.usable_gib:
        return []
    found = [*_larger(run, chosen, choice, lengths, only_lora=only_lora)]
    if not found:
        return []
    told = f"idle: {idle:.1f} of the {choice.usable_gib:.1f} GiB that a plan fills"
    return [f"{told}. Each of these would fit, with as many blocks kept: {', '.join(found)}."]


def _larger(
    run: RunConfig, chosen: Option, choice: Choice, lengths: RowLengths | None, *, only_lora: bool
) -> Iterator[str]:
    """Yield the largest changes with which as many blocks are kept: longer rows, fewer at once where they must be, a
    larger rank, 16 bit."""
    work, kept = choice.work, (chosen.keep_activations, chosen.keep_activations)

    def fitting(changed: Workload, sizes: Sequence[int] = (chosen.per_device,)) -> MemoryEstimate | None:
        option = replace(choice, work=changed, sizes=sizes, keep=kept).option(chosen.strategy)
        return option.memory if option.fits else None

    short = lengths is not None and lengths.mean < SHORT * work.length
    if not run.batch.global_tokens and not short:
        most = work.spec.max_position_embeddings or work.length
        longer = {length: replace(work, length=length) for length in _doubled(work.length, most)}
        yield from _largest(
            "model.max_seq_length", {n: fitting(changed, choice.sizes) for n, changed in longer.items()}
        )
    if only_lora:
        ranks = _doubled(run.lora.r, LARGEST_RANK)
        larger = {r: replace(work, lora_parameters=work.lora_parameters // run.lora.r * r) for r in ranks}
        yield from _largest("lora.r", {r: fitting(changed) for r, changed in larger.items()})
    if work.load_in_4bit and work.spec.quantization is None:
        yield from _largest("model.load_in_4bit", {"false": fitting(replace(work, load_in_4bit=False))})


def _doubled(number: int, most: int) -> list[int]:
    return [number << power for power in range(1, 17) if number << power <= most]


def _largest(key: str, found: dict[int, MemoryEstimate | None] | dict[str, MemoryEstimate | None]) -> Iterator[str]:
    fits = {value: memory for value, memory in found.items() if memory}
    for value, memory in [*fits.items()][-1:]:
        yield f"{key}={value} ({memory.total:.1f} GiB)"
