from pathlib import Path

from releases import looked

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
