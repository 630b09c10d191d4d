"""What a script or notebook needs to run in several processes: two lines, and what in it every process would do.

It is read from its syntax tree; nothing of it runs.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem, counted, first_line, shortened
from ..files import read_bytes
from ..strategies import usual

_PROCESSES = 2
"""Processes of the launch that is shown."""
_LARGEST = 2**26
"""Bytes beyond which a file is no script, and isn't read; notebooks hold pictures."""
_GUARDS = ("process_zero", "main_process", "rank", "RANK")
"""Parts of a condition that chooses one process; what stands below it is left out."""
_IF_ZERO = "below if trainer.is_world_process_zero(): (accelerate.PartialState().is_main_process, before there is one)"
_AFTERWARDS = "do this once after the launch has ended, in one process"


_SHELL = re.compile(r"(\s*)([!%?]|[\w., ]+=\s*[!%]|[\w.]+\?\s*$)")
"""Beginning of a notebook's line that is the shell's or IPython's."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that every process makes, what comes of it, and what to do."""

    names: tuple[str, ...]
    """Names of functions, with a dot in front those of methods, or whole dotted names."""
    happens: str
    do: str
    writes: bool = False
    """Whether only calls count whose second argument, or mode, says that a file is written."""


CALLS = (
    Call(
        names=(".map", ".filter"),
        happens="every process does the same work, and they write one cache",
        do="with trainer.args.main_process_first(): around it, or before the Trainer exists "
        "with accelerate.PartialState().main_process_first():, so that the others read what the first has cached",
    ),
    Call(names=("print", ".to_string", "display"), happens="is shown once per process", do=_IF_ZERO),
    Call(
        names=(".save_pretrained", ".push_to_hub"),
        happens="without adapt all processes write; with it one writes what is the trainer's, under fsdp2 gathered",
        do="leave it, behind adapt and called by every process",
    ),
    Call(
        names=(".save_lora",),
        happens="all processes write into one directory",
        do="unsloth_accel.save(model, DIR, tokenizer=tokenizer), called by every process",
    ),
    Call(
        names=(".save_pretrained_merged",),
        happens="without adapt all processes merge and write; with it one does, and the other GPUs wait",
        do=f"trainer.save_model(DIR), and {_AFTERWARDS} (unsloth-accel merge DIR)",
    ),
    Call(
        names=(".save_pretrained_gguf", ".push_to_hub_gguf", ".push_to_hub_merged"),
        happens="without adapt all processes merge, convert and write; with it one does, and the other GPUs wait",
        do=f"trainer.save_model(DIR), and {_AFTERWARDS}",
    ),
    Call(
        names=(".merge_and_unload",),
        happens="all processes merge the whole model",
        do=f"trainer.save_model(DIR), and {_AFTERWARDS} (unsloth-accel merge DIR)",
    ),
    Call(names=(".upload_folder", ".upload_file"), happens="all processes upload", do=_IF_ZERO),
    Call(
        names=(".generate", ".fast_generate"),
        happens="every process answers; under fsdp2 a model that is divided can't answer in one process alone",
        do="with unsloth_accel.generating(model): around it in every process, with synced_gpus=False",
    ),
    Call(
        names=("wandb.init", "mlflow.start_run", "trackio.init", "swanlab.init", "comet_ml.start", "SummaryWriter"),
        happens="begins a run per process",
        do="report_to= in the Trainer's config, which logs on rank 0, or " + _IF_ZERO,
    ),
    Call(names=("open", ".open"), happens="all processes write one file", do=_IF_ZERO, writes=True),
    Call(
        names=("torch.save", "json.dump", "pickle.dump", ".to_csv", ".to_json", ".to_parquet", ".write_text"),
        happens="all processes write one file",
        do=_IF_ZERO,
    ),
    Call(
        names=("shutil.rmtree", "os.remove", "os.unlink", "shutil.move", "os.rename"),
        happens="the first process takes away what the others look for",
        do=_IF_ZERO + " and accelerate.PartialState().wait_for_everyone() after it",
    ),
    Call(names=("input",), happens="every process waits for an answer", do="take an argument in its place"),
    Call(
        names=("torch.cuda.set_device", ".cuda"),
        happens="puts every process on the GPU that it names, by default its own",
        do="take it out; each process has a GPU of its own, and Unsloth loads there",
    ),
    Call(
        names=("notebook_launcher", "accelerate.notebook_launcher"),
        happens="starts processes of its own, inside each process",
        do="unsloth_accel.notebook_launch(plan) in a notebook, unsloth-accel launch for a script",
    ),
)


