"""Launch: from a plan, or a user's own script and config, to `accelerate launch`.

Everything is decided and checked here, without torch; `run_accelerate` then runs it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ..artifacts import own_files, resume_if_any
from ..artifacts.resume_facts import resume_problems
from ..artifacts.run_directory import RunDirectory
from ..capabilities.probe import here, lacking
from ..config.promise import OTHER_KINDS, promise_of_config, variables_for
from ..config.read_run import from_dict, load
from ..config.run_config import IF_ANY, RunConfig
from ..config.written import variables_of as secrets_of
from ..errors import ConfigError, Problem, errors, raise_errors
from ..hardware import nvml
from ..hardware.hardware import Hardware
from ..models.hub_access import HUB
from ..models.lora_targets import trains_one_table
from ..planning.optimizers import BITSANDBYTES_ADAMW
from ..planning.plan import Plan
from ..planning.planner import plan
from ..report.at_end import is_replaced, is_since, reported, something_to_show
from ..secret import HIDDEN, shown_word
from ..strategies import STRATEGIES, choosable
from ..validation.inputs import (
    hub_variables,
    input_problems,
    once_served,
    output_problems,
    room_problems,
    taken_problems,
)
from ..validation.push_checks import push_problems
from ..validation.rules import Context, check_document, folded, named, of_flags, read_document
from ..validation.run_checks import read, setting_problems, told_with
from .after_hang import debugging
from .arguments import Request, own_overrides, parse
from .run_accelerate import Launch, has_default_config, parse_arguments, run_accelerate
from .run_lock import held_problems, locked, unwritable, variables_of, wait_for_orphans

_VLLM = "VLLM::"
"""What vLLM begins the names of its GPU processes with (vllm/envs.py: VLLM_PROCESS_NAME_PREFIX)."""


def for_run(request: Request, hardware: Hardware) -> tuple[Launch, Plan, list[Problem]]:
    """The launch of a run's YAML, its plan, and what would stop it; writes nothing.

    Raises `ConfigError` where there is no plan to speak of.
    """
    assert request.run_yaml is not None
    flags, overrides = own_overrides(request.accelerate_flags)
    run = read(request.run_yaml, [*request.overrides, *overrides])
    problems = [_on_the_command_line(word) for word in request.overrides if shown_word(word) != word]
    run = resume_if_any.decided(run)
    if any(word.startswith("distributed.num_processes=") for word in overrides):
        run = _with_fitting_strategy(run)
    problems += run_problems(run, hardware)
    with told_with(problems):
        decided = plan(run, hardware, capabilities=here())
    problems += [one for one in plan_problems(decided) if one not in problems]
    command = launch_of(decided, flags)
    if flags:
        parse_arguments(command.arguments)  # refuses a misspelt flag before anything is touched
    return command, decided, problems


def _on_the_command_line(override: str) -> Problem:
    key = override.partition("=")[0]
    consequence = "stands in the list of processes, which every user here may read, and in your shell's history."
    fix = f"'{key}=${{oc.env:HF_TOKEN}}'"
    return Problem(key=key, value=HIDDEN, consequence=consequence, fix=fix, severity="warning")


def _with_fitting_strategy(run: RunConfig) -> RunConfig:
    """`run` after --num_processes, which `accelerate launch` takes for any config: a strategy that was decided for one
    process, or for several, gives way to the plan's own choice, where there are now several, or one."""
    strategy, count = run.strategy, run.distributed.num_processes
    if strategy is None or strategy.one_process == (count == 1):
        return run
    print(f"distributed.strategy={strategy.name} gives way to auto: --num_processes {count}", flush=True)
    return replace(run, distributed=replace(run.distributed, strategy="auto"))


def run_problems(run: RunConfig, hardware: Hardware | None = None) -> list[Problem]:
    """What is wrong with a run's settings, model, data and output directory, whatever the plan."""
    held = held_problems(run.output_dir)  # before a word on checkpoints that are being made
    settings = setting_problems(run, hardware)
    return [*settings, *input_problems(run), *(held or output_problems(run)), *push_problems(run)]


def plan_problems(decided: Plan) -> list[Problem]:
    """What would be lost by running a plan that was asked for."""
    resuming: list[Problem] = []
    if decided.run.resume:
        spec, on_cpu = decided.spec, decided.device == "cpu"
        # Of a head that no file says is tied, what Unsloth makes is known to the processes alone, which ask, too.
        one_table = trains_one_table(decided.run, spec, on_cpu) if spec and spec.tie_word_embeddings else None
        resuming = resume_problems(from_dict(decided.resolved()), one_table)
    room = room_problems(decided.run, decided.checkpoint_gib)
    unloadable = decided.spec.unloadable if decided.spec else ()
    impossible = [*unloadable, *lacking(decided.strategy, decided.device), *_strategy_problems(decided)]
    return [*impossible, *resuming, *room, *_beside_a_server(decided)]


