"""The checks that `benchmarks.gpu_checks` runs: a few launches each, and a verdict on what they left."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unsloth_accel.artifacts.checkpoints import checkpoints
from unsloth_accel.capabilities.probe import probe
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan
from unsloth_accel.verify.verdict import largest

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 450
"""Seconds of one launch; many share the processor."""
STEPS, KEPT = 6, "kept"
"""Steps of `verify`, and the directory in which it trains."""
COMPARED = ("loss", "grad_norm", "moved", "adapter")
"""Differences that figures have of `verify`."""
SHARDING = ("fsdp2", "fsdp2_native")
SEVERAL = ("ddp", *SHARDING)
LOSS = 0.02
"""Relative difference of a loss in bf16 that passes as noise where no run of `verify` is made."""
CLI = ("-m", "unsloth_accel.cli")
SCALED = "loss that DDP may scale"
"""The probe of an Unsloth whose gradients under DDP are divided by the number of GPUs."""
LAUNCH = ("-m", "accelerate.commands.launch")
FULL_ROWS = {"data": {"path": "full.jsonl"}}
FEW_LORA = {"lora": {"r": 4}}
"""Less than 1 % of the model, as with any larger one: fsdp2 leaves it whole on every rank."""


class CheckError(Exception):
    """A check found something wrong; the text says what."""


@dataclass
class Place:
    """Where one check works, and what it starts there."""

    work: Path
    name: str
    path: tuple[str, ...] = ()
    """Directories put before PYTHONPATH."""
    commands: list[str] = field(default_factory=list)
    device: str = "cuda"
    """`cpu` for a trial of the checks themselves, with a model of two layers."""
    timeout: int = TIMEOUT
    """Seconds of one launch."""
    processes: int = 2
    """Of what isn't `single`."""

    @property
    def directory(self) -> Path:
        return self.work / self.name

    def run(self, label: str, *words: str | Path, status: int = 0, variables: Mapping[str, str] | None = None) -> str:
        """Run `python WORDS` and return what it printed; raises `CheckError` if it ends otherwise than expected."""
        texts = [str(word) for word in words]
        self.commands.append(f"python {' '.join(texts)}".replace(f"{self.work}/", "").replace(f"{ROOT}/", ""))
        log = self.directory / f"{label}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [*self.path, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            # Its own, since checks with other models write files of the same names.
            "UNSLOTH_COMPILE_LOCATION": str(self.directory / "compiled" / label),
            "TORCHINDUCTOR_COMPILE_THREADS": "4",
            **(variables or {}),
        }
        with log.open("wb") as file:
            command = [sys.executable, *texts]
            try:
                ended = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=self.timeout
                ).returncode
            except subprocess.TimeoutExpired:
                raise CheckError(f"{label}: not done after {self.timeout} s") from None
        said = log.read_text(encoding="utf-8", errors="replace")
        if ended != status:
            lines = [line for line in said.splitlines() if line.strip()]
            # A launcher ends with its own account, after what its processes said.
            told = [line for line in lines if re.match(r"(\[rank\d+\]: ?)?[\w.]*(Error|error|OutOfMemory)\b", line)][:6]
            shown = " | ".join(told)[-700:] + " | " + " | ".join(lines[-12:])[-800:]
            raise CheckError(f"{label}: exit status {ended} instead of {status}: {shown}")
        return said

    def values(self, label: str, strategy: str, **changes: Any) -> dict[str, Any]:
        """A run of 6 steps of 8 rows by `strategy`; `changes` are sections with what is otherwise."""
        processes = self.processes if strategy != "single" else 1
        made: dict[str, Any] = {
            "model": {"name": "llama", "max_seq_length": 512},
            "data": {"path": "rows.jsonl"},
            "batch": {"global_size": 8},
            "distributed": {"strategy": strategy, "num_processes": processes},
            "training": {"max_steps": 6, "learning_rate": 1e-3, "per_device_train_batch_size": 8 // self.processes},
            "logging": {"progress": False},
            "output_dir": str(self.directory / label),
        }
        if self.device == "cpu":
            made["model"]["name"] = "tiny"
            made["distributed"]["device"] = "cpu"
        for section, values in changes.items():
            made[section] = made.get(section, {}) | values
        made["model"]["name"] = str(self.work / made["model"]["name"])
        made["data"] = {key: str(self.work / path) for key, path in made["data"].items()}
        return made

    def description(self, label: str, strategy: str, **changes: Any) -> Path:
        path = self.directory / f"{label}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.values(label, strategy, **changes)), encoding="utf-8")
        return path

    def planned(self, label: str, strategy: str, **changes: Any) -> Plan:
        """A plan whose files are written, for launching something else with them."""
        decided = plan(from_dict(self.values(label, strategy, **changes)), Hardware.detect())
        decided.write(self.directory / label)
        return decided


def losses(directory: Path) -> list[float]:
    lines = (directory / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def adapter(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(directory / "adapter_model.safetensors")
    expect(len(tensors) > 0, "the adapter is empty")
    expect(any(bool(t.any()) for name, t in tensors.items() if "lora_B" in name), "the adapter was not trained")
    return tensors


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The distance of two adapters' B, which are zero before training, over how far the first has moved."""
    expect(one.keys() == other.keys(), "the adapters don't hold the same tensors")
    pairs = [(one[name].float(), other[name].float()) for name in one if "lora_B" in name]
    far = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return math.sqrt(far / sum(float((a**2).sum()) for a, _ in pairs))


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckError(otherwise)


def relative(ours: Sequence[float], theirs: Sequence[float]) -> float:
    expect(len(ours) == len(theirs) > 0, f"{len(theirs)} steps instead of {len(ours)}")
    return largest(ours, theirs)


def saving(strategy: str, changes: dict[str, Any], state_dict: str, place: Place) -> dict[str, Any]:
    """What lies on disk at each save is what the ranks hold, to the bit (tests/scripts/watch_saving.py)."""
    training = {"save_strategy": "steps", "save_steps": 2}
    decided = place.planned("run", strategy, training=training, **changes)
    config = place.directory / "run" / "accelerate.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("FULL_STATE_DICT", state_dict), encoding="utf-8")
    script, run = ROOT / "tests" / "scripts" / "watch_saving.py", place.directory / "run" / "run.planned.yaml"
    variables = decided.accelerate_config.environment
    # `unsloth-accel launch` refuses a sharded state dict, which loses the adapter of whoever doesn't use `adapt`.
    starter = (*CLI, "launch") if "FULL" in state_dict else LAUNCH
    said = place.run("run", *starter, "--config_file", config, script, run, variables=variables)
    equal = re.findall(r"equal: (\S+), (\d+) tensors", said)
    # Where a checkpoint that can't be written is given up, the script has the second one fail.
    saved = ["checkpoint-2"] * (strategy in ("fsdp1", "fsdp2")) + ["checkpoint-4", "checkpoint-6", "trainer", "model"]
    expect([what for what, _ in equal] == saved, f"equal were only {equal}")
    expect(("gone: checkpoint-2" in said) == (saved[0] != "checkpoint-2"), "the second checkpoint")
    return {"equal": [what for what, _ in equal], "tensors": int(equal[0][1])}


def resuming(strategy: str, changes: dict[str, Any], place: Place) -> dict[str, Any]:
    """Six steps, and three that go on from the third: the same losses and the same adapter. Then in one process."""
    training = {"save_strategy": "steps", "save_steps": 3}
    run = place.description("run", strategy, training=training, **changes)
    straight, out = place.directory / "straight", place.directory / "out"

    def launch(label: str, to: Path, *more: str) -> None:
        place.run(label, *CLI, "launch", run, f"output_dir={to}", *more)

    launch("straight", straight)
    shutil.copytree(straight, out)
    for name in ("checkpoint-6", "adapter"):
        shutil.rmtree(out / name)
    (out / "results.json").unlink()
    moved = shutil.copytree(out, place.directory / "one")
    launch("resumed", out, "training.resume=true")
    figures: dict[str, Any] = {
        "loss": relative(losses(straight), losses(out)),
        "adapter": apart(adapter(straight / "adapter"), adapter(out / "adapter")),
    }
    expect(
        figures["loss"] <= LOSS / 10, f"the losses differ by {figures['loss']:.2g}: {losses(straight)}, {losses(out)}"
    )
    expect(figures["adapter"] <= 0.02, f"the adapters end apart by {figures['adapter']:.2g} of the way")
    one = [f"output_dir={moved}", "training.resume=true", "distributed.strategy=single", "distributed.num_processes=1"]
    try:
        place.run("in-one-process", *CLI, "launch", run, *one)
        figures["in one process"] = relative(losses(straight), losses(moved))
        expect(
            figures["in one process"] <= LOSS, f"in one process the losses differ by {figures['in one process']:.2g}"
        )
    except CheckError as error:
        refused = "can't read the optimizer" in str(error) or "its state is of another optimizer" in str(error)
        expect("exit status 2" in str(error) and refused, str(error))
        said = (place.directory / "in-one-process.log").read_text(encoding="utf-8")
        figures["in one process"] = next(line for line in said.splitlines() if "error:" in line)[:300]
    return figures


def going_on(strategies: Sequence[str], changes: dict[str, Any], place: Place) -> dict[str, Any]:
    """A run that begins with an adapter has the same first losses by each strategy, and not those of the base."""
    training = {"max_steps": 6, "learning_rate": 2e-2}
    place.run("first", *CLI, "launch", place.description("first", strategies[0], training=training, **changes))
    found: dict[str, list[float]] = {}

    def one(strategy: str) -> None:
        begun = changes | {"model": changes.get("model", {}) | {"name": str(place.directory / "first" / "adapter")}}
        training = {"max_steps": 2, "learning_rate": 1e-4}
        place.run(strategy, *CLI, "launch", place.description(strategy, strategy, training=training, **begun))
        found[strategy] = losses(place.directory / strategy)
        adapter(place.directory / strategy / "adapter")

    at_once(one, strategies)
    own = found[strategies[0]]
    moved = relative(losses(place.directory / "first")[:1], own[:1])
    expect(moved > 2 * LOSS, f"the first training moved the loss by {moved:.2g} only, so that nothing can be seen")
    figures = {strategy: relative(own, theirs) for strategy, theirs in found.items()}
    expect(max(figures.values()) <= LOSS, f"first losses differ: {found}")
    return {"moved by the first training": moved, **figures}


def held_out(place: Place) -> dict[str, Any]:
    """Held-out losses before, while and after it trains, and answers: every strategy against one GPU, each row once.
    Answers are generated; each evaluation is in the step of a checkpoint, which must be whole."""
    data = {name: str(ROOT / "examples" / "data" / f"elements-{kind}.jsonl")
            for name, kind in (("path", "train"), ("eval_path", "eval"))}  # fmt: skip
    training = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    found: dict[str, dict[str, Any]] = {}

    def one(strategy: str) -> None:
        evaluation = {"exact_match": True, "samples": 2, "max_rows": 8, "max_new_tokens": 24}
        run = place.description(strategy, strategy, data=data, evaluation=evaluation, training=training)
        place.run(strategy, *CLI, "launch", run)
        found[strategy] = json.loads((place.directory / strategy / "results.json").read_text(encoding="utf-8"))
        whole = [path.name for path in checkpoints(place.directory / strategy)]
        expect(whole == ["checkpoint-2", "checkpoint-4", "checkpoint-6"], f"{strategy} left {whole}")

    at_once(one, ("single", *SEVERAL))
    expect(all(results["after"]["rows"] == 8 for results in found.values()), f"answers: {found}")

    def losses_of(results: dict[str, Any]) -> list[float]:
        while_it_trained = [one["loss"] for one in results["evaluations"]]
        return [results["before"]["loss"], *while_it_trained, results["after"]["loss"]]

    alone = losses_of(found["single"])
    figures = {strategy: relative(alone, losses_of(results)) for strategy, results in found.items()}
    expect(len(alone) == 5 and max(figures.values()) <= LOSS, f"held-out losses differ: {figures}")
    return figures


def grpo(strategy: str, place: Place) -> dict[str, Any]:
    """Three steps of benchmarks/grpo_lengths.py: completions are written between them."""
    out = place.directory / "out"
    words: list[str | Path] = [
        "--model",
        place.work / "llama",
        "--output",
        out,
        "--max-steps",
        "3",
        "--max-new-tokens",
        "24",
    ]
    script = ROOT / "benchmarks" / "grpo_lengths.py"
    said = place.run("run", *CLI, "launch", *config_of(strategy, place), script, *words)
    steps = re.findall(r"'grad_norm': '?([0-9.e+-]+)", said)
    norms = [float(norm) for norm in steps]
    expect(len(norms) == 3 and all(0 < norm < 100 for norm in norms), f"gradient norms {norms}")
    return {"tensors": len(adapter(out / "adapter")), "grad_norm": norms}


def scripts(name: str, place: Place) -> dict[str, Any]:
    """An example under every strategy by its shipped config, with accelerate's own launcher, against one process."""
    found: dict[str, list[float]] = {}
    adapters: dict[str, Any] = {}

    def one(strategy: str) -> None:
        out = place.directory / strategy
        words: list[str | Path] = ["--model", place.work / "llama", "--output", out]
        words += ["--steps" if name == "accelerate_loop" else "--max-steps", "4"]
        launched = [*LAUNCH, *config_of(strategy, place)] if strategy != "single" else []
        words += ["--accumulation", str(2 * (1 if launched else place.processes))]
        only = {} if launched else {"CUDA_VISIBLE_DEVICES": Hardware.detect().devices[0].uuid}
        said = place.run(strategy, *launched, ROOT / "examples" / f"{name}.py", *words, variables=only)
        found[strategy] = [float(loss) for loss in re.findall(r"(?:step \d+  loss |'loss': '?)([0-9.]+)", said)]
        adapters[strategy] = adapter(out / "adapter")

    at_once(one, ("single", *SEVERAL))
    figures: dict[str, Any] = {s: relative(found["single"], found[s]) for s in SEVERAL}
    expect(max(figures.values()) <= LOSS, f"losses differ: {found}")
    figures["adapter"] = {s: apart(adapters["single"], adapters[s]) for s in SEVERAL}
    expect(max(figures["adapter"].values()) <= 0.1, f"adapters end apart: {figures['adapter']}")
    return figures


def verified(
    strategies: str, changes: dict[str, Any], variables: dict[str, str], place: Place, *more: str
) -> dict[str, Any]:
    """`unsloth-accel verify`, with `more` words: is it the run of one GPU?"""
    out = place.directory / "verified.json"
    run = place.description("run", "auto", **changes)
    words: list[str | Path] = [
        "--strategy",
        strategies,
        "--steps",
        str(STEPS),
        "--json",
        out,
        "--keep",
        place.directory / KEPT,
        *more,
    ]
    try:
        place.run("verify", *CLI, "verify", run, *words, variables=variables)
    except CheckError:
        if not out.is_file():
            raise
    said = json.loads(out.read_text(encoding="utf-8"))
    runs = {name: one for name, one in said["runs"].items() if name != "single"}
    figures = {name: {k: one.get("difference", {}).get(k) for k in COMPARED}
               for name, one in runs.items()}  # fmt: skip
    faults = {name: one["faults"] for name, one in runs.items() if one["faults"]}
    expect(not faults, f"{faults}; {figures}")
    return figures


def older(version: str, place: Place) -> dict[str, Any]:
    """An older Unsloth: DDP trains like one GPU, and sharding is refused with the reason."""
    figures: dict[str, Any] = {"refused": {}}
    for strategy in SHARDING:
        run = place.description(strategy, strategy)
        said = place.run(f"refused-{strategy}", *CLI, "launch", run, status=2)
        figures["refused"][strategy] = next(line for line in said.splitlines() if "error:" in line)[:300]
    try:
        return figures | verified("ddp", {}, {}, place)
    except CheckError as error:
        if "one process alone fails" in str(error):
            # What it was released for is older than what this machine has; then `doctor` must say so.
            told = [one for one in diagnosed(place) if one["status"] == "error" and "out of bounds" in one["detail"]]
            expect(bool(told), str(error))
            said = "; ".join(f"{one['name']} {one['detail']}" for one in told)
            return figures | {"alone": str(error)[-200:], "doctor": said[:300]}
        lacks = [one.what for one in probe(place.path).missing]
        expect(SCALED in lacks and re.findall("the ([a-z ]+) differs", str(error)) == ["gradient norm"], str(error))
        return figures | {"ddp": f"gradients too small, as doctor says: {SCALED}", "found": str(error)[:300]}


def observed(strategy: str, place: Place) -> dict[str, Any]:
    """What a run says of itself: rows without padding, a step's time, MFU, memory, and a report."""
    run = place.description("run", strategy, **FEW_LORA)
    said = place.run("run", *CLI, "launch", run)
    expect("Padding-free" in said, "Unsloth did not make batches without padding")
    directory = place.directory / "run"
    summary = json.loads((directory / "logs" / "summary.json").read_text(encoding="utf-8"))
    expect(summary["mfu"] is not None and 0 < summary["mfu"] < 1, f"MFU is {summary['mfu']}: {summary['mfu_why']}")
    expect(len(summary["ranks"]) == place.processes, f"ranks: {summary['ranks']}")
    expect((directory / "report.html").stat().st_size > 10_000, "the report is empty")
    shares = {name: summary["ranks"][1][name] for name in ("data_share", "compute_share", "wait_share")}
    expect((shares["wait_share"] is not None) == (strategy != "fsdp2_native"), f"of the step: {shares}")
    return {"mfu": summary["mfu"], **shares, "peak_gib": summary["ranks"][1]["peak_gib"]}


def packed_attention(place: Place) -> dict[str, Any]:
    """Attention of all rows in one call, which torch before 2.12 has from the adapter, against a call for each row."""
    code = "import unsloth_accel, unsloth, torch; from unsloth_accel.adapters.varlen_attention import attend_at_once"
    said = place.run("trial", "-c", f"{code}; print('once:', attend_at_once(torch.device('cuda')))")
    expect("once: None" in said, next(line for line in said.splitlines() if line.startswith("once:")))

    def one(label: str) -> None:
        variables = {"UNSLOTH_TORCH_VARLEN": "0"} if label == "row-by-row" else {}
        place.run(label, *CLI, "launch", place.description(label, "ddp"), variables=variables)

    ways = ("at-once", "row-by-row")
    at_once(one, ways)
    ours, theirs = (place.directory / way for way in ways)
    figures = {"loss": relative(losses(theirs), losses(ours))}
    figures["adapter"] = apart(adapter(theirs / "adapter"), adapter(ours / "adapter"))
    expect(figures["loss"] <= LOSS and figures["adapter"] <= 0.1, f"not the same run: {figures}")
    return figures


def merging(place: Place) -> dict[str, Any]:
    """`unsloth-accel merge` of what a sharded run saved, against base + B·A·scale of one weight."""
    from safetensors.torch import load_file

    run = place.description("run", "fsdp2")
    place.run("run", *CLI, "launch", run)
    place.run("merge", *CLI, "merge", place.directory / "run")
    tensors = adapter(place.directory / "run" / "adapter")
    key = "model.layers.3.mlp.down_proj"
    a, b = (tensors[f"base_model.model.{key}.lora_{x}.weight"].float() for x in "AB")
    base = load_file(place.work / "llama" / "model.safetensors")[f"{key}.weight"].float()
    merged = load_file(place.directory / "run" / "merged" / "model.safetensors")[f"{key}.weight"]
    expected = (base + b @ a).to(merged.dtype)  # alpha / r is 1
    expect(bool((base.to(merged.dtype) != merged).any()), "nothing was merged")
    far = float((expected.float() - merged.float()).abs().max() / base.abs().max())
    expect(far < 0.01, f"the merged weight is off by {far:.2g}")
    return {"off": far, "dtype": str(merged.dtype).removeprefix("torch.")}


def doctor(place: Place) -> dict[str, Any]:
    """`unsloth-accel doctor` on a machine with GPUs: it may find faults, and its own trials must succeed."""
    results = {one["name"]: one for one in diagnosed(place)}
    expect(results["all-reduce, NCCL"]["status"] == "ok", f"all-reduce: {results['all-reduce, NCCL']}")
    told = [name for name, one in results.items() if one["status"] == "ok" and name.startswith(("GPU", "all-reduce"))]
    return {name: results[name]["detail"] for name in told}


def diagnosed(place: Place) -> list[dict[str, Any]]:
    """What `doctor` says, whether or not it finds faults."""
    try:
        place.run("doctor", *CLI, "doctor", "--json")
    except CheckError as error:
        expect("exit status 1" in str(error), str(error))
    said = (place.directory / "doctor.log").read_text(encoding="utf-8")
    results: list[dict[str, Any]] = json.loads(said[said.index("{") :])["results"]
    return results


def config_of(strategy: str, place: Place) -> list[str | Path]:
    """Return the words by which a launcher takes the shipped config of `strategy`, for the processes of `place`."""
    config = ROOT / "accelerate_configs" / f"{strategy}.yaml"
    return ["--config_file", config, "--num_processes", str(place.processes)]


def at_once(one: Callable[[str], None], names: Sequence[str]) -> None:
    with ThreadPoolExecutor(len(names)) as pool:
        for done in [pool.submit(one, name) for name in names]:
            done.result()
