"""What ranks agree on at the end of a step; a run that is stopped is in training/test_stopping.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS


@pytest.mark.slow
def test_two_ranks_stop_and_save_after_the_same_step(tmp_path: Path) -> None:
    """A step after it was asked for, in the same where steps are long, and in the first; where they are quick, in every
    third."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    words += ["--rdzv-endpoint=localhost:0", str(SCRIPTS / "agree_on_steps.py"), str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = fork_server.run(words, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert told[0]["told"] == told[1]["told"]
    at_once, later, long, saved, last, quick, evaluating = told[0]["told"]
    words = ", as rank 1 was asked to end by SIGTERM; there is no whole checkpoint."
    for found, step in ((at_once, 1), (later, 6), (long, 5), (quick, 8)):
        assert found == {"saved": [step], "stopped": [step], "status": 143, "said": f"stopped after step {step}{words}"}
    assert saved == {"saved": [5], "stopped": []}, "once, though it was still due when that was told"
    assert evaluating == {"saved": [-4], "stopped": [], "status": 143, "said": f"stopped after step 4{words}"}
    assert last == {"saved": [], "stopped": []}, "the run ends anyway, with its adapter"
    print(f"{max(one['microseconds'] for one in told):.0f} µs per step")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """One process in training, and the seconds of its clock."""
    from accelerate import PartialState
    from transformers import TrainerControl, TrainerState

    from unsloth_accel.callbacks import step_agreement

    PartialState(cpu=True)
    made = SimpleNamespace(seconds=0.0, control=TrainerControl())
    made.args = SimpleNamespace(world_size=1, output_dir=str(tmp_path), save_strategy="steps")
    made.request = SimpleNamespace(number=0, agreed=lambda: None, begin=lambda: None, know=lambda directory: None)
    made.state = lambda step: TrainerState(global_step=step, max_steps=10)
    monkeypatch.setattr(step_agreement, "time", SimpleNamespace(monotonic=lambda: made.seconds))
    return made


def test_checkpoints_by_the_clock(alone: Any) -> None:
    from unsloth_accel.callbacks import StepAgreement

    one = StepAgreement(15.0, request=alone.request)
    one.on_train_begin(alone.args, alone.state(0), alone.control)
    saved = []
    for step in range(1, 11):
        alone.seconds += 400
        alone.control.should_save = step == 6  # for another reason
        one.on_step_end(alone.args, alone.state(step), alone.control)
        if alone.control.should_save:
            saved.append(step)
            alone.seconds += 50
            one.on_save(alone.args, alone.state(step), alone.control)
    assert saved == [3, 6, 9]
    alone.seconds, alone.request.number = 9e9, 15
    one.on_step_end(alone.args, alone.state(10), alone.control)
    assert not alone.control.should_save, "after the last step the adapter is saved"
    assert not alone.control.should_training_stop


@pytest.mark.parametrize("steps", [1, 0], ids=["a step", "no step left"])
def test_a_stop_waits_from_the_first_step_on(alone: Any, steps: int) -> None:
    """Not for rows that are evaluated before; and where no step is left, for the adapter that is saved."""
    from unsloth_accel.callbacks import StepAgreement

    begun: list[bool] = []
    alone.request.begin = lambda: begun.append(True)
    one, state = StepAgreement(request=alone.request), alone.state(0)
    one.on_train_begin(alone.args, state, alone.control)
    one.on_prediction_step(alone.args, state, alone.control)
    assert not begun
    (one.on_step_begin if steps else one.on_train_end)(alone.args, state, alone.control)
    assert begun


@pytest.mark.parametrize(
    ("strategy", "saves", "saved"),
    [("steps", None, True), ("no", None, False), ("no", True, True), ("steps", False, False)],
)
def test_a_stop_saves_unless_the_run_is_told_never_to(alone: Any, strategy: str, saves: Any, saved: bool) -> None:
    from unsloth_accel.callbacks import StepAgreement
    from unsloth_accel.callbacks.stop_request import GONE, Stopped

    one = StepAgreement(saves=saves, request=alone.request)
    alone.args.save_strategy = strategy
    one.on_train_begin(alone.args, alone.state(0), alone.control)
    one.on_step_end(alone.args, alone.state(1), alone.control)
    one.on_epoch_end(alone.args, alone.state(1), alone.control)
    alone.request.number, alone.control.should_evaluate = GONE, True
    one.on_step_end(alone.args, alone.state(2), alone.control)
    assert (alone.control.should_save, alone.control.should_evaluate) == (saved, False)
    with pytest.raises(
        Stopped, match="by the end of its launcher after step 2; there is no whole checkpoint"
    ) as caught:
        one.on_epoch_end(alone.args, alone.state(2), alone.control)
    assert caught.value.code == caught.value.exit_status == 143
    assert ("(training.save_strategy=no)" in str(caught.value)) is not saved


