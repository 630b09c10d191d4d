"""Train a tiny LoRA model in one process, or in several under the real code of Accelerate's FSDP2.

Accelerate refuses FSDP on a CPU before it looks at anything; here its state is told afterwards that it is one. What
follows is its own: `prepare` shards with `fully_shard` over gloo. Launched by tests/adapters/test_fsdp2.py, under
torchrun: fsdp2_on_cpu.py CHECKPOINT CASES.json, a list of {"out", "r", "port", "variables"}. Each case runs in
processes of its own, which meet at its port: copies of those that were launched, made once these have imported all.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import unsloth_accel  # isort: skip
import unsloth  # isort: skip

import peers_in_files
import torch
import torch._dynamo
import torch.distributed as dist

# Sharding imports it, for seconds. In one process too: TRL's loss on a CPU then rounds otherwise in 16 bits.
import unsloth.models
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from other_models import values
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoConfig, Qwen3VLForConditionalGeneration, set_seed
from trl import SFTConfig, SFTTrainer

from benchmarks.worker import KEEP, keep_blocks
from unsloth_accel.adapters.fsdp2.units import groups_of, units_of
from unsloth_accel.adapters.kept_activations import keep, kept
from unsloth_accel.adapters.out_of_memory import StepHalving, halve_on_out_of_memory
from unsloth_accel.artifacts.checkpoints import find_checkpoints


def pretend_fsdp2(dtype: torch.dtype) -> None:
    in_16_bit = dtype is torch.bfloat16
    Accelerator(cpu=True, mixed_precision="bf16" if in_16_bit else "no")
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Qwen3VLTextDecoderLayer" if os.environ.get("TOWER") else "LlamaDecoderLayer"],
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
        # Sums in another dtype than the weights', as with bf16 on GPUs: FSDP2 then looks into every unit's gradients.
        mixed_precision_policy=MixedPrecisionPolicy(
            param_dtype=dtype if in_16_bit else None, reduce_dtype=torch.float32 if in_16_bit else torch.float64
        ),
    )
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP


def fail_above_one_row(model: torch.nn.Module, where: str) -> None:
    """Have `model` run out of memory with more than a row at once, or while a block keeps its activations: in its
    `forward` or at the end of its `backward`."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = [module for name, module in model.named_modules() if name.endswith("layers.1.mlp")]
    state = {"large": False}

    def before(module: Any, arguments: Any, named: Any) -> None:
        state["large"] = module.training and (named["input_ids"].shape[0] > 1 or kept(model) > 0)

    def fail(here: str) -> None:
        if state["large"] and where == here:
            print("OUT OF MEMORY", flush=True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB (injected)")

    model.register_forward_pre_hook(before, with_kwargs=True)
    # The first layer's is the last to get its gradient; in the last block's forward pass the first is behind.
    weights[0].register_hook(lambda gradient: fail("backward"))
    layers[0].register_forward_pre_hook(lambda module, arguments: fail("forward"))


def let_transformers_average(trainer: Any) -> None:
    """Have transformers average what FSDP2 leaves whole, as 5.19 to 5.24 do after preparing a model that they divided
    themselves: their own code where they have it."""
    prepare = trainer.accelerator.prepare

    def copied(model: torch.nn.Module) -> None:
        def average(weight: torch.Tensor) -> None:
            if trainer.accelerator.sync_gradients:
                dist.all_reduce(weight.grad, op=dist.ReduceOp.AVG)

        for weight in model.parameters():
            if not weight.requires_grad or hasattr(weight, "_local_tensor"):
                continue
            dist.broadcast(weight.detach(), src=0)
            if not getattr(weight, "_replicated_grad_hook_registered", False):
                weight.register_post_accumulate_grad_hook(average)
                weight._replicated_grad_hook_registered = True

    def prepare_and_average(*objects: Any, **options: Any) -> Any:
        prepared = prepare(*objects, **options)
        if any(isinstance(one, torch.nn.Module) for one in objects):
            getattr(trainer, "_sync_replicated_trainable_parameters", copied)(trainer.model)
        return prepared

    trainer.accelerator.prepare = prepare_and_average


def fill_disk(trainer: Any) -> None:
    """Have rank 0 find no room for weights and optimizer of the checkpoint of step 2: ranks gather between the two."""
    save, large = torch.save, ("pytorch_model_fsdp.bin", "optimizer.bin")

    def full(value: Any, file: Any, *arguments: Any, **options: Any) -> None:
        if trainer.state.global_step == 2 and Path(file).name in large and dist.get_rank() == 0:
            raise OSError(28, "No space left on device")
        save(value, file, *arguments, **options)

    torch.save = full


def count_all_reduced() -> list[int]:
    """The sizes of all tensors that are all-reduced from now on."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return all_reduce(tensor, *arguments, **options)

    dist.all_reduce = counted
    return sizes


def with_tower(words: int, dtype: torch.dtype) -> Any:
    """A model with a tower for images, and a LoRA adapter on its text model: by transformers and PEFT, as on a CPU."""
    described = values("qwen3_vl")
    described["text_config"] = {**described["text_config"], "vocab_size": words, "dtype": "float32"}
    set_seed(3407)
    model = Qwen3VLForConditionalGeneration(AutoConfig.for_model(**described)).to(dtype)
    # Of the tower's weights none is called so.
    return get_peft_model(model, LoraConfig(r=1, lora_alpha=16, target_modules=["q_proj", "down_proj"]))


def weights_of(unit: torch.nn.Module) -> list[Any]:
    """FSDP2's own records of the weights that it gathers with `unit`."""
    return [parameter for group in groups_of(unit) for parameter in group.fsdp_params]


def note_dtypes(model: torch.nn.Module) -> set[str]:
    """What the LoRA layers of `model` compute in from now on."""
    dtypes: set[str] = set()
    for name, module in model.named_modules():
        if name.endswith(".lora_A.default"):
            module.register_forward_hook(lambda module, arguments, output: dtypes.add(str(output.dtype)))
    return dtypes


def main(path: str, out: str, r: str) -> None:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    dtype = torch.bfloat16 if os.environ.get("IN_BF16") else torch.float32
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        path, max_seq_length=96, load_in_4bit=False, dtype=dtype
    )
    if os.environ.get("TOWER"):
        model = with_tower(len(tokenizer), dtype)
    else:
        model = unsloth.FastLanguageModel.get_peft_model(
            model, r=int(r), lora_alpha=16, target_modules=["q_proj", "down_proj"], random_state=3407
        )
    keep(model, int(os.environ.get("KEPT", "0")))
    arguments = SFTConfig(
        output_dir=out,
        max_steps=4,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=1,  # so that the mean over batches is the same on any number of processes
        gradient_accumulation_steps=2 if several else 4,
        max_length=96,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="steps" if os.environ.get("DISK_FULL") else "no",
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        bf16=dtype is torch.bfloat16,
        use_cpu=True,
        optim="adamw_torch",
    )
    if several:
        pretend_fsdp2(dtype)
    if peers_in_files.wanted():
        peers_in_files.use(Path(out, "shared"))
    if os.environ.get(KEEP):
        keep_blocks()
    rows = [{"text": "abc def ghi " * (1 + (i * 7) % 8)} for i in range(64)]
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:12]),
    )
    halving = None
    if os.environ.get("RANK_1_FAILS"):
        halving = halve_on_out_of_memory(trainer)
        if os.environ["RANK"] == "1":
            fail_above_one_row(model, os.environ["RANK_1_FAILS"])
    unsloth_accel.adapt(trainer)
    if os.environ.get("TRANSFORMERS_AVERAGES"):
        let_transformers_average(trainer)
    if os.environ.get("DISK_FULL"):
        fill_disk(trainer)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    all_reduced, dtypes = count_all_reduced(), note_dtypes(model)
    trainer.train()
    averages = sum(all_reduced) // trained
    unsloth_accel.save(trainer, Path(out, "adapter"))
    frozen_sharded = all(hasattr(p, "_local_tensor") for p in model.parameters() if not p.requires_grad)
    evaluated = trainer.evaluate()["eval_loss"]
    units = units_of(model)
    never_gathered = [
        name
        for name, module in model.named_modules()
        if module in units and all(not hasattr(p, "_unsharded_param") for p in weights_of(module))
    ]
    with unsloth_accel.generating(trainer.model):  # all blocks at once
        sums = {name: float(p.detach().double().abs().sum()) for name, p in trainer.model.named_parameters()}
    again = trainer.evaluate()["eval_loss"]
    peers = getattr(model, "_unsloth_accel_peer", None)
    if trainer.accelerator.is_main_process:
        found = {
            "log": [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "loss" in line],
            "eval": [evaluated, again],
            "averages": averages,
            "dtypes": sorted(dtypes),
            "sums": sums,
            "never_gathered": never_gathered,
            "fetched": peers.fetched if peers else 0,
            "kept": kept(model),
            "parts": halving.parts if isinstance(halving, StepHalving) else halving,
            "reason": halving.reason if isinstance(halving, StepHalving) else None,
            "mapped": peers.mapped_bytes if peers else 0,
            "looked_up": peers.looked_up if peers else 0,
            "units": len(units),
            "lora_whole": not any(hasattr(p, "_local_tensor") for p in model.parameters() if p.requires_grad),
            "frozen_sharded": frozen_sharded,
            "checkpoints": {one.path.name: one.fault for one in find_checkpoints(out)},
        }
        Path(out, "found.json").write_text(json.dumps(found), encoding="utf-8")


def run(path: str, case: dict[str, Any]) -> None:
    """Run a case in a copy of this process; one that fails, or hangs, leaves no found.json."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    signal.alarm(200)
    # torchrun's own store knows one group.
    os.environ |= {"MASTER_PORT": str(case["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False", **case["variables"]}
    torch._dynamo.config.disable = os.environ.get("TORCH_COMPILE_DISABLE") == "1"  # as it reads it at its import
    status = 1
    try:
        main(path, case["out"], case["r"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")):
        run(sys.argv[1], one)
