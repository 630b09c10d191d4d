"""TensorBoard's, Weights & Biases' and others' callbacks: what they raise while it trains ends nothing."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from unsloth_accel.callbacks.reporters import spare_training


class Reporter(TrainerCallback):
    error: Exception = OSError(28, "No space left on device")

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        raise self.error

    def on_log(self, *_: Any, **__: Any) -> None:
        raise self.error


def spared(monkeypatch: pytest.MonkeyPatch, error: Exception) -> tuple[Reporter, TrainerCallback]:
    reporter, other = Reporter(), TrainerCallback()
    reporter.error = error
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Reporter)
    spare_training(SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[reporter, other])))  # type: ignore[arg-type]
    return reporter, other


def test_a_full_disk_ends_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reporter, other = spared(monkeypatch, OSError(28, "No space left on device"))
    reporter.on_train_begin()
    for _ in range(3):
        reporter.on_log()
    told = "Reporter can't report: OSError: [Errno 28] No space left on device; training goes on.\n"
    assert capsys.readouterr().err == f"unsloth_accel: warning: {told}"
    assert "on_log" not in vars(other)


def test_what_is_wrong_at_the_beginning_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, _ = spared(monkeypatch, RuntimeError("not logged in"))
    reporter.on_log()
    with pytest.raises(RuntimeError, match="not logged in"):
        reporter.on_train_begin()
