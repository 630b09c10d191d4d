"""notebook_launch in real kernels, with real ranks; and the notebook that shows it, start to end."""

import os
import queue
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fork_server
import psutil
import pytest
from conftest import ROOT, TRAIN, finished_run, write_yaml

import unsloth_accel as ua
from unsloth_accel.artifacts.checkpoints import checkpoints
from unsloth_accel.errors import ConfigError, LaunchError
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch import child, notebook
from unsloth_accel.launch.living import carrying
from unsloth_accel.launch.run_lock import MARK

NOTEBOOK = ROOT / "examples" / "notebooks" / "plan_and_launch.ipynb"
ENDED_WITHIN = 120.0
"""Seconds."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Launches that would have been run."""
    seen: list[Any] = []
    monkeypatch.setattr(notebook, "_run", seen.append)
    return seen


@pytest.fixture
def plan(description: dict[str, Any], tmp_path: Path) -> ua.Plan:
    return ua.plan(write_yaml(tmp_path / "run.yaml", description))


def test_all_problems_before_anything_starts(plan: ua.Plan, tmp_path: Path, started: list[Any]) -> None:
    finished_run(tmp_path / "out")
    plan.run.data.path = "none.jsonl"
    with pytest.raises(ConfigError) as caught:
        notebook.notebook_launch(plan, "lora.r=8")
    assert [problem.key for problem in caught.value.problems] == ["lora.r=8", "data.path", "output_dir"]
    with pytest.raises(ConfigError, match="choose one"):
        notebook.notebook_launch(plan, resume=True, overwrite=True)
    with pytest.raises(ConfigError) as caught:
        notebook.notebook_launch(tmp_path / "run.yaml", "data.path=none.jsonl")
    assert [problem.key for problem in caught.value.problems] == ["data.path", "output_dir"]
    assert not started
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"accelerate.yaml", "adapter", "results.json"}


def test_a_plan_for_other_hardware_is_not_launched(plan: ua.Plan, started: list[Any]) -> None:
    gpu = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0))
    elsewhere = replace(plan, device="cuda", hardware=Hardware(devices=(gpu,) * 2, cpu_cores=8, host_memory_gib=64))
    with pytest.raises(ConfigError, match="2 GPUs and 0 are visible"):
        notebook.notebook_launch(elsewhere)
    assert not started