def _beside_a_server(decided: Plan) -> list[Problem]:
    """A warning where vLLM computes on GPUs that this run trains on; of whose server it is, nothing is known."""
    asked = decided.run.training
    if not asked.get("use_vllm") or asked.get("vllm_mode") != "server" or decided.device == "cpu":
        return []
    names = nvml.process_names()
    theirs = {uuid for uuid, running in names.items() if uuid and any(_VLLM in name for name in running)}
    shared = [one.index for one in decided.devices if one.uuid in theirs]
    if not shared:
        return []
    consequence = (
        f"vLLM is on GPU {', '.join(map(str, shared))}, where this run trains: from a GPU to itself NCCL "
        'sends no weights ("Duplicate GPU detected"), and there the two share the memory.'
    )
    fix = "nothing for another's server; or CUDA_VISIBLE_DEVICES for both commands, with GPUs of its own for each"
    return [Problem(key="training.use_vllm", value=True, consequence=consequence, fix=fix, severity="warning")]


def _strategy_problems(decided: Plan) -> list[Problem]:
    """What the strategy can't do with a run that others can."""
    run, cannot = decided.run, STRATEGIES[decided.strategy].cannot
    others = (one for one in choosable(decided.num_processes) if one.shards_weights)
    instead = next((f"distributed.strategy={one.name}, or auto" for one in others), "distributed.strategy=auto")
    optim = str(run.training.get("optim"))
    rate = run.training.get("embedding_learning_rate")
    examines = run.data.holds_out and run.evaluation.exact_match
    asked = {
        "bitsandbytes": (optim in BITSANDBYTES_ADAMW, "training.optim", optim, f"adamw_torch, or {instead}"),
        "embeddings": (rate is not None, "training.embedding_learning_rate", rate, f"remove it, or {instead}"),
        "generate": (examines, "evaluation.exact_match", True, f"false, or {instead}"),
    }
    return [
        Problem(key=key, value=value, consequence=cannot[what], fix=fix)
        for what, (applies, key, value, fix) in asked.items()
        if applies and what in cannot
    ]


def launch_of(decided: Plan, flags: Sequence[str] = (), *, module: str | None = None) -> Launch:
    """The launch of a plan, with accelerate's own `flags` beside it; `made_room` writes the files that it names.

    `module` is what each process runs, given the run's description; by default its method's.
    """
    files = RunDirectory(decided.run.output_dir)
    words = ["--config_file", str(files.accelerate_yaml), *flags, "-m", module or decided.method.module]
    words += [str(files.planned_yaml), *(["training.resume=true"] if decided.run.resume else [])]
    recording = debugging(files) if decided.run.resume else {}
    if recording:
        print(f"the last launch hung: {', '.join(recording)} are set, so that a hang tells its collectives", flush=True)
    return Launch(
        arguments=tuple(words),
        environment=decided.environment | recording,
        secrets=secrets_of(decided.run),
        yaml=decided.accelerate_config.to_yaml(),
        output_dir=files.path,
    )


def for_script(request: Request, hardware: Hardware) -> tuple[Launch, list[Problem]]:
    """The launch of a user's own script, and what its config would do wrong; raises `ConfigError` for bad flags."""
    arguments = request.accelerate_flags
    parsed = parse_arguments(arguments)
    launch = Launch(arguments=arguments)
    if not (parsed.module or parsed.no_python or Path(parsed.training_script).is_file()):
        fix = "unsloth-accel launch --config_file X.yaml script.py, or launch RUN.yaml"
        raise ConfigError(Problem(key=parsed.training_script, consequence="no such script.", fix=fix))
    flags = {name: getattr(parsed, name) for name in getattr(parsed, "nondefault", ())}
    promises = not any(getattr(parsed, name) for name in OTHER_KINDS)
    context = Context(hardware=hardware, flags=flags, launching=promises)
    if parsed.config_file is None:
        return launch, [] if has_default_config() else [named(one) for one in check_document(of_flags(context))]
    config = read_document(parsed.config_file, context, kind="accelerate")
    found = check_document(config)
    if config.kind == "unreadable":
        raise ConfigError(found)
    problems: list[Problem] = [named(one) for one in folded(found)]
    launch = replace(launch, yaml=config.text)
    if not promises:  # then the file's kind is not the launch's
        return launch, problems
    promised = promise_of_config(config.values, parsed.config_file, parsed.num_processes, config.text)
    if promised is None:
        return launch, problems
    if promised.strategy:
        lacking = here().problem(promised.strategy, promised.device or "cuda")  # the script may not use Unsloth
        problems += [replace(lacking, key=parsed.config_file, severity="warning")] if lacking else []
    return replace(launch, environment=variables_for(promised, gpus=bool(hardware.devices))), problems


