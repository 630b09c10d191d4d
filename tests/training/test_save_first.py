"""The adapter is saved as soon as the last step is made, and tried again where that had no room."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.adapters.saving import SaveError
from unsloth_accel.training.save_first import SaveFirst

ROOM, FULL = "room", "full"


class Trained:
    """A training whose disk has, for each save, room or not."""

    def __init__(self, *disk: str, best: bool = False, elsewhere: Path | None = Path("elsewhere")) -> None:
        self.disk, self.elsewhere = list(disk), elsewhere
        self.given: list[Path | None] = []
        self.stopped = False
        self.first = SaveFirst(self.save, lambda state: self.stopped or state.global_step == state.max_steps)
        self.args: Any = SimpleNamespace(load_best_model_at_end=best)

    def save(self, elsewhere: Path | None) -> Path:
        self.given.append(elsewhere)
        if self.disk.pop(0) == FULL:
            raise SaveError("no room", self.elsewhere)
        return Path("adapter")

    def steps(self, until: int, of: int = 3, *, stops: bool = False) -> None:
        for step in range(1, until + 1):
            state: Any = SimpleNamespace(global_step=step, max_steps=of, is_world_process_zero=True)
            self.first.on_step_end(self.args, state, SimpleNamespace())
            self.first.on_log(self.args, state, SimpleNamespace())
        self.stopped = stops
        self.first.on_log(self.args, state, SimpleNamespace())
        self.first.on_train_end(self.args, state, SimpleNamespace())


def test_it_is_saved_once_after_the_last_step() -> None:
    run = Trained(ROOM)
    run.steps(3)
    assert run.first.saved == Path("adapter")
    assert run.first.finish() == Path("adapter")
    assert run.given == [None]


def test_a_run_that_stops_before_is_saved_at_its_end_only() -> None:
    """What stopped it may be a signal: then it isn't finished."""
    run = Trained(ROOM, best=True)
    run.steps(2)
    assert (run.given, run.first.saved) == ([], None)
    assert run.first.finish() == Path("adapter")


def test_a_run_that_an_evaluation_stops_is_saved_before_the_best_is_loaded() -> None:
    run = Trained(ROOM, ROOM, best=True)
    run.steps(2, stops=True)
    assert len(run.given) == 2
    assert run.first.saved


def test_the_best_weights_are_saved_in_the_place_of_the_last() -> None:
    run = Trained(ROOM, ROOM, best=True)
    run.steps(3)
    assert len(run.given) == 2


def test_it_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    run = Trained(FULL, ROOM)
    run.steps(3)
    assert run.first.saved is None
    assert capsys.readouterr().err == "unsloth_accel: warning: no room\n"
    assert run.first.finish() == Path("adapter")
    assert run.given == [None, Path("elsewhere")]
    assert [len(at.given) for at in (tried_in_vain(elsewhere=None), tried_in_vain())] == [2, 2], "on all ranks alike"


def tried_in_vain(**elsewhere: Any) -> Trained:
    full = Trained(FULL, FULL, **elsewhere)
    full.steps(3)
    with pytest.raises(SaveError):
        full.first.finish()
    return full