def test_what_is_launched(plan: ua.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as by `unsloth-accel launch`, from the plan as it is; an earlier run is put aside."""
    (finished_run(tmp_path / "out") / "results.json").write_text('{"training": {}}', encoding="utf-8")
    seen = []

    def run(command: Any) -> None:
        seen.append(command)
        assert not (tmp_path / "out" / "adapter").exists()

    monkeypatch.setattr(notebook, "_run", run)
    finished = notebook.notebook_launch(plan, overwrite=True)
    assert finished.results == {"training": {}}
    assert (finished.steps, finished.adapter) == ([], tmp_path / "out" / "adapter")
    assert str(finished) == f"Finished(output_dir={tmp_path / 'out'!r})"
    assert seen[0].arguments[-3:] == ("-m", "unsloth_accel.training.sft", str(tmp_path / "out" / "run.planned.yaml"))
    assert (tmp_path / "out" / "adapter").exists(), "a run that left nothing puts the earlier one back"


def test_a_finished_run_is_returned(plan: ua.Plan, tmp_path: Path, started: list[Any]) -> None:
    (finished_run(tmp_path / "out") / "results.json").write_text('{"training": {"steps": 6}}', encoding="utf-8")
    finished = notebook.notebook_launch(plan, resume="if_any")
    assert (finished.results, started) == ({"training": {"steps": 6}}, [])


def shown(*chunks: bytes, capsys: pytest.CaptureFixture[str]) -> str:
    """What the cell gets of output that came in these chunks."""
    ours, theirs = os.pipe()
    output = notebook._Output(ours)
    for chunk in chunks:
        os.write(theirs, chunk)
        output.wait(1)
    os.close(theirs)
    output.close()
    os.close(ours)
    return capsys.readouterr().out


def test_lines_come_whole_and_bars_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(b"one\ntw", b"o\r\n", b"rest", capsys=capsys) == "one\ntwo\nrest\n"
    assert shown("é".encode()[:1], "é\n".encode()[1:], b"\xff\n", capsys=capsys) == "é\n�\n"
    bar = b"".join(b"\r%d%%" % percent for percent in range(100)) + b"\r100%\n"
    assert shown(b"before\n", bar, b"after\n", capsys=capsys) == "before\n\r0%\r100%\nafter\n"


def test_a_cell_shows_our_errors_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell().run_cell("import unsloth_accel as ua; ua.plan('none.yaml')")
    printed = capsys.readouterr().out
    assert "ConfigError: error: none.yaml: no such file. Fix: check the path" in printed
    assert "Traceback" not in printed


# From here on with real processes.


@pytest.fixture(scope="module")
def described(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that would take hours."""
    return write_yaml(
        tmp_path_factory.mktemp("described") / "run.yaml",
        {
            "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
            "data": {"path": str(TRAIN)},
            "batch": {"global_size": 8},
            "training": {"max_steps": 100_000},
            "output_dir": "overridden",
        },
    )


class Notebook:
    """A kernel, one cell at a time."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(cwd=str(ROOT))
        self.process = psutil.Process(self.manager.provisioner.process.pid)

    def start(self, code: str) -> str:
        cell: str = self.client.execute(textwrap.dedent(code))
        return cell

    def run(self, code: str, timeout: float = 120) -> tuple[str, dict[str, Any]]:
        return self.finish(self.start(code), timeout)

    def finish(self, cell: str, timeout: float = 120) -> tuple[str, dict[str, Any]]:
        """The cell's output and its reply."""
        text = ""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != cell:
                continue
            text += message["content"].get("text", "") + "\n".join(message["content"].get("traceback", []))
            if message["content"].get("execution_state") == "idle":
                while True:
                    reply = self.client.get_shell_msg(timeout=10)
                    if reply["parent_header"].get("msg_id") == cell:
                        return text, reply["content"]
        raise AssertionError(f"the cell did not end; so far: {text}")


@pytest.fixture
def book() -> Iterator[Notebook]:
    with fork_server.forked():
        made = Notebook()
    yield made
    made.client.stop_channels()
    made.manager.shutdown_kernel(now=True)


def train(described: Path, out: Path) -> str:
    return f"import unsloth_accel as ua; run = ua.notebook_launch({str(described)!r}, 'output_dir={out}')"


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def training_processes(parent: psutil.Process, out: Path) -> list[psutil.Process]:
    """All of the launch below `parent`, once both ranks train and have nothing to print for a while.

    A rank that prints when nobody reads any more ends by itself, which is not what the tests are about.
    """
    log = out / "logs" / "steps.jsonl"
    wait_for(lambda: log.is_file() and len(log.read_text(encoding="utf-8").splitlines()) > 10, 300, "ten steps")
    below = [process for process in parent.children(recursive=True) if MARK in process.environ()]
    assert len(ranks(below)) == 2
    return below


def ranks(found: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in found if "unsloth_accel.training.sft" in one.cmdline() and "RANK" in one.environ()]


def assert_gone(found: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(found, timeout=ENDED_WITHIN)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_interrupting_the_cell_ends_every_rank(book: Notebook, described: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cell = book.start(train(described, out))
    below = training_processes(book.process, out)
    book.manager.interrupt_kernel()
    printed, reply = book.finish(cell, ENDED_WITHIN)
    # When the cell has ended, they have: not soon after.
    assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert reply["ename"] == "KeyboardInterrupt"
    assert "loading" in printed
    assert "stopping the run …\nthe run is stopped" in printed, "the last words of the ranks are noise"
    (kept,) = checkpoints(out)  # which nobody asked for, and the run can be gone on with
    assert f"all its processes have ended; {kept.name} is whole: go on with resume=True." in printed
    assert book.run("print(1 + 1)")[0] == "2\n"


@pytest.mark.slow
def test_ranks_that_do_not_listen_are_killed(
    described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every process of the launch is stopped in its tracks, so that only SIGKILL ends it."""
    out = tmp_path / "out"
    monkeypatch.setattr(child, "STOPPING", ((signal.SIGINT, 0.5), (signal.SIGTERM, 0.5), (signal.SIGKILL, 10.0)))
    below: list[psutil.Process] = []

    def interrupt() -> None:
        below.extend(training_processes(psutil.Process(), out))
        for process in below:
            process.suspend()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)  # an impatient second one

    helper = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        helper.start()
        with fork_server.forked(), pytest.raises(KeyboardInterrupt):
            ua.notebook_launch(described, f"output_dir={out}")
    finally:
        helper.join()
        signal.signal(signal.SIGINT, before)
    assert len(below) >= 3
    assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_ranks_end_with_a_killed_kernel(book: Notebook, described: Path, tmp_path: Path) -> None:
    book.start(train(described, tmp_path / "out"))
    below = training_processes(book.process, tmp_path / "out")
    mark = below[0].environ()[MARK]
    book.process.kill()
    assert_gone(below)
    assert not carrying({MARK: mark})
    assert checkpoints(tmp_path / "out")


@pytest.mark.slow
def test_ranks_end_with_a_killed_launcher(described: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    below: list[psutil.Process] = []

    def kill_launcher() -> None:
        below.extend(training_processes(psutil.Process(), out))
        next(process for process in below if "unsloth_accel.launch.child_main" in process.cmdline()).kill()

    helper = threading.Thread(target=kill_launcher)
    helper.start()
    with pytest.raises(LaunchError, match="ended by SIGKILL") as caught:
        ua.notebook_launch(described, f"output_dir={out}")
    helper.join()
    assert caught.value.exit_status == 137
    assert_gone(below)


@pytest.mark.slow
def test_a_failing_rank_is_told(described: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["training.optim=sgd", "training.optim_args=momentum=nowhere"]
    overrides = [f"output_dir={tmp_path / 'out'}", *arguments]
    with fork_server.forked(), pytest.raises(LaunchError, match=r"rank \d failed: .*nowhere") as caught:
        ua.notebook_launch(described, *overrides)
    assert caught.value.exit_status == 1
    assert "Traceback" in capsys.readouterr().out, "the rank's own output is in the cell"
    with fork_server.forked(), pytest.raises(LaunchError, match="SFTConfig refuses it") as caught:
        ua.notebook_launch(described, overrides[0], "training.gradient_checkpointing_kwargs='{no JSON'")
    assert caught.value.exit_status == 2


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_kernel_that_has_used_unsloth(book: Notebook, described: Path, tmp_path: Path, count: int) -> None:
    """Loaded, patched, with the variables that GRPO and another launch leave: the run is the one of a fresh process."""
    overrides = f"'training.max_steps=2', 'distributed.num_processes={count}'"
    printed, reply = book.run(
        f"""
        import os
        import unsloth, torch
        import unsloth_accel as ua
        os.environ |= {{"UNSLOTH_RETURN_HIDDEN_STATES": "1", "ACCELERATE_MIXED_PRECISION": "fp16"}}
        os.environ |= {{"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid"}}
        before = dict(os.environ)
        plan = ua.plan({str(described)!r}, 'output_dir={tmp_path / "out"}', {overrides})
        run = ua.notebook_launch(plan)
        assert os.environ == before
        print(run.results["training"]["processes"], [step["step"] for step in run.steps], run.adapter.is_dir())
        """
    )
    assert reply["status"] == "ok", printed
    assert printed.endswith(f"{count} [1, 2] True\n")
    assert "step 2/2  loss" in printed


@pytest.mark.slow
def test_the_notebook_runs_from_start_to_end(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    document = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell.id for cell in document.cells if cell.get("outputs")], "a notebook is committed without outputs"
    cells = {cell.id: cell for cell in document.cells}
    assert 'OUTPUT = "runs/notebook"' in cells["settings"].source
    cells["settings"].source = cells["settings"].source.replace("runs/notebook", str(tmp_path / "run"))
    # Fewer held-out rows than the notebook has, and half the rows a step, from which it learns its task too.
    whole = '"evaluation.exact_match=false"'
    assert whole in cells["plan"].source
    fewer = f'{whole}, "evaluation.max_rows=12", "batch.global_size=12"'
    cells["plan"].source = cells["plan"].source.replace(whole, fewer)
    learned = "print(max(float(p.detach().abs().max()) for name, p in model.named_parameters() if 'lora_B' in name))"
    document.cells.append(nbformat.v4.new_code_cell(learned, id="check"))  # 0 before any training
    cells["check"] = document.cells[-1]
    seen: list[tuple[float, str]] = []

    class Client(NotebookClient):  # type: ignore[misc]
        def process_message(self, message: Any, *where: Any) -> Any:
            seen.append((time.monotonic(), message["content"].get("text", "")))
            return super().process_message(message, *where)

    Client(document, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()

    def text(cell: str) -> str:
        outputs = cells[cell].outputs
        return "".join(made.get("text", "") or made.get("data", {}).get("text/plain", "") for made in outputs)

    def picture(cell: str) -> bool:
        return any("image/png" in made.get("data", {}) for made in cells[cell].outputs)

    assert "CPU" in text("detect")
    (table,) = cells["plan"].outputs
    assert "<table" in table["data"]["text/html"]
    assert "ddp" in table["data"]["text/html"]
    assert picture("memory")
    assert "distributed_type: MULTI_GPU" in text("write")
    for step in range(1, 6):
        assert f"step {step}/5  loss" in text("launch")
    # Live: the first step was shown before the run had ended.
    times = {words: next(at for at, shown in seen if words in shown) for words in ("loading", "step 1/5", "adapter ")}
    assert times["loading"] < times["step 1/5"] < times["adapter "]
    assert picture("loss")
    assert "held-out loss" in text("loss")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert '"name": "Boron"' in text("ask")
    assert float(text("check")) > 0
