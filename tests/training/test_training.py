"""Real training: real Unsloth, real `accelerate launch`, two gloo processes. Minutes, not milliseconds."""

import functools
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import (
    EVAL,
    ROOT,
    SCRIPTS,
    SMOLLM2,
    Run,
    accelerate_launch,
    adapter,
    cli_command,
    steps,
    variable_rows,
    write_yaml,
)
from fake_hub import TOKEN as HUB_TOKEN
from fake_hub import fake_hub
from trained_runs import difference

from unsloth_accel.config.read_run import load
from unsloth_accel.hardware import cpu_and_memory
from unsloth_accel.report.run_record import read_run_record

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
TOKEN = "hf_aSecretThatNobodyShouldSee"
LOADING = """
import sys
import unsloth
from peft import AutoPeftModelForCausalLM
one = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
other, tokenizer = unsloth.FastLanguageModel.from_pretrained(sys.argv[1], load_in_4bit=False)
for model in (one, other):
    trained = [tensor for name, tensor in model.named_parameters() if "lora_B" in name]
    print(bool(trained) and all(float(tensor.abs().max()) > 0 for tensor in trained))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 rows of 9 to 96 bytes: ranks hold different numbers of tokens, and an epoch ends with a step of one row."""
    return variable_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", [9 + (37 * i) % 88 for i in range(41)])


