"""The planner: decides strategy, processes, batch and memory of a run on given hardware, each with its reason."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from ..capabilities.probe import Capabilities
from ..config.accelerate_config import Precision
from ..config.lora_fields import reads_the_base
from ..config.run_config import DEFAULT_PER_DEVICE, RunConfig
from ..config.start_adapter import find_adapter, model_of, tokenizer_of_model
from ..config.trainer_settings import depends_on_ranks, kept_defaults, settings, shared_out_by_tokens
from ..data.length_estimate import RowLengths, row_lengths
from ..errors import ConfigError, Problem, counted, raise_errors
from ..hardware.hardware import Hardware
from ..methods import METHODS
from ..models.added_tokens import with_added_tokens
from ..models.locate import may_be_hub_id
from ..models.lora_targets import Targets, targets
from ..models.spec import ModelSpec
from ..strategies import STRATEGIES, usual
from .batch import Batch, check_divisible, divide_batch, divisors, gives_way
from .device_and_count import (
    PROCESSES,
    STRATEGY,
    check_strategy,
    count_of,
    device_of,
    freest,
    other_strategies,
    to_strategy,
    with_processes,
)
from .groups import Groups, eval_rows, groups, keeps_whole, whole_groups, written_at_once
from .idle_memory import uses
from .kept_blocks import may_keep, planned_blocks, why_kept
from .memory_estimate import GIB, Workload, estimate
from .optimizer_choice import with_optimizer
from .optimizers import OPTIMIZER_BYTES
from .options import USUAL_CARD, Choice, Option, free_gib
from .packing_choice import with_packing
from .plan import Plan
from .precision import choose_precision
from .reference_pass import FIELD, told_of_reference
from .run_time import run_time
from .speed_estimate import Speed
from .strategy_choice import Rejected, check_host, choose
from .ways import Refused, Way, tried

DECISIVE = ("taken as", "link ", "network ", "MIG")
"""Words of those findings about hardware that a plan depends on; the others are in `Hardware.reasons`."""
NOT_REHEARSED = "a CPU seldom lacks memory for a step, and its longest one takes long; true rehearses it."


def plan(
    run: RunConfig,
    hardware: Hardware,
    spec: ModelSpec | None = None,
    capabilities: Capabilities | None = None,
    *,
    elsewhere: bool = False,
    price: float | None = None,
) -> Plan:
    """Decide how `run` runs on `hardware`; `spec` is read from `run.model.name` when it is not given.

    A strategy that `capabilities` lacks is rejected; with `elsewhere`, the versions that will run are not those that
    were looked at, so the plan takes it all the same and says so. Nothing is known where `capabilities` is None.
    `price` is that of one GPU for an hour.

    Raises `ConfigError` where what is asked for can't be had: more processes than GPUs, a global batch that can't be
    divided, a model that does not fit, or one whose size is unknown while the strategy depends on it. What its fixes
    ask for has been planned.
    """
    facts = _Facts(run, spec)

    def changed(way: Way) -> Plan:
        return _decide(*way.of(run, hardware), facts, capabilities, elsewhere=elsewhere, price=price)

    try:
        return changed(Way())
    except Refused as refused:
        # Where memory is short, which strategy would fit is news.
        tells = refused.problems[0].key == "model.name" and run.distributed.strategy == "auto"
        raise tried(refused, lambda way: _in_short(changed(way)) * tells) from None


def _in_short(made: Plan) -> str:
    """Return the strategy of a plan that was found, and for a mixture the least memory: that of one row at once."""
    run, spec = made.run, made.spec
    if spec is None or not spec.num_experts:
        return made.strategy
    work = workload(run, spec, targets(run, spec), 1, full=run.model.dtype == "float32")
    return f"{made.strategy}, {estimate(work, made.strategy, made.num_processes).total:.1f} GiB with 1 row at once"


class _Facts:
    """What the plans of one run have in common, whatever else is changed, looked up once."""

    def __init__(self, run: RunConfig, spec: ModelSpec | None) -> None:
        self._run, self._spec = run, spec

    @cached_property
    def spec(self) -> ModelSpec | ConfigError:
        """The model's shapes, or what keeps them unknown."""
        try:
            model = self._run.model
            base = self._spec or ModelSpec.load(model.name, trust_remote_code=model.trust_remote_code)
            return with_added_tokens(self._run, base)
        except ConfigError as error:
            return error

    @cached_property
    def lengths(self) -> Callable[[int], RowLengths | None]:
        """The lengths of the rows, cut to a number of tokens."""
        data, method, tokenizer = self._run.data, self._run.method, tokenizer_of_model(self._run.model.name)
        return functools.cache(lambda limit: row_lengths(data, tokenizer, limit, method) if data.names else None)