@dataclass(frozen=True)
class Place:
    """Line of a script, or cell and line of a notebook, from 1."""

    line: int
    cell: int = 0

    def __str__(self) -> str:
        return f"cell {self.cell}, line {self.line}" if self.cell else f"line {self.line}"


@dataclass(frozen=True)
class Found:
    place: Place
    code: str
    happens: str
    do: str


def describe(path: str | Path) -> list[str]:
    """Return the lines to show of a script or notebook; raises `ConfigError` where it can't be read."""
    parts = _parts(Path(path))
    added = list(_to_add(parts))
    found = [one for cell, tree in parts for one in _found(tree, cell)]
    said = f"{counted(len(added), 'line')} to add" if added else "has the lines already"
    lines = [f"{path}: {said}"]
    lines += [f"  {where:<22}  {code}" for where, code in added]
    if found:
        lines += ["Every process runs the whole of it. These lines do what only one should, or otherwise:"]
        for one in found:
            lines += [f"  {one.place!s:<9} {one.code}", f"            {one.happens}. Fix: {one.do}"]
    else:
        lines += ["Every process runs the whole of it; no line of it was found that only one should run."]
    if Path(path).suffix == ".ipynb":
        lines += [
            "A notebook's kernel is one process. Save it as a script (jupyter nbconvert --to script), without lines",
            "that begin with ! or %; or describe the run in YAML: unsloth-accel init, and notebook_launch(plan).",
        ]
    script = shlex.quote(str(Path(path).with_suffix(".py")))
    strategy = usual(_PROCESSES).name
    return [
        *lines,
        f"config  unsloth-accel config --strategy {strategy} --gpus {_PROCESSES} --out {strategy}.yaml",
        f"launch  unsloth-accel launch --config_file {strategy}.yaml {script}",
    ]


def _parts(path: Path) -> list[tuple[int, ast.Module]]:
    """Return the syntax tree of a script as cell 0, or those of a notebook's cells of code, numbered from 1."""
    try:
        text = read_bytes(path, _LARGEST)
    except (OSError, ValueError) as error:
        said = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise _unreadable(path, f"{said}.", "give a readable script or notebook") from None
    if path.suffix == ".ipynb":
        return [(number, _tree(source, path, number)) for number, source in _cells(text, path)]
    return [(0, _tree(text, path, 0))]


def _tree(source: str | bytes, path: Path, cell: int) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        where = f"{Place(error.lineno, cell)}: " if error.lineno else ""
        raise _unreadable(path, f"{where}{error.msg}.", "correct the Python there") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(path, f"is no Python: {first_line(error)}.", "give a script or notebook") from None


