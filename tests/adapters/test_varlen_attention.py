"""One call for the attention of all rows: taken where it computes the same, and nowhere else."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unsloth_accel.adapters import varlen_attention
from unsloth_accel.adapters.varlen_attention import DISPATCH, LENGTHS, attend_at_once, row_by_row, trial
from unsloth_accel.capabilities import probe
from unsloth_accel.capabilities.patches import PATCHES

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


def right(query: Any, key: Any, value: Any, *_: Any, window_size: Any, **__: Any) -> Any:
    return row_by_row(query, key, value, LENGTHS, window_size)


def across_rows(query: Any, key: Any, value: Any, *_: Any, window_size: Any, **__: Any) -> Any:
    return row_by_row(query, key, value, [sum(LENGTHS)], window_size)


def without_window(query: Any, key: Any, value: Any, *_: Any, window_size: Any, **__: Any) -> Any:
    return row_by_row(query, key, value, LENGTHS, (-1, 0))


def other_heads(query: Any, key: Any, value: Any, *_: Any, window_size: Any, **__: Any) -> Any:
    return row_by_row(query, key.flip(1), value.flip(1), LENGTHS, window_size)


def wrong_gradient(query: Any, key: Any, value: Any, *_: Any, window_size: Any, **__: Any) -> Any:
    return row_by_row(query, key, value.detach() + (value - value.detach()) * 0.5, LENGTHS, window_size)


def not_a_number(query: Any, key: Any, value: Any, *_: Any, window_size: Any, **__: Any) -> Any:
    return right(query, key, value, window_size=window_size) * float("nan")


def refuses(*_: Any, **__: Any) -> Any:
    raise TypeError("unexpected argument 'window_size_left'")


def test_the_plain_form_is_torchs_own() -> None:
    """Against scaled_dot_product_attention, row by row."""
    chance = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(sum(LENGTHS), heads, 16, generator=chance) for heads in (4, 2, 2))
    found = row_by_row(query, key, value, LENGTHS, (-1, 0))
    rows = zip(*(one.transpose(0, 1).split(list(LENGTHS), 1) for one in (query, key, value)), strict=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    theirs = [attention(*row, is_causal=True, enable_gqa=True).transpose(0, 1) for row in rows]
    torch.testing.assert_close(found, torch.cat(theirs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_right_kernel_passes(dtype: torch.dtype) -> None:
    assert trial(right, CPU, dtype) is None


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        (across_rows, "another output"),
        (without_window, "another output"),
        (other_heads, "another output"),
        (wrong_gradient, "another value's gradient"),
        (not_a_number, "another output, off by nan"),
        (refuses, "does not take such rows: TypeError: unexpected argument 'window_size_left'"),
    ],
)
def test_a_wrong_one_is_told(kernel: Any, told: str) -> None:
    assert told in str(trial(kernel, CPU))


def test_a_trial_leaves_the_seed_alone() -> None:
    before = torch.get_rng_state()
    trial(right, CPU)
    assert torch.equal(before, torch.get_rng_state())


class Lean(torch.nn.Module):
    """Unsloth's call, by its arguments."""

    @staticmethod
    def apply(
        query: Any, key: Any, value: Any, starts: Any, longest: int, causal: bool, scale: Any, *window: int
    ) -> Any:
        assert (starts.dtype, starts.tolist()[-1], longest) == (torch.int32, sum(LENGTHS), max(LENGTHS))
        assert causal == (window == (-1, 0))
        return row_by_row(query, key, value, starts.diff().tolist(), window)  # type: ignore[arg-type]


@pytest.fixture
def dispatch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What Unsloth has with torch 2.11."""
    names = {"_TORCH_VARLEN_ATTN": None, "_LEAN_VARLEN": False, "_LeanFlashVarlen": Lean}
    module = SimpleNamespace(**names, HAS_FLASH_ATTENTION=False, HAS_XFORMERS=False)
    monkeypatch.setitem(sys.modules, DISPATCH, module)  # type: ignore[arg-type]
    monkeypatch.delenv(varlen_attention.SWITCH, raising=False)
    return module


def test_it_is_taken(dispatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_attention, "_obstacle", lambda dispatch, device: None)
    monkeypatch.setattr(varlen_attention, "trial", lambda attend, device: trial(attend, CPU))
    assert attend_at_once(GPU) is None
    assert trial(dispatch._TORCH_VARLEN_ATTN, CPU) is None
    taken = dispatch._TORCH_VARLEN_ATTN
    assert attend_at_once(GPU) is None
    assert dispatch._TORCH_VARLEN_ATTN is taken


def test_a_failed_trial_changes_nothing(dispatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_attention, "_obstacle", lambda dispatch, device: None)
    monkeypatch.setattr(varlen_attention, "trial", lambda attend, device: "it computes another output")
    with pytest.warns(UserWarning, match=r"once for every row of a batch: it computes another output\."):
        assert attend_at_once(GPU) == "it computes another output"
    assert dispatch._TORCH_VARLEN_ATTN is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("env", "0"), "UNSLOTH_TORCH_VARLEN=0"),
        (("HAS_XFORMERS", True), "flash-attn or xformers does it"),
        (("HAS_FLASH_ATTENTION", True), "flash-attn or xformers does it"),
        (("hip", "7.0"), "no NVIDIA GPU"),
        (("capability", (7, 5)), "compute capability 8.0"),
        (("flash", False), "built without flash attention"),
    ],
)
def test_where_it_cant_be(change: tuple[str, Any], told: str, dispatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = change
    now = {"hip": None, "capability": (9, 0), "flash": True} | {name: value}
    if name == "env":
        monkeypatch.setenv(varlen_attention.SWITCH, value)
    elif name.startswith("HAS"):
        setattr(dispatch, name, value)
    monkeypatch.setattr(torch.version, "hip", now["hip"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: now["capability"])
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: now["flash"])
    assert told in str(attend_at_once(GPU))
    assert dispatch._TORCH_VARLEN_ATTN is None


def test_a_run_on_the_cpu_leaves_the_gpu_alone(dispatch: Any) -> None:
    assert attend_at_once(CPU) == "no NVIDIA GPU"


def test_an_older_unsloth_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, DISPATCH, SimpleNamespace())  # type: ignore[arg-type]
    lost = [one for one in PATCHES if one.adapter == "adapters.varlen_attention"]
    found = probe.Capabilities(versions={"unsloth": "2025.12.10"}, missing=tuple(lost))
    monkeypatch.setattr(probe, "here", lambda: found)
    assert attend_at_once(GPU) == "this Unsloth has no call for many rows"


def test_the_names_are_unsloths() -> None:
    """Read, not imported: this process need not have Unsloth loaded."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("unsloth")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "utils" / "attention_dispatch.py").read_text(encoding="utf-8")
    for name in (
        "_TORCH_VARLEN_ATTN = ",
        "class _LeanFlashVarlen",
        "_LEAN_VARLEN = ",
        "HAS_FLASH_ATTENTION",
        "HAS_XFORMERS",
    ):
        assert name in text
