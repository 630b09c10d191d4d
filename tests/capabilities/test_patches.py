"""The list of upstream names: each is there in the installed versions, each is used, and none is used beside it."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import unsloth_accel
from unsloth_accel.adapters.fsdp2.whole_gradients import copy_together
from unsloth_accel.callbacks.loader_clock import LoaderClock
from unsloth_accel.capabilities import probe
from unsloth_accel.capabilities.patches import PATCHES, Patch
from unsloth_accel.errors import ConfigError
from unsloth_accel.strategies import STRATEGIES

PACKAGE = Path(unsloth_accel.__file__).parent
ROOMS = ("adapters", "artifacts", "callbacks", "data", "launch", "models", "training", "verify")
LISTED = {word for one in PATCHES for word in re.findall(r"\w+", one.place)}
SETTINGS = {
    *("gradient_as_bucket_view", "find_unused_parameters", "ignored_modules", "device"),
    *("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("train_dataset", "eval_dataset", "accepts_loss_kwargs"),
    *("num_input_tokens_seen", "should_save", "should_training_stop", "average_tokens_across_devices"),
    *("should_evaluate", "best_metric", "best_global_step", "best_model_checkpoint"),
    *("chat_template", "eos_token", "padding_side", "quant_storage", "module", "data", "grad", "forward"),
    *("num_experts", "router_aux_loss_coef", "target_modules"),
    *("weight", "tie_word_embeddings", "eos_token_id", "pad_token", "suppress_tokens"),
}
"""Documented fields that are there to be set, of other packages' objects."""
OURS = {
    *("shared_bytes", "mapped_bytes", "mapping", "fetched", "looked_up", "step_halving", "data_report"),
    *("listeners", "steps", "slower_by", "save_now", "hang_after", "advice", "warn"),
    "rehearses",
    *("seconds", "keep_activations", "parts", "peak_gib", "refused_gib"),
    *("evaluated", "eval_batch_size", "refused_eval_batch_size"),
}
OF_NEWER_TORCH = {"_fsdp_param_groups"}
"""Looked for with a default beside the name that is listed."""
IN_C = {"_dump_fr_trace_json"}
"""Looked for with a default, in what has no text to look into."""
STANDARD_LIBRARY = {
    *("_current_frames", "_exit", "_option_string_actions", "cell_contents"),
    *("environ", "excepthook", "stdout", "quiet", "silent", "__class__", "__cause__"),
    *("_register_atexit", "_threads_queues"),  # each looked for with a default
}


def places() -> Iterator[tuple[Patch, str, str, list[str]]]:
    """Each place: its patch, package, file and names, which have their class."""
    for one in PATCHES:
        for place in one.places:
            path, _, listed = place.partition(": ")
            package, _, file = path.partition("/")
            names: list[str] = []
            for name in listed.split(", ") if listed else ():
                owner = names[-1].rpartition(".")[0] if names else ""
                names.append(f"{owner}.{name}" if owner and "." not in name else name)
            yield one, package, file, names


def source(package: str, file: str) -> str | None:
    """None for a package that a CPU installation hasn't."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        assert package == "bitsandbytes"
        return None
    return (Path(spec.origin).parent / file).read_text(encoding="utf-8")


parsed = functools.cache(ast.parse)


def words(tree: ast.AST) -> set[str]:
    """What a piece of source defines, sets or names in a text; a comment or a docstring is no sign."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return found


@pytest.mark.parametrize(
    ("one", "package", "file", "names"), list(places()), ids=lambda value: getattr(value, "what", "")
)
def test_every_name_is_defined_where_it_is_looked_for(one: Patch, package: str, file: str, names: list[str]) -> None:
    text = source(package, file)
    if text is None:
        return
    tree = parsed(text)
    for name in names:
        owner, _, attribute = name.rpartition(".")
        if not owner:
            assert name in words(tree)
            continue
        (kind,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == owner)
        inherited = {"__next__"} if attribute == "__next__" else set()
        assert attribute in words(kind) | inherited, name