def _cells(text: bytes, path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and source of each cell of code; lines for the shell or IPython are blank in it."""
    try:
        cells = json.loads(text)["cells"]
        sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = first_line(error) if isinstance(error, ValueError) else "it has no cells"
        raise _unreadable(path, f"is no notebook: {what}.", "save it again in Jupyter, or give a script") from None
    for number, source in enumerate(sources, start=1):
        lines = (source if isinstance(source, str) else "".join(map(str, source))).split("\n")
        if lines[0].startswith("%%"):
            continue
        yield number, "\n".join(_plain(line) for line in lines)


def _plain(line: str) -> str:
    """Return a line of a notebook as Python: `pass` for one that is the shell's or IPython's."""
    own = _SHELL.match(line)
    return f"{own[1]}pass" if own else line


def _unreadable(path: Path, consequence: str, fix: str) -> ConfigError:
    return ConfigError(Problem(key=str(path), consequence=consequence, fix=fix))


def _to_add(parts: list[tuple[int, ast.Module]]) -> Iterator[tuple[str, str]]:
    """Yield where each line is to be added, and the line, as far as they are not there."""
    imports = [(cell, node) for cell, tree in parts for node in ast.walk(tree) if isinstance(node, _IMPORTS)]
    heavy = ("unsloth", "trl", "transformers", "peft", "accelerate", "torch")
    first = next(((cell, node) for cell, node in imports if _imported(node) & {*heavy}), None)
    ours = [(cell, node) for cell, node in imports if "unsloth_accel" in _imported(node)]
    if first and not any((cell, node.lineno) < (first[0], first[1].lineno) for cell, node in ours):
        where = Place(first[1].lineno, first[0])
        yield f"before {where}", "import unsloth_accel  # before unsloth: sets what must be set in a launched process"
    elif not first and not ours:
        yield "first", "import unsloth_accel  # before unsloth: sets what must be set in a launched process"
    calls = [(cell, node) for cell, tree in parts for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if any(_name(node).rpartition(".")[2] in _ADAPTED for _, node in calls if _name(node) != "accelerator.prepare"):
        return
    trainers = [
        (cell, node)
        for cell, tree in parts
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and _name(node.value).endswith("Trainer")
        and isinstance(node.targets[0], ast.Name | ast.Attribute)
    ]
    for cell, node in trainers:
        name = ast.unparse(node.targets[0])
        yield f"after {Place(node.end_lineno or node.lineno, cell)}", f"{name} = unsloth_accel.adapt({name})"
    if not trainers:
        yield "before .train()", "trainer = unsloth_accel.adapt(trainer)  # a loop of your own: unsloth_accel.prepare"


_IMPORTS = (ast.Import, ast.ImportFrom)
_ADAPTED = ("adapt", "prepare", "notebook_launch")
"""Functions of this package of which a script that calls one needs no second line."""


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return {name.partition(".")[0] for name in names}


def _found(tree: ast.AST, cell: int) -> Iterator[Found]:
    """Yield what every process does, in the order of lines, without what stands below a condition for one process."""
    if isinstance(tree, ast.If) and any(guard in ast.unparse(tree.test) for guard in _GUARDS):
        for other in tree.orelse:
            yield from _found(other, cell)
        return
    if isinstance(tree, ast.Call) and (call := _call(tree)):
        yield Found(Place(tree.lineno, cell), _code(tree), call.happens, call.do)
    if isinstance(tree, ast.Assign) and "CUDA_VISIBLE_DEVICES" in ast.unparse(tree.targets[0]):
        happens = "every process sees the GPUs that it names only, after its own has been chosen"
        yield Found(Place(tree.lineno, cell), _code(tree), happens, "set it in front of the launch")
    if isinstance(tree, ast.keyword) and tree.arg == "device_map" and ast.unparse(tree.value) != "None":
        happens, do = "spreads the model over all GPUs in every process", "take it out; each process loads its own"
        yield Found(Place(tree.value.lineno, cell), ast.unparse(tree), happens, do)
    for node in ast.iter_child_nodes(tree):
        yield from _found(node, cell)


def _call(node: ast.Call) -> Call | None:
    name = _name(node)
    known = (name, f".{name.rpartition('.')[2]}") if isinstance(node.func, ast.Attribute) else (name,)
    call = next((call for call in CALLS if {*known} & {*call.names}), None)
    return None if call is None or (call.writes and not _writes(node)) else call


def _writes(node: ast.Call) -> bool:
    modes = [*node.args[:2], *(word.value for word in node.keywords if word.arg == "mode")]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return any(set(text) <= {*"rwaxbt+U"} and set(text) & {*"wax+"} for text in texts[-1:] if len(text) <= 4)


def _name(node: ast.Call) -> str:
    """Return the dotted name of what is called; of a call's result only the last part."""
    target: Any = node.func
    if isinstance(target, ast.Attribute):
        return f"{ast.unparse(target.value)}.{target.attr}" if _is_dotted(target.value) else f"….{target.attr}"
    return target.id if isinstance(target, ast.Name) else ""


def _is_dotted(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _is_dotted(node.value))


def _code(node: ast.stmt | ast.expr) -> str:
    return shortened(" ".join(ast.unparse(node).split()), 70)