@pytest.fixture(scope="module")
def described(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, one epoch, of the tiny model in float32; eight rows a step, and one in the last."""
    return write_yaml(
        tmp_path_factory.mktemp("described") / "run.yaml",
        {
            "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
            "data": {"path": str(rows)},
            "batch": {"global_size": 8},
            "training": {
                "max_steps": 6,
                "learning_rate": 1e-2,
                "bf16": False,
                "per_device_train_batch_size": 4,
                "save_strategy": "steps",
                "save_steps": 3,
                "hub_token": TOKEN,
                "run_name": f"named by mistake after {TOKEN}",
            },
            "output_dir": "overridden",
        },
    )


@pytest.fixture(scope="module")
def straight(described: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, in two processes, start to end."""
    out = tmp_path_factory.mktemp("straight") / "run"
    printed = launch(described, out)
    (out.parent / "printed.txt").write_text(printed, encoding="utf-8")
    return out


def launch(
    described: Path, out: Path, *overrides: str, status: int = 0, start: Callable[..., Any] = fork_server.run
) -> str:
    command = cli_command("launch", described, f"output_dir={out}", *overrides)
    done = start(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_processes_train_like_one(described: Path, straight: Path, tmp_path: Path) -> None:
    """The same rows with one process × accumulation 2 and with two processes: the same run to 1e-5."""
    printed = launch(described, tmp_path / "one", "distributed.num_processes=1")
    assert "8 rows per step = 4 × 2 × 1" in printed
    found = difference(straight, tmp_path / "one")
    assert all(value <= TOLERANCE for value in found.values()), found
    # The comparison has something to compare: the model moved, and the tokens per row differ.
    assert len({step["num_input_tokens_seen"] for step in steps(straight)}) == 6
    assert max(float(tensor.abs().max()) for name, tensor in adapter(straight).items() if "lora_B" in name) > 1e-3


def test_unsynchronised_ranks_fail_the_comparison(straight: Path, described: Path, tmp_path: Path, cli: Run) -> None:
    """Evaluated first, which turns DDP off where adapters/ddp.py doesn't mend it. With nobody watching,
    training ends well and is another run: the comparison must see it."""
    run = _written(described, tmp_path, f"data.eval_path={load(described).data.path}", "batch.on_out_of_memory=stop")
    script = SCRIPTS / "train_unsynchronised.py"
    done = cli("launch", "--config_file", run.parent / "accelerate.yaml", script, run, "--no-guard")
    assert done.returncode == 0, done.stderr
    found = difference(straight, run.parent)
    assert found["adapter"] > 100 * TOLERANCE
    assert found["grad_norm"] > 100 * TOLERANCE


def test_the_guard_stops_unsynchronised_ranks(described: Path, tmp_path: Path, cli: Run) -> None:
    """The same with the guard: it stops in the first step, says why, and nothing is saved."""
    run = _written(described, tmp_path, f"data.eval_path={load(described).data.path}", "batch.on_out_of_memory=stop")
    script = SCRIPTS / "train_unsynchronised.py"
    done = cli("launch", "--config_file", run.parent / "accelerate.yaml", script, run, forked=True)
    assert done.returncode == 1
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in (run.parent / "errors").iterdir()]
    assert all("gradients of the first step differ between ranks" in report["message"] for report in reports)
    assert not (run.parent / "adapter").exists()
    assert not list(run.parent.glob("checkpoint-*"))


def _written(described: Path, tmp_path: Path, *overrides: str) -> Path:
    """run.planned.yaml of a planned run, beside its accelerate.yaml."""
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.planning.planner import plan

    decided = plan(load(described, [f"output_dir={tmp_path / 'run'}", *overrides]), Hardware.detect())
    decided.write(tmp_path / "run")
    return tmp_path / "run" / "run.planned.yaml"


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight held-out rows, as many as a step of the run has."""
    return variable_rows(tmp_path_factory.mktemp("eight") / "rows.jsonl", [9 + (37 * i) % 88 for i in range(8)])


@pytest.fixture(scope="module")
def evaluated(
    described: Path, eight: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, str]]:
    """The straight run under a strategy with held-out rows, evaluated before, while and after it trains, with one block
    of two that keeps its activations; and what it printed."""
    place = tmp_path_factory.mktemp("evaluated")

    @functools.cache
    def evaluated(strategy: str) -> tuple[Path, str]:
        # Where a rank may run out of memory and go on, the adapter for that averages gradients without DDP.
        words = ("training.eval_strategy=steps", "training.eval_steps=2", "batch.on_out_of_memory=stop")
        words += (f"distributed.strategy={strategy}", "model.keep_activations=1")
        return place / strategy, launch(described, place / strategy, f"data.eval_path={eight}", *words)

    return evaluated


@pytest.mark.parametrize("strategy", ["ddp", *(["fsdp2_native"] if find_spec("triton") else [])])
def test_evaluating_first_changes_nothing(straight: Path, evaluated: Any, strategy: str) -> None:
    """What the two tests above break, mended: a run that evaluates before training trains as one that doesn't, also
    where the model can't be evaluated before it is sharded. What it evaluates is shown, and kept."""
    out, printed = evaluated(strategy)
    assert "held-out loss" in printed
    found = difference(straight, out)
    assert found.pop("adapter") <= (TOLERANCE if strategy == "ddp" else 10 * TOLERANCE)
    assert all(value <= TOLERANCE for value in found.values()), found
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    evaluations = results["evaluations"]
    assert [one["step"] for one in evaluations] == [2, 4, 6]
    assert (results["training"]["keep_activations"], results["training"]["blocks"]) == (1, 2)
    assert "1 of 2 blocks keep their activations" in (out / "report.html").read_text(encoding="utf-8")
    assert results["before"]["loss"] > evaluations[0]["loss"] > results["after"]["loss"]
    assert results["after"]["loss"] == pytest.approx(evaluations[-1]["loss"], rel=1e-6)
    lines = map(json.loads, (out / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines())
    logged = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert logged == {one["step"]: one["loss"] for one in evaluations}
    assert (out / "checkpoint-6" / "unsloth_accel.json").is_file(), "a checkpoint in the step of an evaluation"
    for one in evaluations:
        assert f"step {one['step']}/6  held-out loss {one['loss']:.4f}" in printed


def test_going_on_from_an_adapter_until_nothing_gets_better(
    described: Path, evaluated: Any, eight: Path, tiny: Path, tmp_path: Path
) -> None:
    """On other rows: the first step has the loss that the adapter was left with. Both ranks stop early, together."""
    begun, _ = evaluated("ddp")
    out = tmp_path / "run"
    words = ["training.eval_strategy=steps", "training.eval_steps=1", "training.early_stopping_patience=2"]
    words += [f"data.path={eight}", f"data.eval_path={eight}", "training.early_stopping_threshold=99"]
    printed = launch(described, out, f"model.name={begun / 'adapter'}", *words)
    assert f"adapter    {begun / 'adapter'}, rank 16, alpha 16" in printed
    first, second = (json.loads((at / "results.json").read_text(encoding="utf-8")) for at in (begun, out))
    left = first["after"]["loss"]
    assert abs(first["before"]["loss"] - left) > 0.1
    assert abs(second["before"]["loss"] - left) <= TOLERANCE
    assert abs(steps(out)[0]["loss"] - left) <= TOLERANCE
    base = json.loads((out / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert base == str(tiny)
    stopped = second["training"]["stopped_early"]
    assert stopped.startswith("stopped early, after step 3 of 6: eval_loss, now ")
    assert second["training"]["steps"] == 3
    assert printed.count(stopped) == 2  # as it happens, and at the end
    assert "stopped early, after step 3 of 6" in (out / "report.html").read_text(encoding="utf-8")
    ends = [(out / "logs" / f"rank-{rank}.jsonl").read_text(encoding="utf-8").split("\n")[-2] for rank in (0, 1)]
    assert [json.loads(end)["event"] for end in ends] == ["phase", "phase"]
    assert all(len(rank.steps) == 3 for rank in read_run_record(out).ranks)


def test_resuming_goes_on_exactly(
    described: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From checkpoint 3 of 6 to the end, with all blocks' activations kept: the same losses and the same adapter as the
    straight run, to the bit. It is pushed to a Hub on this machine, by one rank, and loads from there."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "adapter")
    shutil.rmtree(out / "checkpoint-6")
    mine = [out / "README.md", out / "run.yaml", out / "adapter" / "notes.md", out / "logs" / "tee.log"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine", encoding="utf-8")
    pushing = ("training.push_to_hub=true", "training.hub_model_id=tiny", "training.hub_token=${oc.env:HF_TOKEN}")
    with fake_hub() as hub:
        reached = {"HF_ENDPOINT": hub.url, "HF_TOKEN": HUB_TOKEN, "HF_HUB_CACHE": str(tmp_path / "cache")}
        reached |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        for name, value in reached.items():
            monkeypatch.setenv(name, value)
        printed = launch(described, out, "training.resume=true", "model.keep_activations=all", *pushing)
        done = subprocess.run([sys.executable, "-c", LOADING, "someone/tiny"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split()[-2:] == ["True", "True"], done.stdout + done.stderr
    assert [title for _, _, title in hub.commits] == ["Training in progress, step 6", "End of training"]
    files = hub.files["someone/tiny"]["main"]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= {*files}
    assert not {*files} & {"run.planned.yaml", "accelerate.yaml", "training_args.bin", "notes.md", "unsloth_accel.json"}
    assert all(files[name] == (out / "adapter" / name).read_bytes() for name in files)
    assert not any(HUB_TOKEN.encode() in held or TOKEN.encode() in held for held in files.values())
    card = files["README.md"].decode()
    assert "library_name: peft" in card
    assert "FastLanguageModel.from_pretrained('OWNER/tiny'" in card
    assert "- **Plan**: ddp on 2 processes, fp32, 8 rows per step = 4 × 1 × 2 (per device × accumulation" in card
    assert "6 of 6 steps, learning rate 0.01 (linear)" in card
    assert "- **Data**: `rows.jsonl`, 41 rows, trained on auto" in card
    assert str(described.parent.parent) not in card, "the base's directory, which the Hub would refuse"
    assert printed.count(f"pushed    {hub.url}/someone/tiny") == 1
    assert f"{hub.url}/someone/tiny" in (out / "report.html").read_text(encoding="utf-8")
    told = json.loads((out / "results.json").read_text(encoding="utf-8"))["hub"]
    assert told == {"repository": "tiny", "url": f"{hub.url}/someone/tiny"}
    assert {path.read_text(encoding="utf-8") for path in mine} == {"mine"}
    assert difference(straight, out) == {"loss": 0.0, "grad_norm": 0.0, "adapter": 0.0}
    assert [step["step"] for step in steps(out)] == [1, 2, 3, 4, 5, 6]
    told = json.loads((out / "results.json").read_text(encoding="utf-8"))["training"]
    losses = [step["loss"] for step in steps(out)]
    assert (told["resumed_at"], told["steps"], told["keep_activations"]) == (3, 3, 2)
    assert told["loss"] == pytest.approx(sum(losses[3:]) / 3)
    report = " ".join((out / "report.html").read_text(encoding="utf-8").split())
    assert "6 steps in 2 parts" in report


@pytest.mark.parametrize(
    ("where", "keep", "most", "lowered"),
    [("--backward", 2, 2, [(1, 1), (0, 1), (0, 2)]), ("--forward", 0, 1, [(0, 2), (0, 4)])],
)
def test_a_rank_out_of_memory_goes_on(
    where: str, keep: int, most: int, lowered: list[Any], straight: Path, described: Path, tmp_path: Path, cli: Run
) -> None:
    """Rank 1 can't compute what it was given, in two micro-batches per step: fewer blocks that keep their activations,
    then smaller pieces, and the same run; the other rank does as it does."""
    words = ("training.per_device_train_batch_size=2", f"model.keep_activations={keep}", "batch.rehearse=false")
    run = _written(described, tmp_path, *words)
    script = [SCRIPTS / "out_of_memory.py", run, where, "--rows", str(most), "--kept", "0"]
    done = cli("launch", "--config_file", run.parent / "accelerate.yaml", *script, forked=True)
    assert done.returncode == 0, done.stderr
    assert "OUT OF MEMORY" in (run.parent / "logs" / "rank-1.log").read_text(encoding="utf-8")
    found = difference(straight, run.parent)
    assert found["loss"] <= TOLERANCE
    assert found["grad_norm"] <= TOLERANCE
    # Sums in another order: Adam makes as much of a gradient of next to nothing, of a few weights, as of large ones.
    first, second = adapter(straight), adapter(run.parent)
    assert max(float((first[name] - second[name]).norm() / first[name].norm()) for name in first) <= 10 * TOLERANCE
    results = json.loads((run.parent / "results.json").read_text(encoding="utf-8"))
    assert (results["training"]["keep_activations"], results["training"]["blocks"]) == (0, 2)  # of rank 0
    told = results["out_of_memory"]
    assert [(one["keep_activations"], one["parts"]) for one in told] == lowered
    assert {one["rank"] for one in told} == {1}
    assert f"rank 1: out of memory in step {told[0]['step']}, with {told[0]['rows']} rows" in done.stderr
    assert [step["num_tokens"] for step in steps(run.parent)] == [step["num_tokens"] for step in steps(straight)]


def test_what_diverged_in_the_last_step_is_no_finished_run(described: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = launch(described, out, "training.adam_epsilon=0", "training.max_steps=2", status=1)
    assert "diverged at step 2" in printed
    assert not (out / "adapter").exists()


def test_a_row_that_fits_nowhere(described: Path, tmp_path: Path, cli: Run) -> None:
    """Every rank ends, and the one without memory says what would help."""
    run = _written(described, tmp_path)
    script = [SCRIPTS / "out_of_memory.py", run, "--rows", "0"]
    done = cli("launch", "--config_file", run.parent / "accelerate.yaml", *script, forked=True)
    assert done.returncode == 1
    assert "out of memory in step 1 with a single row of " in done.stderr
    assert "Fix: distributed.strategy=fsdp2" in done.stderr
    assert not (run.parent / "adapter").exists()


def test_what_is_saved(straight: Path) -> None:
    held = {path.name for path in (straight / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= held
    assert {"run.planned.yaml", "accelerate.yaml", "versions.json"} <= held
    versions = json.loads((straight / "adapter" / "versions.json").read_text(encoding="utf-8"))
    assert {"unsloth", "torch", "accelerate", "python"} <= versions.keys()
    assert not list(straight.glob(".adapter*")), "temporary directories are left"
    record = json.loads((straight / "checkpoint-3" / "unsloth_accel.json").read_text(encoding="utf-8"))["made_with"]
    assert (record["steps_per_epoch"], record["rows"], record["training.dataloader_drop_last"]) == (6, 41, False)
    assert not (straight / "README.md").exists(), "TRL's draft of a model card, which nobody asked for"
    cards = [(straight / place / "README.md").read_text(encoding="utf-8") for place in ("checkpoint-6", "adapter")]
    assert cards[0] == cards[1]
    assert not (straight / "errors").exists()
    assert json.loads((straight / "plan.json").read_text(encoding="utf-8"))["strategy"] == "ddp"
    page = (straight / "report.html").read_text(encoding="utf-8")
    assert '<span class="status finished">' in page
    assert "6 steps" in page


def test_no_secret_is_left(straight: Path) -> None:
    """In no file of a run, its checkpoints' pickles included, and in nothing that it said."""
    kept = [path for path in straight.parent.rglob("*") if path.is_file()]
    names = {path.name for path in kept}
    assert {"printed.txt", "rank-1.log", "training_args.bin", "run.planned.yaml", "report.html"} <= names
    assert [path for path in kept if TOKEN.encode() in path.read_bytes()] == []
    unpacked = [path for path in kept if zipfile.is_zipfile(path)]
    assert {"training_args.bin", "optimizer.pt"} <= {path.name for path in unpacked}
    for path in unpacked:
        with zipfile.ZipFile(path) as file:
            assert not any(TOKEN.encode() in file.read(name) for name in file.namelist()), path
    reference = "${oc.env:UNSLOTH_ACCEL_TRAINING_HUB_TOKEN,null}"
    for path in (straight / "run.planned.yaml", straight / "adapter" / "run.planned.yaml"):
        assert f"hub_token: {reference}" in path.read_text(encoding="utf-8")


def test_a_field_that_sft_config_refuses(described: Path, tmp_path: Path) -> None:
    """Known by name and type, refused by TRL itself: one line and status 2, although ranks had started."""
    printed = launch(described, tmp_path / "run", "training.gradient_checkpointing_kwargs='{no JSON'", status=2)
    assert "SFTConfig refuses it" in printed
    assert "Traceback" not in printed


def test_the_module_alone_tells_its_errors(described: Path, tmp_path: Path) -> None:
    """Started without any launcher, which would have told them."""
    command = [sys.executable, "-m", "unsloth_accel.training.sft", str(described), f"output_dir={tmp_path}"]
    for override, words in (("training.lr_scheduler_type=zigzag", "SFTConfig refuses it"), ("lora.rr=1", "lora.rr")):
        done = fork_server.run([*command, override], cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode != 0
        assert f"unsloth_accel: error: {'training' if 'SFT' in words else words}" in done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert "SFTConfig refuses it" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_another_number_of_processes_keeps_the_rows(straight: Path, tmp_path: Path) -> None:
    """The plan's own launch line with --num_processes 1, going on from a checkpoint of two processes."""
    place = tmp_path / "run"
    shutil.copytree(straight, place, ignore=shutil.ignore_patterns("checkpoint-6", "adapter", "results.json"))
    words = ["-m", "unsloth_accel.training.sft", place / "run.planned.yaml"]
    words += ["training.resume=true", f"output_dir={place}"]
    config = straight / "accelerate.yaml"
    done = accelerate_launch("--config_file", config, "--num_processes", "1", *words, forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes were planned and 1 started: 8 rows per step = 4 × 2 × 1" in done.stdout
    assert max(difference(straight, place).values()) < TOLERANCE
    results = json.loads((place / "results.json").read_text(encoding="utf-8"))["training"]
    assert (results["global_batch_size"], results["processes"], results["strategy"]) == (8, 1, "single")
    record = json.loads((place / "checkpoint-6" / "unsloth_accel.json").read_text(encoding="utf-8"))["made_with"]
    assert (record["batch.global_size"], record["distributed.num_processes"]) == (8, 1)
    assert read_run_record(place).batch["global_size"] == 8


def test_code_in_the_place_of_weights_is_not_run(straight: Path, tmp_path: Path) -> None:
    """Not by resuming from it, whichever file of the checkpoint holds it; and which one is told, with what to do."""
    command = [sys.executable, str(SCRIPTS / "resume_from_hostile.py"), str(straight), str(tmp_path)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = fork_server.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [name for name, _status, ran in found if not ran] == [name for name, *_ in found], done.stderr
    assert {name: status for name, status, _ in found} == {
        **dict.fromkeys(("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin"), 1),
        "training_args.bin": 0,  # which nobody loads
    }, done.stderr
    for name, status, _ in found:
        told = f"{name} holds code (posix.mkdir), not weights alone: it was not loaded. Fix: go on from another"
        assert (told in done.stderr) == bool(status), done.stderr


def test_rows_that_cannot_be_kept(straight: Path, tmp_path: Path) -> None:
    """Three processes by torchrun: told before anything is imported, with status 2 and the numbers that work."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    words = ["-m", "unsloth_accel.training.sft", str(straight / "run.planned.yaml"), f"output_dir={tmp_path / 'out'}"]
    done = subprocess.run([*torchrun, *words], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert "batch.global_size=8: can't be 4 rows per device × 3 processes" in done.stderr
    assert "Fix: batch.global_size=12, or 2 processes in place of 3" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_plain_script(tiny: Path, tmp_path: Path, processes: int) -> None:
    """examples/sft.py as its first lines say: plain `python`, and `accelerate launch` with the shipped config."""
    options = ["--model", str(tiny), "--output", str(tmp_path), "--max-steps", "2", "--data", str(EVAL)]
    if processes == 1:
        command = [sys.executable, "examples/sft.py", *options, "--accumulation", "2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    else:
        done = accelerate_launch("--config_file", "accelerate_configs/cpu_ddp.yaml", "examples/sft.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    where = "single on 1 process" if processes == 1 else "ddp on 2 processes"
    precision = "bf16" if cpu_and_memory.bf16()[0] else "fp32"  # Unsloth turns bf16 off on a CPU that lacks it
    assert f"- **Plan**: {where}, {precision}, 8 rows per step = 4 × {3 - processes} × {processes} " in card
    assert "2 of 2 steps, learning rate 0.001 (linear), seed 42" in card
    assert "[More Information Needed]" not in card


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's first command without its installation, with half the rows a step, from which a real pretrained
    model learns as well, and with fewer answers."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    file = ROOT / "examples" / "configs" / "quickstart.yaml"
    printed = launch(file, out, "batch.global_size=12", "evaluation.max_rows=12", start=subprocess.run)
    assert "× 2 (per device × accumulation × processes)" in printed
    # Of stdout; a warning (a rank that is slower than the other) goes to stderr, which `launch` gives after it.
    lines = printed.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("held-out loss"))
    assert lines[start + 1].startswith("held-out accuracy")
    assert lines[start + 2] == f"report    {out / 'report.html'}"
    return out


def test_the_quickstart_learns(quickstart: Path) -> None:
    results = json.loads((quickstart / "results.json").read_text(encoding="utf-8"))
    before, after = results["before"], results["after"]
    assert after["loss"] <= before["loss"] / 2
    assert after["accuracy"] - before["accuracy"] >= 0.5
    assert after["rows"] == 12
    assert results["training"]["tokens"] > 7_500


def test_the_adapter_reloads_with_peft_and_with_unsloth(quickstart: Path) -> None:
    """To the same logits, which are not the base model's, in the precision it was trained in."""
    import unsloth  # isort: skip
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(quickstart / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(path)
    chat = json.loads(EVAL.read_text(encoding="utf-8").split("\n")[0])["messages"]
    inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
    base = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    fast, _ = unsloth.FastLanguageModel.from_pretrained(path, dtype=torch.float32, load_in_4bit=False)
    with torch.no_grad():
        plain = base(**inputs).logits
        theirs = PeftModel.from_pretrained(base, path).eval()(**inputs).logits
        ours = fast.eval()(**inputs).logits
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert float((ours - plain).abs().max()) > 1
    answer = chat[-1]["content"]
    predicted = tokenizer.decode(ours[0].argmax(-1))
    assert answer.split(":")[0] in predicted
    assert math.isfinite(float(ours.abs().max()))


def test_the_quickstart_dry_run_prints_what_accelerate_reads(cli: Run, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    done = cli("launch", "examples/configs/quickstart.yaml", "--dry-run", f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "accelerate launch --config_file" in done.stdout
    (tmp_path / "printed.yaml").write_text(done.stdout.split("config file\n")[1], encoding="utf-8")
    config: Any = load_config_from_file(str(tmp_path / "printed.yaml"))
    assert config.num_processes == 2
    assert not (tmp_path / "out").exists()
