"""Which errors of a trainer's making are a refusal of settings, and which are a fault."""

from types import ModuleType, SimpleNamespace, TracebackType

import pytest

from unsloth_accel.training import trls_trainer
from unsloth_accel.training.trls_trainer import refuses

RAISES = "def make(error, inner=None):\n    inner() if inner else None\n    raise error\n"


def module(name: str) -> ModuleType:
    made = ModuleType(name)
    exec(RAISES, made.__dict__)
    return made


def raised(*names: str) -> TracebackType | None:
    """The traceback of an error that goes through functions of these modules, the last of which raises it."""
    last = module(names[-1])
    inner = lambda: last.make(ValueError("no"))  # noqa: E731
    try:
        module(names[0]).make(ValueError("outer"), inner if len(names) > 1 else None)
    except ValueError as error:
        return error.__traceback__
    raise AssertionError


@pytest.mark.parametrize(
    "names",
    [
        ("trl.trainer.dpo_trainer",),
        ("UnslothDPOTrainer",),
        ("unsloth_compiled_cache.UnslothKTOTrainer",),
        ("UnslothDPOTrainer", "transformers.trainer"),
        ("trl.trainer.dpo_trainer", "transformers.training_args"),
    ],
)
def test_a_trainer_refuses(names: tuple[str, ...]) -> None:
    assert refuses(raised(*names))


@pytest.mark.parametrize(
    "names",
    [
        ("trl.trainer.dpo_trainer", "datasets.arrow_dataset"),
        ("UnslothDPOTrainer", "unsloth_accel.data.prepare"),
        ("UnslothDPOTrainer", "torch.nn.modules.module"),
        ("trlx.trainer",),
    ],
)
def test_what_a_trainer_calls_has_faults(names: tuple[str, ...]) -> None:
    assert not refuses(raised(*names))


@pytest.mark.parametrize(
    ("device", "bf16", "stays"), [("cpu", False, True), ("cpu", True, False), ("cuda", False, False)]
)
def test_float32_on_a_cpu_stays(device: str, bf16: bool, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth's trainers, which sharding brings to a CPU, would compute in float16."""
    monkeypatch.setattr(trls_trainer, "imported", lambda path: lambda **given: SimpleNamespace(**given))
    run = SimpleNamespace(method="dpo", distributed=SimpleNamespace(device=device))
    rows = SimpleNamespace(train=[], held_out=None, report={"rows": 1})
    model = SimpleNamespace()
    made = trls_trainer.trls_trainer(run, model, None, SimpleNamespace(fp16=False, bf16=bf16), rows)  # type: ignore[arg-type]
    assert made.data_report == {"rows": 1}  # type: ignore[attr-defined]
    assert getattr(model, "_unsloth_forced_float32", False) is stays


def test_the_trainer_of_completions_is_made_in_float32_and_not_kept_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth's GRPO loss computes in float16 for a model that says of itself that it can't: verify saw 1.7 %."""
    seen: list[bool] = []

    def made(model: SimpleNamespace, **given: object) -> SimpleNamespace:
        seen.append(model._unsloth_forced_float32)
        return SimpleNamespace(model=model, **given)

    monkeypatch.setattr(trls_trainer, "imported", lambda path: made)
    run = SimpleNamespace(method="grpo", distributed=SimpleNamespace(device="cpu"))
    rows = SimpleNamespace(train=[], held_out=None, report={})
    model, config = SimpleNamespace(), SimpleNamespace(fp16=False, bf16=False)
    trainer = trls_trainer.trls_trainer(run, model, None, config, rows, reward_funcs=["evens"])  # type: ignore[arg-type]
    assert trainer.reward_funcs == ["evens"]  # type: ignore[attr-defined]
    assert seen == [True]
    assert model._unsloth_forced_float32 is False


def test_what_unsloth_says_of_a_model_on_gpus_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models can't compute in float16, which Unsloth's GRPO reads there."""
    monkeypatch.setattr(trls_trainer, "imported", lambda path: lambda **given: SimpleNamespace(**given))
    run = SimpleNamespace(method="grpo", distributed=SimpleNamespace(device="cuda"))
    model, rows = SimpleNamespace(_unsloth_forced_float32=True), SimpleNamespace(train=[], held_out=None, report={})
    trls_trainer.trls_trainer(run, model, None, SimpleNamespace(fp16=True, bf16=False), rows)  # type: ignore[arg-type]
    assert model._unsloth_forced_float32 is True
