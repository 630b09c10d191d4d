"""What Unsloth tries while it compiles a block stays out of the training.

Mends, in Unsloth 2026.10.9 with models whose blocks it compiles whole (Qwen3-VL, Qwen3's mixtures):
- `_varlen_in_graph_probe` trains an attention kernel for one step while Dynamo compiles a block, where rows lie end to
  end. Under DDP such a block is checkpointed without reentrance, so what the trial saves belongs to the block's
  checkpoint, and the trial's backward recomputes the block, on autograd's thread, which waits for Dynamo's lock: every
  rank hangs before its first step. Unsloth keeps its other trials apart (`_gdn_op`, `large_head_attention`:
  `_self_check`); here this one is kept so too.
- Before its first pass without gradients a block is tried with them, and its output dropped. But transformers records
  what a mixture's routers said, for the auxiliary loss, so that the loss of the first step goes back through the trial,
  too: where weights are sharded through weights that were freed since, into an illegal memory access. Here nothing is
  recorded of a trial.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available

if TYPE_CHECKING:
    import torch

ATTENTION = "unsloth.utils.hf_packed_attention"
BLOCKS = "unsloth.models._block_compile"


def keep_trials_apart(model: torch.nn.Module) -> None:
    """Keep Unsloth's trials out of the training of `model`; call it before the first forward pass. Once is enough."""
    blocks: Any = sys.modules.get(BLOCKS)
    if blocks is None or not available("a trial while a block is compiled"):
        return
    attention: Any = sys.modules.get(ATTENTION)  # imported for rows that lie end to end
    if attention is not None and not hasattr(attention._varlen_in_graph_probe, "__wrapped__"):
        attention._varlen_in_graph_probe = _with_its_own_gradients(attention._varlen_in_graph_probe)
    compiled = {one for module in model.modules() if getattr(one := type(module).forward, blocks._MARK, False)}
    if available("outputs recorded beside a block's own", needed=bool(compiled)):
        for forward in compiled:
            _keep_its_trial_apart(forward)


def _with_its_own_gradients(probe: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    @functools.wraps(probe)
    def apart(*arguments: Any) -> Any:
        hooks = torch.autograd.graph.saved_tensors_hooks(_detached, _as_it_is)
        with torch.inference_mode(False), hooks:  # which records gradients, whatever the pass around it does
            return probe(*arguments)

    return apart


def _detached(saved: torch.Tensor) -> torch.Tensor:
    return saved.detach()


def _as_it_is(saved: torch.Tensor) -> torch.Tensor:
    return saved


def _keep_its_trial_apart(forward: Any) -> None:
    """Have a block's compiled `forward` record nothing where it calls itself: it does so for its trial alone."""
    if "forward" not in forward.__code__.co_freevars:
        return
    itself = forward.__closure__[forward.__code__.co_freevars.index("forward")]
    trial = itself.cell_contents
    if trial is not forward:  # done before
        return

    @functools.wraps(trial)
    def apart(*arguments: Any, **options: Any) -> Any:
        from transformers.utils import output_capturing

        token = output_capturing._active_collector.set(None)
        try:
            return trial(*arguments, **options)
        finally:
            output_capturing._active_collector.reset(token)

    itself.cell_contents = apart
