"""The choice of a strategy: what fits, what is fastest of that, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Problem, counted
from ..strategies import STRATEGIES, usual
from .batch import divisors
from .device_and_count import PROCESSES
from .kept_blocks import VARIABLE, variable
from .memory_estimate import WORST_ERROR, Workload
from .options import Choice, Option, free_gib
from .ways import Refused, Way

TOLD_GIB = 0.5
"""GiB that evaluations take beyond a training step from which on they are told of."""
NEARLY = 0.97
"""Share of the fastest strategy's speed from which on DDP is taken, which has the least that can go wrong. Dividing the
weights may free the memory with which more blocks keep their activations, and that gain isn't given away."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    strategy: str
    reason: str


def choose(choice: Choice, asked: str) -> tuple[Option, tuple[str, ...], tuple[Rejected, ...]]:
    """Return the option to take, the reasons, and the others with theirs.

    Raises `ConfigError` when nothing fits, with what would.
    """
    options = [choice.option(name) for name in choice.available]
    if asked != "auto":
        return _asked(choice, asked, options)
    fitting = sorted((option for option in options if option.fits), key=lambda option: option.rank)
    if not fitting:
        raise _nothing_fits(choice, options)
    chosen = fitting[0]
    whole = next((option for option in fitting if not option.record.shards_weights), chosen)
    if whole.speed and chosen.speed and whole.speed.tokens_per_second >= NEARLY * chosen.speed.tokens_per_second:
        chosen = whole
    reasons = [_why(chosen, choice)]
    reasons += _runner_up(choice, chosen, options) + _four_bit(choice, chosen)
    rejected = [
        Rejected(strategy=option.strategy, reason=_why_not(option, chosen, choice))
        for option in options
        if option is not chosen
    ]
    if choice.num_processes > 1:
        rejected += _unavailable(choice)
        rejected += [Rejected(strategy=one.name, reason=one.never_chosen) for one in STRATEGIES if one.never_chosen]
        rejected.append(Rejected(strategy=usual(1).name, reason=_single(choice, chosen)))
    return chosen, tuple(reasons), tuple(rejected)


def _asked(choice: Choice, asked: str, options: list[Option]) -> tuple[Option, tuple[str, ...], tuple[Rejected, ...]]:
    chosen = next((option for option in options if option.strategy == asked), None) or choice.option(asked)
    if not chosen.fits and chosen.memory.least > choice.capacity_gib:
        raise _nothing_fits(choice, [chosen, *(o for o in options if o.fits)], asked)
    reasons = [f"{asked}: distributed.strategy asks for it."]
    if not chosen.fits:
        reasons.append(f"tight: {_needs(chosen)}{_less(chosen)}, and {_has(choice)}; it may run out of memory.")
    if chosen.record.never_chosen:
        reasons.append(f"beware: {chosen.record.never_chosen}")
    better = [o for o in options if o.fits and o.speed and o.rank < chosen.rank]
    reasons += [f"{o.strategy} would be faster: {_pace(o)} against {_pace(chosen)}." for o in better[:1]]
    rejected = [
        Rejected(strategy=o.strategy, reason=f"distributed.strategy is {asked}{'' if o.fits else f'; it {_needs(o)}'}.")
        for o in options
    ]
    rejected += _unavailable(choice) if choice.num_processes > 1 else []
    return chosen, tuple(reasons), tuple(r for r in rejected if r.strategy != asked)


def _unavailable(choice: Choice) -> list[Rejected]:
    """The strategies that would count if the installed versions had them; what is never chosen has its own reason."""
    return [Rejected(strategy=name, reason=why) for name, why in choice.unavailable.items() if name in _sharding()]


def _sharding() -> list[str]:
    """Return the strategies that a plan may take where a model doesn't fit one GPU."""
    return [one.name for one in STRATEGIES if one.shards_weights and not one.never_chosen]


def _why(chosen: Option, choice: Choice) -> str:
    need = f"{_needs(chosen)}, and {_has(choice)}"
    name = chosen.strategy
    if chosen.record.one_process:
        return f"{name}: there is one process. {need[0].upper()}{need[1:]}."
    if not chosen.record.shards_weights:
        return f"{name}: the model fits on every GPU ({need}), so only the adapter's gradients cross the links."
    whole = choice.option(usual(choice.num_processes).name)
    if whole.fits and whole.speed:
        paces = f"{_pace(chosen)} against {_pace(whole)}, estimated"
        return f"{name}: DDP leaves less memory for rows and kept blocks; {paces} ({need})."
    return f"{name}: the model does not fit on one GPU, so the GPUs divide its weights ({need})."


