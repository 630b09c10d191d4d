"""The figures of a report, from what a run left."""

import json
import shutil
import time
from pathlib import Path

import pytest
import run_directories as made
from report_pages import Tags, html_of

from unsloth_accel.report.figures import figures, shares, throughput
from unsloth_accel.report.run_record import read_run_record


def test_figures_come_from_the_summary(two: Path) -> None:
    told = json.loads((two / "logs" / "summary.json").read_text(encoding="utf-8"))
    found = figures(read_run_record(two))
    assert (found.tokens, found.tokens_per_second, found.mfu) == (told["tokens"], told["tokens_per_second"], 0.412)
    assert (found.strategy, found.processes, found.where) == ("ddp", 2, "2 × NVIDIA H100 80GB HBM3")
    assert found.held_loss == (1.3651, 0.4107)
    lines = [json.loads(line) for line in (two / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    loss = [line["loss"] for line in lines if "loss" in line]
    assert found.loss_over == 12
    assert found.loss_first == pytest.approx(sum(loss[:12]) / 12)
    assert found.loss_last == pytest.approx(sum(loss[-12:]) / 12)


def test_a_run_in_parts_is_added_up(tmp_path: Path) -> None:
    """80 steps, of which summary.json and results.json know the last 40: times and tokens are of all 80."""
    directory = made.resumed(tmp_path)
    run = read_run_record(directory)
    found = figures(run)
    part = json.loads((directory / "logs" / "summary.json").read_text(encoding="utf-8"))
    assert part["steps"] == 40
    assert (found.steps, len(run.totals)) == (80, 80)
    assert found.seconds == pytest.approx(sum(seconds for _, _, seconds in run.totals))
    assert found.tokens == sum(tokens for _, tokens, _ in run.totals) > 1.8 * part["tokens"]
    assert found.tokens_per_second == pytest.approx(found.tokens / found.seconds)
    assert found.mfu_why.endswith("Of the last part.")
    text = " ".join(Tags(html_of(directory)).text.split())
    assert "80 steps in 2 parts" in text
    # Without the ranks' logs the last part is all that is known, and it is said.
    for path in (directory / "logs").glob("rank-*.jsonl"):
        path.unlink()
    found = figures(read_run_record(directory))
    assert (found.steps, found.seconds, found.tokens) == (40, part["seconds"], part["tokens"])
    assert "40 steps in the last part" in Tags(html_of(directory)).text


def test_a_run_that_went_on_with_fewer_processes_is_added_up(tmp_path: Path) -> None:
    directory = made.resumed(tmp_path)
    path = directory / "logs" / "rank-1.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["time"] < made.START + 3600]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    path = directory / "logs" / "rank-0.jsonl"
    first, last = path.read_text(encoding="utf-8").rsplit('"world_size": 2', 1)
    path.write_text(f'{first}"world_size": 1{last}', encoding="utf-8")
    run = read_run_record(directory)
    assert [step for step, _, _ in run.totals] == list(range(1, 81))
    rank = {line["step"]: line for line in run.ranks[0].steps}
    assert all(tokens == rank[step]["tokens"] for step, tokens, _ in run.totals if step > 40)
    assert all(tokens > rank[step]["tokens"] for step, tokens, _ in run.totals if step <= 40)


def test_evaluations_while_it_trained_are_shown(tmp_path: Path) -> None:
    """Where nothing was evaluated before and after, as without checkpoints: they stand in logs/steps.jsonl."""
    directory = made.on_a_cpu(tmp_path)
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    results = {key: value for key, value in results.items() if key not in ("before", "after")}
    (directory / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with (directory / "logs" / "steps.jsonl").open("a", encoding="utf-8") as file:
        for step, loss in ((30, 5.125), (60, None), (90, 4.875)):
            file.write(json.dumps({"step": step, "eval_loss": loss, "seconds": 1e4}) + "\n")
    assert figures(read_run_record(directory)).evaluated == ((30, 5.125), (90, 4.875))
    text = " ".join(Tags(html_of(directory)).text.split())
    assert "held-out loss 5.12 → 4.88 at steps 30 and 90" in text


def test_a_run_whose_completions_are_scored_leads_with_rewards(tmp_path: Path) -> None:
    directory = made.on_a_cpu(tmp_path)
    for name, method in (("plan.json", {"method": "grpo"}), ("results.json", {})):
        told = json.loads((directory / name).read_text(encoding="utf-8")) | method
        for when, reward in (("before", 0.25), ("after", 0.75)):
            if when in told:
                told[when]["reward"] = reward
        (directory / name).write_text(json.dumps(told), encoding="utf-8")
    path = directory / "logs" / "steps.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line | {"reward": 0.125} if "loss" in line else line for line in lines]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    text = " ".join(Tags(html_of(directory)).text.split())
    assert "training reward 0.125 → 0.125" in text
    assert "held-out reward 0.250 → 0.750 before and after training" in text
    assert "training loss" not in text
    assert text.index(" Reward ") < text.index(" Loss "), "the curve of what is learned comes first"
    (directory / "plan.json").unlink()
    of_a_script = " ".join(Tags(html_of(directory)).text.split())
    assert of_a_script.index(" Reward ") < of_a_script.index(" Loss "), "a script has no plan that names its method"


def test_without_a_summary_the_logs_give_the_same_figures(two: Path) -> None:
    whole = figures(read_run_record(two))
    parts = shares(read_run_record(two))
    (two / "logs" / "summary.json").unlink()
    (two / "results.json").unlink()
    found = figures(read_run_record(two))
    assert found.tokens == whole.tokens
    assert found.tokens_per_second == pytest.approx(whole.tokens_per_second, rel=0.01)
    assert [share.parts for share in shares(read_run_record(two))] == [
        pytest.approx(share.parts, abs=0.01) for share in parts
    ]
    assert all(sum(share.parts.values()) == pytest.approx(1) for share in parts)


def test_an_old_run_counts_between_its_logged_steps(tmp_path: Path) -> None:
    directory = made.of_old(tmp_path)
    lines = [json.loads(line) for line in (directory / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    a, b = lines[3], lines[4]
    rate = (b["num_input_tokens_seen"] - a["num_input_tokens_seen"]) / (b["seconds"] - a["seconds"])
    drawn = throughput(read_run_record(directory))
    assert drawn.ys[3] == pytest.approx(rate)
    assert len(drawn.ys) == 29


def test_a_crash_is_told_in_the_ranks_words_with_its_fix(tmp_path: Path) -> None:
    directory = made.crashed(tmp_path)
    found = figures(read_run_record(directory))
    assert found.status == "failed"
    assert found.steps == 60
    text = " ".join(Tags(html_of(directory)).text.split())
    assert "training.per_device_train_batch_size=32: rank 1 has no memory left at step 61. Fix 16, or fsdp2" in text
    assert "training.save_strategy=steps" in text  # nothing was saved, and how it would have been


def test_a_run_without_an_end_is_not_called_finished(tmp_path: Path) -> None:
    directory = made.crashed(tmp_path)
    shutil.rmtree(directory / "errors")
    assert figures(read_run_record(directory)).status == "unfinished"
    assert "has not come to its end" in Tags(html_of(directory)).text


def test_errors_of_an_earlier_attempt_do_not_count(two: Path) -> None:
    """Without `unsloth-accel launch` nobody takes them away."""
    error = {"rank": 0, "message": "of yesterday", "time": made.START - 86_400}
    (two / "errors").mkdir()
    path = two / "errors" / "rank-0.json"
    path.write_text(json.dumps(error), encoding="utf-8")
    assert figures(read_run_record(two)).status == "finished"
    # A run that has results of an earlier attempt, and fails as it goes on.
    path.write_text(json.dumps(error | {"time": time.time() + 1}), encoding="utf-8")
    assert figures(read_run_record(two)).message == "of yesterday"


def test_an_end_before_the_newest_start_is_not_this_runs(two: Path) -> None:
    for path in (two / "results.json", two / "logs" / "summary.json"):
        path.unlink()
    with (two / "logs" / "rank-0.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "start", "time": made.START + 9e6}) + "\n")
    assert figures(read_run_record(two)).status == "unfinished"