def _decide(
    run: RunConfig,
    hardware: Hardware,
    facts: _Facts,
    capabilities: Capabilities | None,
    *,
    elsewhere: bool,
    price: float | None,
) -> Plan:
    """See `plan`; raises `Refused` with ways out of which nobody knows yet whether they lead to a plan."""
    reasons: list[str] = []
    adapter = find_adapter(run.model.name)
    if adapter:
        raise_errors([*adapter.contradictions(run.lora)])
        reasons.append(f"training goes on from the adapter {adapter.name}, whose weights it begins with.")
    device = device_of(run, hardware, reasons)
    if device == "cuda":
        reasons += [reason for reason in hardware.reasons if any(word in reason for word in DECISIVE)]
    count = count_of(run, hardware, device, reasons)
    check_strategy(run, hardware, count, device)
    asked = run.distributed.strategy
    unsized = usual(count).name if asked == "auto" else asked  # where nothing is known about the model's size
    data_parallel = STRATEGIES[unsized].data_parallel(count)
    used = freest(hardware, count) if device == "cuda" else ()
    precision = choose_precision(run, hardware, used, reasons)
    rows = run.batch.rows(run.model.max_seq_length)
    per_device: int | None = run.training.get("per_device_train_batch_size")
    accumulation: int | None = run.training.get("gradient_accumulation_steps")
    if rows is not None:
        to_count = partial(with_processes, run, hardware)
        check_divisible(run.batch, run.model.max_seq_length, data_parallel, per_device, accumulation, to_count)
    chosen: Option | None = None
    choice: Choice | None = None
    rejected: tuple[Rejected, ...] = ()
    spec = _spec(run, facts.spec, device, count, reasons)
    in_4bit = run.model.load_in_4bit or bool(spec and spec.quantization == "bnb-4bit")
    _check_start(run, in_4bit=in_4bit)
    lacking = capabilities.unavailable(device, load_in_4bit=in_4bit) if capabilities else {}
    impossible = cannot(in_4bit=in_4bit) if device == "cuda" else {}
    if run.training.get(FIELD):
        reason = "training.precompute_ref_log_probs reads rows before the ranks' parts of the weights are put together."
        impossible |= dict.fromkeys((one.name for one in STRATEGIES if one.loads_shards), reason)
    if run.training.get("use_vllm") and METHODS[run.method].generates:
        reason = "training.use_vllm sends whole weights to the server, and there each GPU has a part of them."
        impossible |= dict.fromkeys((one.name for one in STRATEGIES if one.shards_weights), reason)
    untried = _untried(spec) if device == "cuda" and asked == "auto" and count > 1 else {}
    unavailable = ({} if elsewhere else lacking) | untried | impossible
    problem = capabilities.problem(unsized, device, load_in_4bit=in_4bit) if capabilities and not elsewhere else None
    if problem:
        # Under `auto` nobody wrote the strategy, and there is no other.
        problem = replace(problem, key="distributed.device", value=device) if asked == "auto" else problem
        ways = [] if asked == "auto" else other_strategies(count)
        raise Refused(problem, ways, before=problem.fix.partition(f", or {STRATEGY}=")[0])
    if asked in impossible:
        problem = Problem(key=STRATEGY, value=asked, consequence=impossible[asked], fix="")
        sixteen_bit = [[Way(changes={"model.load_in_4bit": False})]] if run.model.load_in_4bit else []
        raise Refused(problem, other_strategies(count) + sixteen_bit)
    why_packed: list[str] = []
    idle: list[str] = []
    lengths = facts.lengths(run.model.max_seq_length)
    run = with_packing(run, device, lengths, why_packed)
    if spec is not None:
        trained = targets(run, spec, on_cpu=device == "cpu")
        run = _spelt_out(run, spec, trained, reasons)
        free, gpus = replace(hardware, devices=used), len(hardware.devices) * hardware.num_machines
        keep = may_keep(run, spec.num_layers, count, on_cpu=device == "cpu", reasons=reasons)
        choice = replace(_choice(run, spec, trained, free, precision, count, data_parallel, rows, gpus), keep=keep)
        if lengths and not run.training.get("packing") and not METHODS[run.method].generates:
            choice = replace(choice, lengths=lengths, by_tokens=shared_out_by_tokens(run))
        choice = replace(choice, unavailable=unavailable)
        if device == "cuda":
            chosen, why, rejected = choose(choice, asked)
            reasons += why
            only_lora = not trained.whole and adapter is None
            idle = uses(run, chosen, choice, lengths, only_lora=only_lora)
        else:
            chosen = choice.option(unsized)
            check_host(chosen, choice)
        reasons += why_kept(run, chosen, choice)
    keep_activations = planned_blocks(run, chosen, count, reasons)
    strategy = chosen.strategy if chosen else unsized
    if STRATEGIES[strategy].through_plugin and not (spec and spec.decoder_layer_class):
        consequence = "the class of the model's decoder layers is unknown, and FSDP must be told it."
        problem = Problem(key=STRATEGY, value=strategy, consequence=consequence, fix="")
        own = "unsloth-accel config --decoder-layer CLASS for your own script"
        raise Refused(problem, [[to_strategy(usual(count).name)]], own)
    if device == "cpu" or chosen is None:
        reasons.append(f"{strategy}: {STRATEGIES[strategy].reason or 'distributed.strategy asks for it.'}")
    if strategy in lacking:
        reasons.append(f"beware: {strategy} needs other versions than are installed here: {lacking[strategy]}")
    if rows is None and METHODS[run.method].generates:
        per_device, accumulation = whole_groups(run, data_parallel, per_device, accumulation)
    batch = _batch(rows, data_parallel, per_device, accumulation, chosen, device, reasons)
    _check_least(run, batch)
    written = groups(run, batch)
    run = _with_generation(run, written, data_parallel, chosen.speed if chosen and device == "cuda" else None, reasons)
    run = with_optimizer(run, strategy, device, reasons)
    if device == "cpu" and run.batch.rehearse == "auto":
        reasons.append(f"batch.rehearse=false: {NOT_REHEARSED}")
        run = replace(run, batch=replace(run.batch, rehearse="false"))
    run = _with_defaults(run, reasons)
    reasons += [*why_packed, *idle]
    if run.early_stopping:
        reasons.append(_stopping_early(run))
    if ranks := depends_on_ranks(run):
        reasons.append(f"{run.method}: {ranks}")
    if METHODS[run.method].note:
        reasons.append(f"{run.method}: {METHODS[run.method].note}")
    if reference := told_of_reference(run, batch, lengths, chosen, choice):
        reasons.append(f"{run.method}: {reference}")
    speed = chosen.speed if chosen and device == "cuda" else None
    all_gpus = len(hardware.devices) * hardware.num_machines
    return Plan(
        strategy=strategy,
        num_processes=count,
        device=device,
        mixed_precision=precision,
        batch=batch,
        reasons=tuple(reasons),
        rejected=rejected,
        memory=chosen.memory if chosen else None,
        keep_activations=keep_activations,
        checkpoint_gib=_checkpoint_gib(run, trained) if spec else None,
        speed=speed,
        lengths=lengths,
        time=run_time(run, batch, speed, lengths, all_gpus, price),
        spec=spec,
        hardware=hardware,
        devices=used,
        run=run,
        adapter=adapter,
    )


