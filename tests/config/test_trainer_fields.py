from unsloth_accel.config.trainer_fields import accepts, training_fields
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