def test_every_module_can_be_imported_and_has_its_classes_and_functions() -> None:
    """Of the packages whose import is quick; of the others the text must do, as above."""
    asked = []
    for _, package, file, names in places():
        if package not in ("torch", "accelerate", "datasets"):
            continue
        module = f"{package}.{file.rpartition('.')[0].replace('/', '.')}".removesuffix(".__init__")
        heads = sorted({name.partition(".")[0] for name in names})
        text = source(package, file) or ""
        defined = {node.name for node in parsed(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        asked.append((module, [head for head in heads if head in defined]))
    code = f"""
import functools, importlib
for path, names in {asked!r}:
    head, _, last = path.rpartition(".")
    try:
        module = importlib.import_module(path)
    except ImportError:  # of a stub: torch's own, written in C++
        module = functools.reduce(getattr, path.split(".")[1:], importlib.import_module(path.partition(".")[0]))
    print(*[f"{{path}}.{{name}}" for name in names if not hasattr(module, name)], sep="\\n", end="")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr[-2000:]


@pytest.mark.parametrize("one", [one for one in PATCHES if one.adapter], ids=lambda one: one.what)
def test_every_adapter_uses_its_names_and_asks_for_them(one: Patch) -> None:
    path = PACKAGE / one.adapter.replace(".", "/")
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    whole = text if one.adapter != "training.adapt" else everything()
    for place in one.places:
        for name in place.partition(": ")[2].split(", "):
            assert name.rpartition(".")[2] in whole, name
    assert f'available("{one.what}"' in text


def everything() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for room in ROOMS for file in (PACKAGE / room).rglob("*.py"))


def test_who_asks_asks_for_one_of_the_list() -> None:
    known = {one.what for one in PATCHES}
    assert len(known) == len(PATCHES)
    for node in ast.walk(ast.parse(everything())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "available":
            assert isinstance(node.args[0], ast.Constant)
            assert node.args[0].value in known
    assert {need for strategy in STRATEGIES for need in strategy.needs} <= known


def touched(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Attributes of other objects than `self` that are private or set, and private names that are imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if not own and (private or not isinstance(node.ctx, ast.Load)):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            name = node.args[1]
            if node.func.id in ("getattr", "hasattr", "setattr", "delattr") and isinstance(name, ast.Constant):
                if str(name.value).startswith("_") and not str(name.value).startswith("__"):
                    yield node.lineno, str(name.value)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if alias.name.startswith("_") or "._" in (node.module or ""):
                    yield node.lineno, alias.name


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_touched_is_listed(room: str) -> None:
    allowed = LISTED | SETTINGS | OURS | OF_NEWER_TORCH | IN_C | STANDARD_LIBRARY
    beside = [
        f"{file.relative_to(PACKAGE)}:{line}: {name}"
        for file in sorted((PACKAGE / room).rglob("*.py"))
        for line, name in touched(ast.parse(file.read_text(encoding="utf-8")))
        if name not in allowed and not name.startswith("_unsloth_accel")
    ]
    assert not beside


@pytest.mark.parametrize(
    "line", ["trainer._hidden = 1", "torch._hidden(1)", "getattr(model, '_hidden')", "from torch._hidden import name"]
)
def test_what_is_not_listed_is_seen(line: str) -> None:
    assert [name for _, name in touched(ast.parse(line)) if name not in LISTED | SETTINGS]


def lost(what: str, monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Have the patch `what` missing in this process."""
    one = next(one for one in PATCHES if one.what == what)
    found = probe.Capabilities(versions={one.package: "9.9"}, missing=(one,))
    monkeypatch.setattr(probe, "here", lambda: found)
    return one


def test_what_is_there_is_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(probe.available(one.what) for one in PATCHES if one.adapter)
    assert capsys.readouterr() == ("", "")


def test_what_is_done_without_is_said_once_for_all_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = lost("gradients copied together", monkeypatch)
    assert not probe.available(one.what)
    assert capsys.readouterr().out == f"unsloth_accel: unsloth 9.9 has no {one.place}: {one.cost}.\n"
    monkeypatch.setenv("RANK", "1")
    assert not probe.available(one.what)
    assert capsys.readouterr().out == ""


def test_what_cannot_be_done_without_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = lost("gradients of whole weights", monkeypatch)
    assert not probe.available(one.what, needed=False)
    with pytest.raises(
        ConfigError, match=r"unsloth='9\.9': unsloth 9\.9 has no unsloth/models/fsdp2_save\.py"
    ) as raised:
        probe.available(one.what)
    assert raised.value.problems[0].fix == one.fix


def test_without_the_name_the_adapter_leaves_its_work_undone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    lost("the wait for the loader", monkeypatch)
    plain, clock = _BaseDataLoaderIter.__next__, LoaderClock()
    clock.start()
    assert _BaseDataLoaderIter.__next__ is plain
    clock.stop()
    assert "_BaseDataLoaderIter.__next__: the time in which" in capsys.readouterr().out
    lost("gradients copied together", monkeypatch)
    monkeypatch.setitem(sys.modules, "unsloth", None)  # importing anything of it would fail
    copy_together()


def test_what_cannot_be_done_without_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from unsloth_accel.training.adapt import adapt

    lost("methods that take a step of ours", monkeypatch)
    untouched: Any = object()
    with pytest.raises(ConfigError, match=r"Trainer\.train"):
        adapt(untouched)
