from pathlib import Path

from releases import NEWEST, looked

from unsloth_accel.doctor.runnable_strategies import results


def test_the_doctor_says_it(tmp_path: Path) -> None:
    found = list(results(looked(tmp_path, "2026.8.22"), "cuda"))
    assert found[0].detail == "unsloth 2026.8.22 can run single, ddp; not fsdp2, fsdp2_native, fsdp1"
    by_name = {one.name: one for one in found}
    assert by_name["GRPO under DDP"].status == "warning"
    assert "the guard stops it" in by_name["GRPO under DDP"].detail
    assert by_name["DDP's unused parameters"].status == "ok"
    assert "CPU backend" not in by_name
    assert all(one.fix for one in found if one.status != "ok")


def test_the_doctor_says_what_happens_without_a_name(tmp_path: Path) -> None:
    for name, file in (("save", "fsdp2_save"), ("rl", "rl")):
        found = looked(tmp_path / name, NEWEST, without=f"unsloth/models/{file}.py")
        assert ("fsdp2" in found.strategies("cuda")) == (name == "rl")
        lines = {one.name: one for one in results(found, "cuda")}
        line = lines["gradients of whole weights" if name == "save" else "rows that Unsloth need not cut"]
        assert line.status == "warning"
        assert line.detail.endswith("; what needs it is refused") == (name == "save")
    assert line.detail.endswith(
        "unsloth/models/rl.py: _unsloth_truncated_to: Unsloth turns batches without padding off"
    )


def test_names_in_a_file_that_is_missed_are_not_said_again(tmp_path: Path) -> None:
    found = looked(tmp_path, NEWEST, without="unsloth/models/fsdp2_load.py")
    names = [one.name for one in results(found, "cuda") if one.status == "warning"]
    assert names == ["sharded loading"]
    assert "rows that Unsloth loads" in {one.what for one in found.missing}