def launch(
    tokens: Sequence[str], *, run: Callable[[Launch], None] | None = None, hardware: Hardware | None = None
) -> None:
    """Do what `unsloth-accel launch TOKENS…` says; `run` and `hardware` are given by tests.

    Raises `ConfigError` before anything is started or written, `LaunchError` when a rank fails.
    """
    request = parse(tokens)
    if (done := finished(request)) and not request.dry_run:
        print(f"nothing is left to do: {done.adapter} is there (training.resume=if_any)", flush=True)
        return
    hardware = hardware or Hardware.detect()
    decided: Plan | None = None
    if request.run_yaml is None:
        command, problems = for_script(request, hardware)
    else:
        command, decided, problems = for_run(request, hardware)
        print(f"plan for {request.run_yaml}\n{decided}", flush=True)
    problems = [replace(one, severity="warning") if one.rule in request.allowed else one for one in problems]
    if request.dry_run:
        _print_dry_run(command, problems)
        return
    problems = once_served(decided.run, problems) if decided else problems
    raise_errors(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    run = run or run_accelerate
    if decided is None:
        run(command)
        return
    with made_room(decided) as variables, reported(decided.run.output_dir):
        run(replace(command, environment=command.environment | variables))


def finished(request: Request) -> RunDirectory | None:
    """Return the directory of a run that is launched again (training.resume=if_any) and has nothing left to do."""
    if request.run_yaml is None:
        return None
    _, overrides = own_overrides(request.accelerate_flags)
    try:
        run = load(request.run_yaml, [*request.overrides, *overrides])
    except ConfigError:  # told together with all the rest
        return None
    return done_by(run)


def done_by(run: RunConfig) -> RunDirectory | None:
    """Return the directory of a run that has nothing left to do, and say what it is not. With training.resume=if_any
    ranks that outlive their launcher are waited for first: a scheduler is quick to launch again."""
    if run.training.get("resume") == IF_ANY:
        wait_for_orphans(run.output_dir)
    if not resume_if_any.is_done(run):
        return None
    for problem in resume_if_any.left_out(run):
        print(problem, file=sys.stderr)
    return RunDirectory(run.output_dir)


@contextmanager
def made_room(decided: Plan) -> Iterator[dict[str, str]]:
    """Prepare output_dir and write the plan's files; yields the variables by which ranks know both, and whether to ask
    the Hub (`hub_variables`).

    The directory is this launch's alone until the block ends. An earlier run is put aside, and deleted only when this
    one has an adapter: it stays there while this one has checkpoints to go on from, and a run without puts it back.
    Raises `ConfigError` where output_dir can't be written, another launch writes there, or it holds a user's own in the
    place of what a run writes.
    """
    files, hub = RunDirectory(decided.run.output_dir), hub_variables(decided.run, decided.device)
    with locked(files.path) as lock:
        raise_errors(taken_problems(decided.run))
        directory, aside = files.path, files.previous
        if own_files.clear_run(directory):  # what a killed run had made is in its place again
            raise_errors(output_problems(decided.run))
        try:
            own_files.remove(own_files.errors_of(directory), directory)
            if decided.run.overwrite:
                _put_back(files)  # what a launch that was killed had put aside
                if products := own_files.products(directory):
                    own_files.move([*products, *own_files.describing(directory)], directory, aside)
            decided.write(directory)
        except BaseException as error:  # also the plan's own word on a full disk, and Ctrl-C
            with suppress(OSError):
                own_files.move(_held(aside), aside, directory)
                aside.rmdir()
            if not isinstance(error, OSError):
                raise
            raise unwritable(directory, error) from None
        try:
            yield variables_of(lock, files.planned_yaml) | hub
        finally:
            if lock.is_ours and _is_to_go_on(files):
                print(
                    f"the earlier run stays in {aside} until this one has its adapter (training.resume=true)",
                    flush=True,
                )
            elif lock.is_ours:
                _put_back(files)


def _is_to_go_on(files: RunDirectory) -> bool:
    """Return whether a run, before which another one was put aside, has checkpoints and no adapter yet."""
    return files.previous.is_dir() and not is_replaced(files.path) and something_to_show(files.path)


def _put_back(files: RunDirectory) -> None:
    """Put an earlier run back that was put aside, or remove it where a newer adapter stands in its place."""
    if files.previous.is_dir() and not is_replaced(files.path):
        gone = own_files.products(files.path)
        if own_files.is_of_a_run(files.previous):  # else what describes the earlier run lies where it lay
            gone += own_files.describing(files.path)
        own_files.remove([file for file in gone if is_since(file, files.previous)], files.path)
        own_files.move(_held(files.previous), files.previous, files.path)
    shutil.rmtree(files.previous, ignore_errors=True)


def _held(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()]


def _print_dry_run(command: Launch, problems: Sequence[Problem]) -> None:
    print(f"\ncommand\n  {command}\n\nenvironment")
    for name, value in command.environment.items():
        print(f"  {name}={value}")
    for name in command.secrets:
        print(f"  {name}={HIDDEN}")
    print(f"\nconfig file\n{command.yaml}", flush=True)
    # A dry run writes and loads nothing, so what is in the output directory, and what the Hub says, only matter to the
    # run itself.
    places = ("output_dir", "training.resume")
    blocking = [one for one in errors(problems) if one.key not in places and one.rule != HUB]
    for problem in problems:
        if problem not in blocking:
            print(replace(problem, severity="warning"), file=sys.stderr)
    raise_errors(blocking)
