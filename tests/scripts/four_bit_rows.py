"""Each of two gloo processes loads its rows of a 4-bit model; gathered by FSDP2 they must be the whole model's bytes.

Once quantised while it loads, once read from a checkpoint in 4 bit. Launched by tests/adapters/test_fsdp2.py, under
torchrun: four_bit_rows.py CHECKPOINT WORK.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from bitsandbytes.functional import dequantize_4bit
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import unsloth_accel  # noqa: F401  isort: skip
import unsloth  # noqa: F401  isort: skip
from unsloth.models.fsdp2_qlora import fsdp2_qlora_wrap  # isort: skip

from unsloth_accel.adapters.fsdp2 import loading


def load(path: str) -> torch.nn.Module:
    if Path(path).name == "quantised":
        return AutoModelForCausalLM.from_pretrained(path, device_map="cpu")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    config.bnb_4bit_compute_dtype = torch.bfloat16
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=config, device_map="cpu", dtype=torch.bfloat16
    )
    return loaded


def weights_in_4bit(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if getattr(p, "quant_state", None) is not None}


def main(path: str, work: str) -> None:
    dist.init_process_group("gloo")
    quantised = Path(work, "quantised")
    if dist.get_rank() == 0:
        load(path).save_pretrained(quantised)
    dist.barrier()
    for source in (path, str(quantised)):
        check(source)
    dist.barrier()
    dist.destroy_process_group()


def check(path: str) -> None:
    whole = {
        name: (p.data.clone(), dequantize_4bit(p.data, p.quant_state))
        for name, p in weights_in_4bit(load(path)).items()
    }
    assert len(whole) == 14, sorted(whole)  # seven projections in each of two blocks
    with loading._cut_when_quantised():
        model = load(path)
    for name, weight in weights_in_4bit(model).items():
        assert 2 * weight.numel() == whole[name][0].numel(), name  # half of the bytes in each process
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    mesh = init_device_mesh("cpu", (2,))
    pending = loading.set_aside_rows(model, accelerator)
    assert len(pending) == 14
    with fsdp2_qlora_wrap(model, native=True):
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
    loading.put_back_rows(model, pending)
    for layer in model.model.layers:
        layer.unshard()
    for name, weight in weights_in_4bit(model).items():
        bits, values = whole[name]
        assert torch.equal(weight.data.reshape(-1).view(torch.uint8), bits.reshape(-1)), name
        again = dequantize_4bit(weight.data.view(torch.uint8).view(bits.shape), weight.quant_state)
        assert torch.equal(again, values), name
    print(f"rank {dist.get_rank()}: {len(whole)} weights of {Path(path).name} intact", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
