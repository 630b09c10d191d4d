from doctor_machines import Place, bad, device, machine, only

from unsloth_accel.doctor import (
    gpus,
)


def test_memory_that_others_hold_is_told_with_their_ids(place: Place) -> None:
    subject = machine(
        place, device(0, memory_free_gib=79.5), device(1, memory_free_gib=47.0), processes={"GPU-1": (4242,)}
    )
    found = only(gpus.gpus, subject)
    assert found.name == "GPU 1"
    assert "47 free" in found.detail
    assert "33.0 GiB held by process 4242" in found.detail


def test_gpus_of_two_kinds(place: Place) -> None:
    other = device(1, name="NVIDIA A100-SXM4-40GB", memory_gib=40.0)
    assert "PCI_BUS_ID" in only(gpus.kinds, machine(place, device(0), other)).fix
    assert bad(gpus.kinds, machine(place, device(0), device(1))) == []


def test_pairs_without_peer_access(place: Place) -> None:
    joined = {frozenset(("GPU-0", "GPU-1")): "host memory"}
    found = only(gpus.links, machine(place, device(0), device(1), links=joined))
    assert "ddp" in found.fix
    assert "RTX 40" not in found.detail
    cards = [device(i, name="NVIDIA GeForce RTX 4090") for i in range(2)]
    assert "no peer access" in only(gpus.links, machine(place, *cards, links=joined)).detail


def test_mixed_links_are_listed(place: Place) -> None:
    joined = {
        frozenset(("GPU-0", "GPU-1")): "NVLink",
        frozenset(("GPU-0", "GPU-2")): "PCIe",
        frozenset(("GPU-1", "GPU-2")): "PCIe",
    }
    found = only(gpus.links, machine(place, device(0), device(1), device(2), links=joined))
    assert "NVLink: 0-1; PCIe: 0-2, 1-2" in found.detail


def test_one_gpu_has_no_links(place: Place) -> None:
    assert list(gpus.links(machine(place, device(0)))) == []
