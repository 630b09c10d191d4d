import pytest

from unsloth_accel.config import trainer_fields
from unsloth_accel.config.trainer_fields import CHECKPOINTING_FIELDS, accepts, training_fields
from unsloth_accel.methods import METHODS


def test_training_fields_are_those_of_the_installed_trl() -> None:
    import dataclasses

    from trl import SFTConfig

    real = {f.name for f in dataclasses.fields(SFTConfig) if f.init}
    assert real - set(training_fields(METHODS["sft"].config_sources)) == set()
    assert training_fields(METHODS["sft"].config_sources)["max_steps"] is int


def test_accepts() -> None:
    assert accepts(float, 1)
    assert not accepts(int, 1.5)
    assert not accepts(int, True)
    assert accepts(int | None, None)
    assert accepts(None, object())


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        (("gradient_checkpointing", "max_steps"), CHECKPOINTING_FIELDS[:1]),
        (("activation_checkpointing", "gradient_checkpointing"), CHECKPOINTING_FIELDS),
        ((), CHECKPOINTING_FIELDS[:1]),
    ],
    ids=["before 5.23", "from 5.23 on", "not read"],
)
def test_checkpointing_is_set_under_each_of_its_names(
    fields: tuple[str, ...], given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_fields, "training_fields", lambda sources: dict.fromkeys(fields, bool))
    assert trainer_fields.checkpointing_fields(()) == given
