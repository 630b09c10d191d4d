import pytest
from doctor_machines import Place, bad, device, machine, only

from unsloth_accel.doctor import (
    known_bad,
)


@pytest.mark.parametrize(
    ("name", "version", "status", "reference"),
    [
        ("accelerate", "1.14.0", "error", "accelerate#4206"),
        ("torch", "2.11.0", "warning", "Automodel#3513"),
        ("torch", "2.12.1", "warning", "Automodel#3513"),
        ("torch", "2.7.1", "warning", "fsdp2.py"),
    ],
)
def test_known_bad_pairs_carry_their_reference(
    place: Place, name: str, version: str, status: str, reference: str
) -> None:
    place.add(name, version)
    found = only(known_bad.pairs, machine(place))
    assert found.status == status
    assert reference in found.reference
    assert f"{name} {version}" in found.detail


@pytest.mark.parametrize("version", ["2.8.0", "2.10.0", "2.13.0"])
def test_torch_releases_between_are_fine(place: Place, version: str) -> None:
    place.add("torch", version)
    assert bad(known_bad.pairs, machine(place)) == []


def test_a_cpu_torch_beside_gpus_is_an_error(place: Place) -> None:
    found = only(known_bad.torch_for_device, machine(place, device(0)))
    assert "CPU build" in found.detail
    assert '"torch==2.13.0"' in found.fix


def test_a_driver_older_than_torchs_cuda_is_an_error(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0")
    found = only(known_bad.torch_for_device, machine(place, device(0), driver="550.54", driver_cuda=(12, 4)))
    assert "550.54 runs CUDA 12.4" in found.detail
    assert found.fix == "install driver 580 or newer, or a torch built for CUDA 12"
    assert "minor-version-compatibility" in found.reference


def test_a_driver_of_the_same_major_release_is_enough(place: Place) -> None:
    place.torch("2.13.0+cu132", "13.2")
    assert bad(known_bad.torch_for_device, machine(place, device(0))) == []


def test_other_accelerators_are_told_apart(place: Place) -> None:
    place.torch("2.13.0+rocm6.4", more="hip: Optional[str] = '6.4'\n")
    assert "rocm build" in only(known_bad.torch_for_device, machine(place)).detail


@pytest.mark.parametrize(
    ("torch", "cuda", "capability", "fine"),
    [
        ("2.6.0+cu124", "12.4", (10, 0), False),  # B200
        ("2.8.0+cu126", "12.6", (12, 0), False),  # RTX 5090
        ("2.8.0+cu128", "12.8", (12, 0), True),
        ("2.8.0+cu128", "12.8", (6, 1), False),  # GTX 1080
        ("2.10.0+cu128", "12.8", (7, 0), True),  # V100
        ("2.11.0+cu128", "12.8", (7, 0), False),
        ("2.9.0+cu130", "13.0", (7, 0), False),
        ("2.13.0+cu130", "13.0", (7, 5), True),  # T4
        ("2.13.0+cu126", "12.6", (6, 1), True),
        ("2.13.0+cu130", "13.0", (9, 0), True),
    ],
)
def test_kernels_for_a_gpu(place: Place, torch: str, cuda: str, capability: tuple[int, int], fine: bool) -> None:
    place.torch(torch, cuda)
    found = bad(known_bad.kernels, machine(place, device(0), device(1, compute_capability=capability)))
    assert [result.name for result in found] == ([] if fine else ["GPU 1"])


@pytest.mark.parametrize(
    ("cuda", "capability", "fix"), [("12.6", (10, 0), "CUDA 12.8 or newer"), ("13.0", (6, 1), "CUDA 12.6")]
)
def test_the_fix_for_missing_kernels_names_the_build(
    place: Place, cuda: str, capability: tuple[int, int], fix: str
) -> None:
    place.torch("2.13.0", cuda)
    assert fix in only(known_bad.kernels, machine(place, device(0, compute_capability=capability))).fix


@pytest.mark.parametrize("said", ["version.py", "metadata", "operators"])
def test_a_cuda_torchvision_beside_a_cpu_torch_is_an_error(place: Place, said: str) -> None:
    place.add("torchvision", "0.28.0+cu130" if said == "metadata" else "0.28.0")
    place.file("torchvision/__init__.py", "")
    if said == "version.py":
        place.file("torchvision/version.py", "__version__ = '0.28.0+cu130'\ngit_version = 'f'\n")
    if said == "operators":
        place.file("torchvision/_C.so", "… libtorch_cpu.so libtorch_cuda.so …")
    found = only(known_bad.built_for_another_torch, machine(place))
    assert found.name == "torchvision"
    assert "operators don't load" in found.detail
    assert "pip uninstall torchvision" in found.fix


def test_a_cpu_torchvision_is_fine(place: Place) -> None:
    place.add("torchvision", "0.28.0")
    place.file("torchvision/__init__.py", "")
    place.file("torchvision/_C.so", "… libtorch_cpu.so …")
    assert bad(known_bad.built_for_another_torch, machine(place)) == []
    place.file("torchvision/version.py", "__version__ = '0.28.0+cpu'\n")
    assert bad(known_bad.built_for_another_torch, machine(place)) == []


def test_xformers_built_for_another_torch(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0")
    place.add("xformers", "0.0.32", ("torch==2.8.0",))
    assert "wants torch==2.8.0" in only(known_bad.built_for_another_torch, machine(place, device(0))).detail
    place.add("xformers", "0.0.33", ("torch==2.13.0",))
    assert bad(known_bad.built_for_another_torch, machine(place, device(0))) == []


def test_flash_attn_built_for_another_torch(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0")
    place.add("flash_attn", "2.8.3+cu12torch2.8cxx11abiTRUE")
    assert "built for torch 2.8" in only(known_bad.built_for_another_torch, machine(place, device(0))).detail
    place.add("flash_attn", "2.8.3+cu13torch2.13cxx11abiTRUE")
    assert bad(known_bad.built_for_another_torch, machine(place, device(0))) == []


def test_nccl_missing_or_of_another_build(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0", ("nvidia-nccl-cu13==2.29.3; platform_system == 'Linux'",))
    found = only(known_bad.nccl, machine(place, device(0)))
    assert (found.status, found.fix) == ("error", 'pip install "nvidia-nccl-cu13==2.29.3"')
    place.add("nvidia-nccl-cu13", "2.27.5")
    assert only(known_bad.nccl, machine(place, device(0))).status == "warning"