def _why_not(option: Option, chosen: Option, choice: Choice) -> str:
    if not option.fits:
        work = choice.work
        whole = option.record.loads_whole(in_4bit=work.in_4bit, mixture=work.loads_whole or bool(work.spec.num_experts))
        loads_whole = option.record.shards_weights and whole
        more = " Every GPU loads the whole model before it is sharded." if loads_whole else ""
        return f"{_needs(option)}, and {_has(choice)}.{more}"
    if not option.speed:
        return f"{chosen.strategy} comes first where no speed can be estimated."
    paces = f"{_pace(option)} against {_pace(chosen)}, estimated"
    if option.rank < chosen.rank:
        return f"hardly faster: {paces}; {chosen.strategy} has less that can go wrong."
    return f"slower: {paces}{'; it gathers the weights in every step' if option.record.shards_weights else ''}."


def _single(choice: Choice, chosen: Option) -> str:
    alone = choice.option(usual(1).name)
    if not alone.fits:
        return f"{_needs(alone)}, and {_has(choice)}."
    idle = f"{choice.num_processes - 1} of {choice.num_processes} GPUs would be idle"
    return f"{idle}: {_pace(alone)} against {_pace(chosen)}, estimated." if alone.speed else f"{idle}."


def _runner_up(choice: Choice, chosen: Option, options: list[Option]) -> list[str]:
    """Return what the fastest option is that was not taken: another strategy, or other rows under the same."""
    rivals = [option for option in options if option.fits and option.strategy != chosen.strategy]
    rivals += [option for option in choice.fitting(chosen.strategy) if option.per_device != chosen.per_device]
    best = max(rivals, key=lambda option: option.pace, default=chosen)
    if best is chosen or not best.speed:
        return []
    why = "" if best.pace <= chosen.pace else ", hardly faster"
    return [f"the runner-up{why}: {best.strategy}, {_pace(best)} against {_pace(chosen)}, estimated ({_needs(best)})."]


def _four_bit(choice: Choice, chosen: Option) -> list[str]:
    """Return a remark on 4 bit where it would be faster, or let every GPU hold the model."""
    if choice.work.in_4bit:
        return []
    smaller = replace(choice, work=replace(choice.work, load_in_4bit=True))
    options = [option for option in map(smaller.option, choice.available) if option.fits]
    best = min(options, key=lambda option: option.rank, default=chosen)
    if best is chosen or NEARLY * best.pace < chosen.pace:
        return []
    whole = chosen.record.shards_weights and not best.record.shards_weights
    if not whole and not best.speed:
        return []
    what = "let every GPU hold the model, so DDP would do" if whole else "be faster"
    pace = f", estimated at {_pace(best)} against {_pace(chosen)}" if best.speed else ""
    return [f"model.load_in_4bit=true would {what} ({_needs(best)}{pace})."]


def _nothing_fits(choice: Choice, options: list[Option], asked: str = "auto") -> Refused:
    """Return the refusal of a model that doesn't fit, with the ways in which it might."""
    less = _less if asked != "auto" else lambda _: ""
    needs = "; ".join(f"{option.strategy} {_needs(option)}{less(option)}" for option in options if not option.fits)
    more = " ".join(["", *(f"{gone.strategy}: {gone.reason}" for gone in _unavailable(choice))])
    consequence = f"needs more memory than there is: {needs}; {_has(choice)}.{more}"
    problem = Problem(key="model.name", value=choice.work.spec.name, consequence=consequence, fix="")
    instead = "a smaller model, or GPUs with more memory"
    none = replace(choice, keep=(0, 0))
    names = choice.available if asked == "auto" else [asked]
    unset = [f"unset {VARIABLE}"] if choice.keep[0] and variable() and any(map(none.fits, names)) else []
    after = ", or ".join([*unset, *filter(None, [choice.free_devices])])
    return Refused(problem, [*_what_fits(choice, options, asked)], after, instead=instead)


def shorter(length: int) -> list[int]:
    """Return the powers of two below `length`, down to 256, the largest first."""
    return [1 << power for power in reversed(range(8, (length - 1).bit_length()))]