def _with_generation(
    run: RunConfig, written: Groups | None, count: int, speed: Speed | None, reasons: list[str]
) -> RunConfig:
    """`run` with held-out completions in whole groups; adds to `reasons` what is written at a time."""
    if written is None:
        return run
    reasons.append(f"{run.method}: a row of the batch is a completion: {written}.")
    if speed is not None and speed.generating:
        told = f"about {speed.generating:.1f} of the {speed.step_seconds:.1f} s of a step are for writing completions"
        reasons.append(f"{run.method}: {told}, if all have their full length (not measured yet).")
    size, asked = eval_rows(run, count), run.training.get("per_device_eval_batch_size")
    if size is None or asked is not None:
        return run
    reasons.append(f"training.per_device_eval_batch_size={size}: whole groups of held-out completions.")
    return replace(run, training=run.training | {"per_device_eval_batch_size": size})


def _check_least(run: RunConfig, batch: Batch) -> None:
    """Raise `Refused` where a process would have fewer rows at once than the method needs."""
    least = METHODS[run.method].least_per_device
    if batch.per_device >= least:
        return
    each = f"{counted(least, 'row')} at once in each process"
    consequence = f"{run.method} needs at least {each}, and there would be {batch.per_device}."
    rows = batch.global_size
    problem = Problem(key="batch.global_size", value=rows, consequence=consequence, fix="")
    given = {"per_device_train_batch_size", "gradient_accumulation_steps"} & {*run.training}
    free: dict[str, Any] = dict.fromkeys(f"training.{name}" for name in sorted(given))
    at_once = [size for size in divisors(rows // batch.data_parallel) if size >= least]
    fewer = [count for count in reversed(divisors(rows)) if count < batch.data_parallel and rows // count >= least]
    ways = [
        [Way(changes=free | {"training.per_device_train_batch_size": size}) for size in at_once],
        [Way(changes=free | {PROCESSES: count}) for count in fewer],
    ]
    larger = -(-rows // (least * batch.data_parallel)) * least * batch.data_parallel
    if not at_once:
        ways.append([Way(changes=free | {"batch.global_size": larger})])
    raise Refused(problem, ways, instead="fewer processes, or shorter rows")


def _checkpoint_gib(run: RunConfig, trained: Targets) -> float:
    """Return the size of a checkpoint, in GiB: trained parameters as Unsloth keeps them, and their optimizer."""
    state = 0 if run.training.get("save_only_model") else OPTIMIZER_BYTES.get(str(run.training.get("optim")), 8)
    return (trained.parameters * (4 + state) + trained.saved_twice * 4) / GIB


def _spec(
    run: RunConfig, spec: ModelSpec | ConfigError, device: str, count: int, reasons: list[str]
) -> ModelSpec | None:
    """The model's shapes; None, with the reason, where they are unknown and no decision needs them."""
    if isinstance(spec, ConfigError):
        if not may_be_hub_id(model_of(run.model.name)):
            raise spec  # a directory that is missing or damaged
        if device == "cuda" and run.distributed.strategy == "auto" and count > 1:
            fix = f"or name the strategy: distributed.strategy={usual(count).name} while the model fits one GPU"
            raise ConfigError([replace(problem, fix=f"{problem.fix}, {fix}") for problem in spec.problems])
        first = spec.problems[0]
        reasons.append(f"memory is not estimated: {first.key}: {first.consequence}")
        return None
    if spec.tower_parameters:
        frozen = f"{spec.tower_parameters / 1e9:.2f}B parameters for images or sound stay frozen beside the text model"
        reasons.append(f"{frozen}: rows of text don't pass them, and LoRA is added to the text model only.")
    reasons += [f"{problem.key}: {problem.consequence}" for problem in spec.problems]
    return spec


def _choice(
    run: RunConfig,
    spec: ModelSpec,
    trained: Targets,
    hardware: Hardware,
    precision: Precision,
    count: int,
    data_parallel: int,
    rows: int | None,
    gpus: int,
) -> Choice:
    per_device: int | None = run.training.get("per_device_train_batch_size")
    accumulation: int | None = run.training.get("gradient_accumulation_steps")
    own = rows // data_parallel if rows is not None else None
    if per_device is not None:
        sizes = [per_device]
    elif own is None:
        sizes = list(range(1, DEFAULT_PER_DEVICE + 1))
    elif accumulation is not None:
        sizes = [own // accumulation]
    else:
        sizes = divisors(own)
    if METHODS[run.method].generates:
        sizes = [size for size in sizes if keeps_whole(run, size, data_parallel)] or sizes
    elif per_device is None and accumulation is None:
        sizes = [size for size in sizes if size >= METHODS[run.method].least_per_device] or sizes
    on_cpu = not hardware.devices
    if on_cpu:
        sizes = [size for size in sizes if size <= DEFAULT_PER_DEVICE] or sizes[:1]
    capacity = hardware.host_memory_gib / count if on_cpu else min(map(free_gib, hardware.devices))
    full = run.model.dtype == "float32" or (on_cpu and precision == "no")
    work = workload(run, spec, trained, sizes[0], full=full, on_cpu=on_cpu)
    if METHODS[run.method].generates:
        longest = int(settings(run).get("max_completion_length") or run.model.max_seq_length)
        at_once = written_at_once(run, own or sizes[-1] * (accumulation or 1), sizes[-1], data_parallel)
        work = replace(work, generated_rows=at_once, generated_tokens=longest)
    return Choice(
        work=work,
        data_parallel=data_parallel,
        hardware=hardware,
        capacity_gib=capacity,
        num_processes=count,
        precision=precision,
        sizes=sizes,
        rows=own,
        accumulation=accumulation,
        processes_asked=run.distributed.num_processes != "auto",
        gpus=gpus,
    )


def workload(
    run: RunConfig, spec: ModelSpec, trained: Targets, per_device: int, *, full: bool, on_cpu: bool = False
) -> Workload:
    """What a process of `run` trains with `per_device` rows at once; `full`: its frozen weights are float32."""
    method = METHODS[run.method]
    # The reference's once for all, before training, where they are asked for beforehand.
    reference = 0 if run.training.get(FIELD) else method.reference_passes
    smoothed = method.logits == "fused" and run.training.get("label_smoothing_factor")
    return Workload(
        spec=spec,
        lora_parameters=trained.parameters,
        per_device=per_device,
        sequences_per_row=method.sequences_per_row,
        has_score=method.has_score,
        reference_passes=reference + method.other_passes,
        # Smoothing is transformers' own, which takes the logits of all tokens (trainer_pt_utils.py: LabelSmoother).
        logits="whole" if smoothed else method.logits,
        pads=method.pads and not run.training.get("padding_free"),
        length=run.model.max_seq_length,
        eval_rows=run.training.get("per_device_eval_batch_size") if run.data.holds_out else 0,
        checkpointing=run.model.gradient_checkpointing,  # type: ignore[arg-type]
        load_in_4bit=run.model.load_in_4bit,
        dtype_bytes=4 if full else 2,
        optim=str(run.training.get("optim", "adamw_torch")),
        on_cpu=on_cpu,
        loads_whole=reads_the_base(use_dora=run.lora.use_dora, init_lora_weights=run.lora.init_lora_weights),
    )


def _spelt_out(run: RunConfig, spec: ModelSpec, trained: Targets, reasons: list[str]) -> RunConfig:
    """`run` with the modules that get LoRA by name, and 4 bit where the checkpoint is; adds to `reasons`."""
    if run.model.added_tokens:
        count = counted(len(run.model.added_tokens), "added token")
        reasons.append(f"{count}: the embeddings have {spec.vocab_size:,} rows, and learn them.")
    if trained.whole:
        one = ", as the one table that they share" if trained.saved_twice else ""
        reasons.append(f"{' and '.join(trained.whole)}: trained whole, not with LoRA, as Unsloth does{one}.")
    if spec.num_experts:
        reasons.append("a mixture of experts: its memory is counted from its shapes, not fitted to measurements.")
    length, most = run.model.max_seq_length, spec.max_position_embeddings
    if most and length > most:
        reasons.append(f"model.max_seq_length={length} is beyond the {most} tokens that the model was made for.")
    model = run.model
    if spec.quantization == "bnb-4bit" and not model.load_in_4bit:
        # Otherwise Unsloth loads the 16-bit model of that name (unsloth/models/loader_utils.py).
        reasons.append("4 bit: the checkpoint is quantized, so model.load_in_4bit is taken as true.")
        model = replace(model, load_in_4bit=True)
    modules = trained.modules if isinstance(trained.modules, str) else list(trained.modules)
    return replace(run, model=model, lora=replace(run.lora, target_modules=modules))


def cannot(*, in_4bit: bool) -> dict[str, str]:
    """Return the strategies that can't train such a model on GPUs, each with the reason as a sentence."""
    return {one.name: one.cannot["4bit"] for one in STRATEGIES if in_4bit and "4bit" in one.cannot}


def _check_start(run: RunConfig, *, in_4bit: bool) -> None:
    """Refuse an adapter that begins with what PEFT makes of 16-bit weights, on a base in 4 bit."""
    key, start = "lora.init_lora_weights", run.lora.init_lora_weights
    if in_4bit and start in ("pissa", "loftq"):
        consequence = "is made of the base's weights in 16 bit, and this base is loaded in 4 bit: PEFT stops."
        problem = Problem(key=key, value=start, consequence=consequence, fix="")
        raise Refused(problem, [[Way(changes={key: True})]])


def _untried(spec: ModelSpec | None) -> dict[str, str]:
    """Return the strategies that are taken for this model only where they are asked for, each with the reason."""
    if spec is None or not spec.num_experts:
        return {}
    reason = (
        "a mixture of experts: transformers puts its experts together from several tensors of the checkpoint, so every "
        "GPU loads it whole, and it must fit one; it is divided afterwards where that is asked for."
    )
    return dict.fromkeys((one.name for one in STRATEGIES if one.loads_shards), reason)


def _with_defaults(run: RunConfig, reasons: list[str]) -> RunConfig:
    """`run` with those defaults of its trainer that Unsloth would change on GPUs."""
    defaults = kept_defaults(run)
    if not defaults:
        return run
    said = ", ".join(f"{name}={value}" for name, value in defaults.items())
    reasons.append(f"training.{said}: TRL's own, on GPUs too, where Unsloth has others.")
    return replace(run, training=defaults | run.training)


def _stopping_early(run: RunConfig) -> str:
    times, metric = run.early_stopping["early_stopping_patience"], run.trainer_fields()["metric_for_best_model"]
    told = f"stops early: when {metric} is no better at {counted(times, 'evaluation')} in a row."
    if run.training.get("load_best_model_at_end"):
        return told
    return f"{told} The last weights are saved; training.load_best_model_at_end=true takes the best checkpoint's."


def _batch(
    rows: int | None,
    count: int,
    per_device: int | None,
    accumulation: int | None,
    chosen: Option | None,
    device: str,
    reasons: list[str],
) -> Batch:
    most = chosen.per_device if chosen else DEFAULT_PER_DEVICE
    if rows is None:
        given = per_device or min(most, DEFAULT_PER_DEVICE)
        rows = given * (accumulation or 1) * count
        if per_device is None:
            why = f"batch.global_size says nothing, so up to {DEFAULT_PER_DEVICE}."
            reasons.append(f"{counted(given, 'row')} per device: {why}")
        return divide_batch(rows, count, given, accumulation or 1)
    batch = divide_batch(rows, count, per_device, accumulation, most=most)
    if accumulation not in (None, batch.accumulation):
        reasons.append(f"{gives_way(accumulation, batch)}.")
    if per_device is None and accumulation is None:
        share = f"divides the {counted(rows // count, 'row')} of a process"
        limit = f"the largest number that is at most {DEFAULT_PER_DEVICE} and {share}"
        if chosen and device == "cuda":
            limit = f"the fastest number that fits and {share}"
            limit += "" if chosen.speed else f" on an {USUAL_CARD}, since this card's rates are unknown"
        reasons.append(f"{counted(batch.per_device, 'row')} per device: {limit}.")
    return batch