@pytest.mark.parametrize(
    ("strategy", "due", "epoch", "left"),
    [("steps", True, 0.5, True), ("steps", False, 1, False), ("epoch", False, 1.0, True), ("epoch", False, 1.5, False)],
)
def test_a_checkpoint_tells_the_evaluation_that_was_left_out(
    alone: Any, strategy: str, due: bool, epoch: float, left: bool
) -> None:
    """Also one that comes with the epoch's end, after the step's."""
    from unsloth_accel.artifacts.checkpoints import EVALUATION_LEFT
    from unsloth_accel.callbacks import StepAgreement

    one, state = StepAgreement(request=alone.request), alone.state(2)
    one.on_train_begin(alone.args, alone.state(0), alone.control)
    alone.args.eval_strategy, state.epoch = strategy, epoch
    alone.request.number, alone.control.should_evaluate = 15, due
    one.on_step_end(alone.args, state, alone.control)
    assert (EVALUATION_LEFT in state.stateful_callbacks) is left


def test_an_evaluation_is_left_with_a_checkpoint(alone: Any) -> None:
    """In training alone, and by what can save there; a checkpoint that is due comes after it."""
    from unsloth_accel.callbacks import StepAgreement
    from unsloth_accel.callbacks.stop_request import Stopped

    saved: list[int] = []
    one = StepAgreement(15.0, request=alone.request)
    one.save_now = lambda: saved.append(1)
    one.on_train_begin(alone.args, alone.state(0), alone.control)
    alone.request.number = 15
    one.on_prediction_step(alone.args, alone.state(0), alone.control)  # before the first step there is nothing to save
    alone.request.number = 0
    one.on_step_end(alone.args, alone.state(1), alone.control)
    one.on_prediction_step(alone.args, alone.state(1), alone.control)
    alone.request.number = 15
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 1; there is no whole checkpoint"):
        one.on_prediction_step(alone.args, alone.state(1), alone.control)
    assert saved == [1]
    one.save_now = None
    one.on_prediction_step(alone.args, alone.state(1), alone.control)
    one.on_train_end(alone.args, alone.state(1), alone.control)
    one.save_now = lambda: saved.append(2)
    one.on_prediction_step(alone.args, alone.state(1), alone.control)
    assert saved == [1]


def test_a_trainer_is_made_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the Trainer's own flow and what may refuse a checkpoint; transformers' own way is put aside."""
    import signal

    from transformers import DefaultFlowCallback, TrainerCallback
    from transformers.trainer_jit_checkpoint import JITCheckpointCallback

    from unsloth_accel.callbacks import StepAgreement
    from unsloth_accel.callbacks.step_agreement import stop_when_asked

    before, own = signal.getsignal(signal.SIGTERM), JITCheckpointCallback()
    own.set_trainer(SimpleNamespace(args=SimpleNamespace(enable_jit_checkpoint=True)))
    assert signal.getsignal(signal.SIGTERM) is not before

    class Late(TrainerCallback): ...

    callbacks = [DefaultFlowCallback(), own, Late()]
    handler = SimpleNamespace(callbacks=callbacks)
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(even_batches=True),
        callback_handler=handler,
        args=None,
        state=None,
        control=None,
        add_callback=callbacks.append,
    )
    trainer.remove_callback = callbacks.remove
    trainer.train = lambda: signal.getsignal(signal.SIGTERM)
    stop_when_asked(trainer)
    assert [type(one) for one in handler.callbacks] == [DefaultFlowCallback, StepAgreement, Late]
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer.train() is not before
    assert signal.getsignal(signal.SIGTERM) is before
