"""Unsloth's own files, by themselves: on a CPU it compiles no block and tries no kernel."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from unsloth_accel.adapters.block_trials import ATTENTION, BLOCKS, keep_trials_apart

KERNEL = (0, torch.float32, 8, 2, 2, None)
LAYERS = 2
IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def of_unsloth(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Returns one of Unsloth's modules, without the import of Unsloth."""

    def load(name: str) -> Any:
        path = Path(str(metadata.distribution("unsloth").locate_file(name.replace(".", "/")))).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


class OnCpu:
    """torch, with a CPU for each GPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, *_: Any) -> torch.device:
        return torch.device("cpu")


@pytest.fixture
def attention(of_unsloth: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("unsloth", "unsloth.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    allows = SimpleNamespace(flash_impl_allows=lambda *_: True)
    monkeypatch.setitem(sys.modules, "unsloth.utils.flash_impl", allows)  # type: ignore[arg-type]
    sys.modules["unsloth"].__path__ = sys.modules["unsloth.utils"].__path__ = []
    of_unsloth(BLOCKS)
    module = of_unsloth(ATTENTION)
    module.torch = OnCpu()
    module._torch_varlen = lambda device: True
    module._flash_varlen = lambda query, *_: query.exp()
    return module


def test_a_kernel_is_tried_outside_the_checkpoint_that_waits_for_it(attention: Any) -> None:
    passes = []

    def block(hidden: torch.Tensor) -> torch.Tensor:
        passes.append(attention._varlen_in_graph_eager(*KERNEL))
        return hidden.sin()

    keep_trials_apart(torch.nn.Linear(1, 1))
    hidden = torch.ones(3, requires_grad=True)
    checkpoint(block, hidden, use_reentrant=False).sum().backward()
    assert passes == [True, True]
    assert torch.equal(hidden.grad, torch.ones(3).cos())  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_kernel_is_tried_where_no_gradients_are_recorded(attention: Any, mode: Any) -> None:
    keep_trials_apart(torch.nn.Linear(1, 1))
    with mode():
        assert attention._varlen_in_graph_eager(*KERNEL)


def test_it_is_done_once(attention: Any) -> None:
    keep_trials_apart(torch.nn.Linear(1, 1))
    probe = attention._varlen_in_graph_probe
    keep_trials_apart(torch.nn.Linear(1, 1))
    assert attention._varlen_in_graph_probe is probe


@pytest.fixture
def mixture(of_unsloth: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A mixture whose blocks Unsloth compiles whole; here compiling leaves them as they are."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

    monkeypatch.setattr(Qwen3MoeDecoderLayer, "forward", Qwen3MoeDecoderLayer.forward)  # put back at the end
    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "head_dim": 8, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(num_hidden_layers=LAYERS, output_router_logits=True, **sizes, **heads))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch, "compile", lambda function, **_: function)
        assert of_unsloth(BLOCKS).patch_block_compile(model) == ["Qwen3MoeDecoderLayer"]
    keep_trials_apart(model)
    keep_trials_apart(model)
    return model.train()


def recorded(told: Any) -> list[bool]:
    """Return of each router's outputs whether the loss can go back through them."""
    return [one.requires_grad for one in told.router_logits]


def test_what_a_trial_says_is_not_recorded(mixture: Any) -> None:
    for _ in range(2):
        told = mixture(IDS, labels=IDS)
        assert recorded(told) == [False] * LAYERS
        told.loss.backward()
    assert all(weight.grad is not None for weight in mixture.model.layers.parameters() if weight.ndim > 1)


def test_nor_where_the_step_is_done_again_after_a_lack_of_memory(mixture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mixture.model.layers[1].mlp, "forward", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            mixture(IDS, labels=IDS)
    assert recorded(mixture(IDS, labels=IDS)) == [False] * LAYERS


def out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError


def test_its_trial_is_changed_once(mixture: Any) -> None:
    forward = type(mixture.model.layers[0]).forward
    trial = inspect.getclosurevars(forward).nonlocals["forward"]
    assert trial is not forward
    keep_trials_apart(mixture)
    assert inspect.getclosurevars(forward).nonlocals["forward"] is trial


def test_a_block_is_tried_once_and_only_where_unsloth_does(mixture: Any) -> None:
    passes = []
    mixture.model.layers[0].mlp.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    mixture.eval()
    with torch.no_grad():
        mixture(IDS)
    mixture.train()
    mixture(IDS)
    mixture(IDS)
    assert passes == [False, True, False, False]


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone, which gathers and frees weights as one of several does."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_sharded_mixture_goes_back_through_its_own_weights_alone(mixture: Any) -> None:
    expected = gradients(mixture)
    for layer in mixture.model.layers:
        del layer._unsloth_block_checked  # it is tried anew
        fully_shard(layer)
    fully_shard(mixture)
    for _ in range(2):
        found = gradients(mixture)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient.full_tensor(), expected[name])


def gradients(model: Any) -> dict[str, Any]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