def _what_fits(choice: Choice, options: list[Option], asked: str) -> Iterator[list[Way]]:
    """Yield groups of ways, of each of which one is enough."""
    work, names = choice.work, choice.available
    if asked != "auto":
        yield [Way(changes={"distributed.strategy": option.strategy}) for option in options if option.fits]
        names = [asked] if asked not in choice.unavailable else []

    def fits(changed: Choice) -> str | None:
        return next((name for name in names if changed.fits(name)), None)

    if choice.keep[0]:
        yield [Way(changes={"model.keep_activations": "auto"})]
    given = {} if choice.accumulation is None else {"training.gradient_accumulation_steps": None}
    if len(choice.sizes) == 1 and choice.sizes[0] > 1:
        smaller = replace(choice, sizes=divisors(choice.sizes[0] if choice.rows is None else choice.rows))
        found = fits(smaller)  # otherwise with something else
        size = {"training.per_device_train_batch_size": smaller.option(found).per_device if found else 1}
        yield [Way(changes=size if choice.rows is None else size | given)]
    lighter: list[tuple[dict[str, Any], Workload]] = []
    if not work.in_4bit:
        lighter.append(({"model.load_in_4bit": True}, replace(work, load_in_4bit=True)))
    if work.dtype_bytes == 4:
        lighter.append(({"model.dtype": None}, replace(work, dtype_bytes=2)))
    if work.checkpointing != "unsloth":
        lighter.append(({"model.gradient_checkpointing": "unsloth"}, replace(work, checkpointing="unsloth")))
    if work.eval_rows not in (0, 1):
        lighter.append(({"training.per_device_eval_batch_size": 1}, replace(work, eval_rows=1)))
    yield from ([Way(changes=changes)] for changes, _ in lighter)
    if work.spec.num_experts:  # each expert has LoRA of its own, which is most of what is trained
        yield [Way(changes={"lora.target_modules": list(work.spec.attention_modules)})]
    lengths = (size for size in shorter(work.length) if fits(replace(choice, work=replace(work, length=size))))
    yield [Way(changes={"model.max_seq_length": size}) for size in [next(lengths, None)] if size]
    for changes, changed in [*lighter[:1], ({}, work)]:
        if choice.gpus > choice.num_processes:
            yield [Way(changes=changes | _all_gpus(choice, asked))]
        larger = (_more_gpus(replace(choice, work=changed), one, asked) for one in _sharding())
        yield [Way(changes=changes) + way for way in [next((way for way in larger if way), None)] if way]


def _more_gpus(choice: Choice, strategy: str, asked: str) -> Way | None:
    """Return the way to the least number of such GPUs that would do under `strategy`, with the same global batch."""
    hardware, changes = choice.hardware, _all_gpus(choice, asked if asked == strategy else "auto")
    if asked not in ("auto", strategy):
        changes["distributed.strategy"] = strategy
    for count in (2, 4, 8, 16, 32, 64) if strategy not in choice.unavailable else ():
        if count <= choice.gpus or count % hardware.num_machines:
            continue
        parts = STRATEGIES[strategy].data_parallel(count)
        changed = replace(choice, num_processes=count, data_parallel=parts)
        if choice.rows is not None:
            rows, rest = divmod(choice.rows * choice.data_parallel, parts)
            sizes = divisors(rows) if len(choice.sizes) > 1 else choice.sizes
            if rest or rows % sizes[0]:
                continue  # no whole share for so many, or what the run gives for each device doesn't divide it
            changed = replace(changed, sizes=sizes, rows=rows)
        if changed.fits(strategy):
            return Way(changes=changes, gpus=count // hardware.num_machines, machines=hardware.num_machines)
    return None


def _all_gpus(choice: Choice, asked: str) -> dict[str, Any]:
    """Return the changes with which every GPU is used."""
    alone = {"distributed.strategy": "auto"} if asked != "auto" and STRATEGIES[asked].one_process else {}
    return alone | ({"distributed.num_processes": "auto"} if choice.processes_asked else {})


def _needs(option: Option) -> str:
    kept = f" and {counted(option.keep_activations, 'block')} kept" if option.keep_activations else ""
    needs = f"needs {option.memory.total:.1f} GiB per GPU with {counted(option.per_device, 'row')} at once{kept}"
    evaluation = option.memory.terms.get("evaluation_excess", 0.0)
    return f"{needs}, {evaluation:.1f} of it for evaluations alone" if evaluation >= TOLD_GIB else needs


def _less(option: Option) -> str:
    """Say what the estimate less its worst error is."""
    return f" ({option.memory.least:.1f} GiB if the estimate is {WORST_ERROR:.0%} too high, its worst measured error)"


def _has(choice: Choice) -> str:
    least = min(choice.hardware.devices, key=free_gib)
    has = f"a GPU has {choice.capacity_gib:.1f} GiB"
    if free_gib(least) < 0.9 * least.memory_gib:
        has = f"GPU {least.index} has {free_gib(least):.1f} GiB free of {least.memory_gib:.1f}"
    return f"{has}, of which a plan fills {choice.usable_gib:.1f}"


def _pace(option: Option) -> str:
    assert option.speed is not None
    return f"{option.speed.tokens_per_second:,.0f} tokens/s"


def check_host(chosen: Option, choice: Choice) -> None:
    """Raise `ConfigError` when the processes need more than the machine has, by more than the estimate may be wrong."""
    need, has = chosen.memory.total, choice.capacity_gib
    if not choice.hardware.host_known or chosen.memory.least <= has:
        return
    count = choice.num_processes
    consequence = (
        f"needs {need:.1f} GiB in each of {count} processes, and the machine has {has * count:.1f} GiB in all."
    )
    problem = Problem(key="model.name", value=choice.work.spec.name, consequence=consequence, fix="")
    lengths = [Way(changes={"model.max_seq_length": size}) for size in shorter(choice.work.length)]
    fewer = [[Way(changes={PROCESSES: 1})]] if count > 1 else []
    raise Refused(problem, [*fewer, lengths], instead="a smaller model")
