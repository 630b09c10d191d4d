"""FSDP1 around a PEFT model, two gloo processes: gather the adapter, save it in shards, restore it.

    torchrun --nproc_per_node 2 fsdp1_adapter.py MODEL DIRECTORY

With PEFT as it is, which shows the fault, and mended; with torch's flat parameters and with the original ones.
"""

import os
import sys
from typing import Any

os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "LlamaDecoderLayer"
import torch
import torch.distributed.checkpoint as dcp
from accelerate.utils import fsdp_utils
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.utils.other import fsdp_auto_wrap_policy
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import StateDictType
from transformers import AutoModelForCausalLM

from unsloth_accel.adapters import fsdp1

path, directory = sys.argv[1:3]
torch.distributed.init_process_group("gloo")
first = torch.distributed.get_rank() == 0


def adapted() -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def check(model: Any, place: str, what: str) -> None:
    gathered = fsdp1.gathered(model)
    found = get_peft_model_state_dict(model.module, state_dict=gathered) if first else {}
    saved = sum(torch.equal(found[name], expected[name]) for name in found)
    with FSDP.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        dcp.save({"model": fsdp_utils._get_model_state_dict(model, adapter_only=True)}, checkpoint_id=place)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.detach().zero_()
        state = {"model": fsdp_utils._get_model_state_dict(model, adapter_only=True)}
        dcp.load(state, checkpoint_id=place)
        fsdp_utils._set_model_state_dict(model, state["model"], adapter_only=True)
    back = fsdp1.gathered(model)
    restored = sum(torch.equal(back[name], gathered[name]) for name in back)
    if first:
        print(f"{what}: saved {saved}, restored {restored} of {len(expected)}", flush=True)


expected = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(adapted()).items()}
for mended in (False, True):
    if mended:
        fsdp1.let_peft_see_through()
    for kind in ("flat", "orig"):
        model = adapted()
        policy = fsdp_auto_wrap_policy(model)
        model = FSDP(model, auto_wrap_policy=policy, use_orig_params=kind == "orig", device_id=torch.device("cpu"))
        check(model, f"{directory}/{kind}-{mended}", f"{kind}, {'mended' if mended else 'PEFT alone'}")
