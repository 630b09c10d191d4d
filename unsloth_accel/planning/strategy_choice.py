"""The choice of a strategy: what fits, what is fastest of that, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..config.accelerate_config import SHARDING, Precision, Strategy
from ..errors import ConfigError, Problem
from ..hardware.hardware import Device, Hardware
from .batch import divisors, rows_text
from .memory_estimate import MemoryEstimate, Workload, estimate
from .speed_estimate import Speed, estimate_speed

MARGIN = 0.95
"""Share of a GPU's memory that a plan may fill: the estimate was within 8 % where it was fitted, mostly within 1 %."""
ERROR = 1.15
"""What is asked for by name is refused only if the estimate is that much too large: its worst error."""
NEARLY = 0.9
"""DDP is taken while it reaches this share of the fastest: it has the least that can go wrong."""
PREFERENCE: tuple[Strategy, ...] = ("single", "ddp", "fsdp2", "fsdp2_native", "fsdp1")
"""Order where speeds are unknown or equal."""


def free_gib(device: Device) -> float:
    """What a process can have of a GPU: what is free, or all where nobody looked."""
    return device.memory_gib if device.memory_free_gib is None else device.memory_free_gib


@dataclass(frozen=True, kw_only=True)
class Rejected:
    strategy: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Option:
    """A strategy for this work, with as many rows at once as memory allows; one row where not even that fits."""

    strategy: Strategy
    per_device: int
    memory: MemoryEstimate
    fits: bool
    speed: Speed | None

    @property
    def rank(self) -> tuple[float, int]:
        """For sorting: the fastest first."""
        seconds = 1 / self.speed.tokens_per_second if self.speed else 0.0
        return round(seconds, 9), PREFERENCE.index(self.strategy)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What has to be chosen for."""

    work: Workload
    hardware: Hardware
    capacity_gib: float
    """Free memory of the smallest GPU."""
    num_processes: int
    precision: Precision
    sizes: Sequence[int]
    """Rows at once that would keep the global batch, ascending."""
    rows: int | None
    """Of one process in one optimizer step; None where no global batch is given."""
    accumulation: int | None = None
    """As the run gives it."""
    unavailable: Mapping[Strategy, str] = field(default_factory=dict)
    """Strategies that the installed versions can't run, with the reason."""

    @property
    def free_devices(self) -> str:
        """The advice to free the fullest GPU; empty where nobody uses it."""
        least = min(self.hardware.devices, key=free_gib)
        used = least.memory_gib - free_gib(least)
        return f"free the {used:.1f} GiB that are in use on GPU {least.index}" if used > 0.1 * least.memory_gib else ""

    def option(self, strategy: Strategy) -> Option:
        count = 1 if strategy == "single" else self.num_processes
        budget = MARGIN * self.capacity_gib

        def memory(size: int) -> MemoryEstimate:
            return estimate(replace(self.work, per_device=size), strategy, count, free_gib=self.capacity_gib)

        fitting = [size for size in self.sizes if memory(size).total <= budget]
        size = max(fitting, default=min(self.sizes))
        work = replace(self.work, per_device=size)
        steps = self.accumulation or 1 if self.rows is None else max(self.rows // size, 1)
        if strategy == "single" and self.rows is not None:
            steps *= self.num_processes  # the same rows, in one process
        speed = estimate_speed(work, strategy, count, steps, self.hardware, self.precision)
        return Option(strategy=strategy, per_device=size, memory=memory(size), fits=bool(fitting), speed=speed)


FSDP1_REASON = (
    "Unsloth declines its fused LoRA kernels under FSDP1 (three times slower, measured), every GPU loads the whole "
    "model first, and transformers 5.20 removes it; it is never chosen, only taken when asked for."
)


def choose(question: Question, asked: str) -> tuple[Option, tuple[str, ...], tuple[Rejected, ...]]:
    """The option to take, the reasons, and the others with theirs.

    Raises `ConfigError` when nothing fits, with what would.
    """
    several = question.num_processes > 1
    names: tuple[Strategy, ...] = ("ddp", "fsdp2", "fsdp2_native") if several else ("single",)
    options = [question.option(name) for name in names if name not in question.unavailable]
    if asked != "auto":
        return _asked(question, asked, options)
    fitting = sorted((option for option in options if option.fits), key=lambda option: option.rank)
    if not fitting:
        raise ConfigError(_nothing_fits(question, options))
    chosen = fitting[0]
    ddp = next((option for option in fitting if option.strategy == "ddp"), chosen)
    if ddp.speed and chosen.speed and ddp.speed.tokens_per_second >= NEARLY * chosen.speed.tokens_per_second:
        chosen = ddp
    reasons = [_why(chosen, question)]
    if chosen.strategy in SHARDING and not question.work.packed:
        reasons += _four_bit(question, chosen)
    rejected = [_rejected(option, chosen, question) for option in options if option is not chosen]
    if several:
        rejected += _unavailable(question)
        rejected.append(Rejected(strategy="fsdp1", reason=FSDP1_REASON))
        rejected.append(Rejected(strategy="single", reason=_single(question, chosen)))
    return chosen, tuple(reasons), tuple(rejected)


def _asked(
    question: Question, asked: str, options: list[Option]
) -> tuple[Option, tuple[str, ...], tuple[Rejected, ...]]:
    chosen = next((option for option in options if option.strategy == asked), None)
    chosen = chosen or question.option(asked)  # type: ignore[arg-type]
    if not chosen.fits and chosen.memory.total > ERROR * question.capacity_gib:
        raise ConfigError(_nothing_fits(question, [chosen, *(o for o in options if o.fits)], asked))
    reasons = [f"{asked}: distributed.strategy asks for it."]
    if not chosen.fits:
        reasons.append(f"tight: {_needs(chosen)}, and {_has(question)}; it may run out of memory.")
    if asked == "fsdp1":
        reasons.append(f"beware: {FSDP1_REASON}")
    better = [o for o in options if o.fits and o.speed and chosen.speed and o.rank < chosen.rank]
    reasons += [f"{o.strategy} would be faster: {_pace(o)} against {_pace(chosen)}." for o in better[:1]]
    rejected = [
        Rejected(strategy=o.strategy, reason=f"distributed.strategy is {asked}{'' if o.fits else f'; it {_needs(o)}'}.")
        for o in options
    ]
    rejected += _unavailable(question) if question.num_processes > 1 else []
    return chosen, tuple(reasons), tuple(r for r in rejected if r.strategy != asked)


def _unavailable(question: Question) -> list[Rejected]:
    """The strategies that would count if the installed versions had them; fsdp1 has a reason of its own."""
    return [
        Rejected(strategy=s, reason=why) for s, why in question.unavailable.items() if s in ("fsdp2_native", "fsdp2")
    ]


def _why(chosen: Option, question: Question) -> str:
    need = f"{_needs(chosen)}, and {_has(question)}"
    if chosen.strategy == "single":
        return f"single: there is one process. {need[0].upper()}{need[1:]}."
    if chosen.strategy == "ddp":
        return f"ddp: the model fits on every GPU ({need}), so only the adapter's gradients cross the links."
    ddp = question.option("ddp")
    if ddp.fits and ddp.speed and chosen.speed:
        return (
            f"{chosen.strategy}: DDP fits with few rows only; {_pace(chosen)} against {_pace(ddp)}, estimated ({need})."
        )
    return f"{chosen.strategy}: the model does not fit on one GPU, so the GPUs divide its weights ({need})."


def _rejected(option: Option, chosen: Option, question: Question) -> Rejected:
    if not option.fits:
        why = f"{_needs(option)}, and {_has(question)}."
        if option.strategy == "fsdp2_native" and question.work.packed:
            why += " Every GPU loads the whole model before it is sharded."
        return Rejected(strategy=option.strategy, reason=why)
    if option.speed and chosen.speed and option.rank < chosen.rank:
        why = f"hardly faster: {_pace(option)} against {_pace(chosen)}, estimated; ddp has less that can go wrong."
        return Rejected(strategy=option.strategy, reason=why)
    if option.speed and chosen.speed:
        why = f"slower: {_pace(option)} against {_pace(chosen)}, estimated"
        what = "; it gathers the weights in every step" if option.strategy in SHARDING else ""
        return Rejected(strategy=option.strategy, reason=f"{why}{what}.")
    return Rejected(strategy=option.strategy, reason=f"{chosen.strategy} comes first where no speed can be estimated.")


def _single(question: Question, chosen: Option) -> str:
    alone = question.option("single")
    if not alone.fits:
        return f"{_needs(alone)}, and {_has(question)}."
    idle = f"{question.num_processes - 1} of {question.num_processes} GPUs would be idle"
    return f"{idle}: {_pace(alone)} against {_pace(chosen)}, estimated." if alone.speed and chosen.speed else f"{idle}."


def _four_bit(question: Question, chosen: Option) -> list[str]:
    """A word on 4 bit where it would let every GPU hold the model."""
    packed = replace(question, work=replace(question.work, load_in_4bit=True)).option("ddp")
    if not packed.fits:
        return []
    pace = f", estimated at {_pace(packed)} against {_pace(chosen)}" if packed.speed and chosen.speed else ""
    return [f"model.load_in_4bit=true would let every GPU hold the model, so DDP would do ({_needs(packed)}{pace})."]


def _nothing_fits(question: Question, options: list[Option], asked: str = "auto") -> Problem:
    """The refusal of a plan, with what would fit; every suggestion has been tried."""
    needs = "; ".join(f"{option.strategy} {_needs(option)}" for option in options if not option.fits)
    more = " ".join(["", *(f"{gone.strategy}: {gone.reason}" for gone in _unavailable(question))])
    return Problem(
        key="model.name",
        value=question.work.spec.name,
        consequence=f"needs more memory than there is: {needs}; {_has(question)}.{more}",
        fix=", or ".join(_what_fits(question, options, asked)) or "a smaller model, or GPUs with more memory",
    )


def _what_fits(question: Question, options: list[Option], asked: str) -> Iterator[str]:
    several = question.num_processes > 1
    names: tuple[Strategy, ...] = ("ddp", "fsdp2", "fsdp2_native") if several else ("single",)
    if asked != "auto":
        yield from (f"distributed.strategy={option.strategy}" for option in options if option.fits)
        names = (asked,)  # type: ignore[assignment]
    names = tuple(name for name in names if name not in question.unavailable)

    def fits(changed: Question) -> Strategy | None:
        return next((name for name in names if changed.option(name).fits), None)

    if question.rows is not None and len(question.sizes) == 1 and question.sizes[0] > 1:
        smaller = replace(question, sizes=divisors(question.rows))
        found = fits(smaller)
        if found:
            size = smaller.option(found).per_device
            yield f"training.per_device_train_batch_size={size} and no training.gradient_accumulation_steps"
    if not question.work.packed:
        found = fits(replace(question, work=replace(question.work, load_in_4bit=True)))
        if found:
            yield f"model.load_in_4bit=true ({found} would fit)"
    length = 1 << (question.work.length - 1).bit_length() - 1
    while length >= 256:
        if fits(replace(question, work=replace(question.work, length=length))):
            yield f"model.max_seq_length={length}"
            break
        length //= 2
    if question.free_devices:
        yield question.free_devices
    for sharded in ("fsdp2", "fsdp2_native"):
        more = None if sharded in question.unavailable else _more_gpus(question, sharded)
        if more:
            yield f"{more} such GPUs ({sharded})" + (
                "" if asked in ("auto", sharded) else f" with distributed.strategy={sharded}"
            )
            return


def _more_gpus(question: Question, strategy: Strategy) -> int | None:
    """How many GPUs of this kind would do under `strategy`, with the same global batch."""
    for count in (2, 4, 8, 16, 32, 64):
        if count <= question.num_processes:
            continue
        rows = None if question.rows is None else question.rows * question.num_processes
        if rows is not None and rows % count:
            continue
        sizes: Sequence[int] = question.sizes
        if rows is not None and len(sizes) > 1:
            sizes = divisors(rows // count)
        elif rows is not None and rows // count % sizes[0]:
            continue  # what the run gives for each device doesn't divide the share of so many
        changed = replace(question, num_processes=count, sizes=sizes, rows=None if rows is None else rows // count)
        if changed.option(strategy).fits:
            return count
    return None


def _needs(option: Option) -> str:
    return f"needs {option.memory.total:.1f} GiB per GPU with {rows_text(option.per_device)} at once"


def _has(question: Question) -> str:
    least = min(question.hardware.devices, key=free_gib)
    free = least.memory_free_gib
    if free is not None and free < 0.9 * least.memory_gib:
        return (
            f"GPU {least.index} has {free:.1f} GiB free of {least.memory_gib:.1f}, of which a plan fills {MARGIN:.0%}"
        )
    return f"a GPU has {question.capacity_gib:.1f} GiB, of which a plan fills {MARGIN:.0%}"


def _pace(option: Option) -> str:
    assert option.speed is not None
    return f"{option.speed.tokens_per_second:,.0f} tokens/s"
