"""Train a run.yaml and compare, at every save, what is on disk with what the ranks hold; rank 0 can't write twice.

The checkpoint of step 2 fails on rank 0 at its optimizer, as on a full disk, except under accelerate's FSDP, where that
ends the run; that of step 3 at its adapter.
Prints one line for each thing that it found right. Runs under every strategy; fsdp1 and fsdp2 need GPUs.
"""

import sys
from pathlib import Path
from typing import Any

import unsloth_accel
from unsloth_accel.adapters import environment, rank_checks, saving
from unsloth_accel.artifacts.checkpoints import Checkpoint
from unsloth_accel.config.read_run import load
from unsloth_accel.training import process

run = load(sys.argv[1])
trainer = process.build_trainer(run)

import torch  # noqa: E402
from peft import get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

first = environment.rank() == 0
full_at_2 = not trainer.is_fsdp_enabled


def compare(directory: Path, what: str) -> None:
    """Every rank's weights, put together, against the file; a collective."""
    model = saving.unwrapped(trainer.model)
    held = {name: rank_checks.whole(p.detach()).cpu() for name, p in model.named_parameters() if p.requires_grad}
    if run.distributed.strategy == "fsdp1":  # flat shards: put together by what is tested alone in fsdp1_adapter.py
        held = saving.gathered(trainer.model) or {}
    expected = get_peft_model_state_dict(model, state_dict=held)
    if first:
        saved = load_file(directory / "adapter_model.safetensors")
        assert saved.keys() == expected.keys(), (len(saved), len(expected))
        assert all(torch.equal(saved[name], expected[name]) for name in saved), what
        assert any(bool(tensor.abs().max()) for name, tensor in saved.items() if "lora_B" in name), (
            "nothing was trained"
        )
        print(f"equal: {what}, {len(saved)} tensors", flush=True)


class Watch(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        directory = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.global_step == 3 or (state.global_step == 2 and full_at_2):
            if first:
                assert not directory.exists(), "half a checkpoint is left"
                print(f"gone: {directory.name}", flush=True)
            return
        compare(directory, directory.name)
        if first:
            lacks = "rng_state_1.pth is missing" if state.global_step == 4 and full_at_2 else None
            assert Checkpoint(directory).fault == lacks, Checkpoint(directory).fault
            assert Checkpoint(directory).record["files"], "no record"


write = torch.save


def full_disk(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
    if full_at_2 and trainer.state.global_step == 2 and first and "optimizer" in str(file):
        raise OSError(28, "No space left on device")
    if full_at_2 and trainer.state.global_step == 4 and not first and "rng_state" in str(file):
        raise PermissionError(13, "Permission denied")
    write(value, file, *args, **kwargs)


def full_before_it(*args: Any, **kwargs: Any) -> None:
    if trainer.state.global_step == 3 and first:
        raise OSError(28, "No space left on device")
    write_adapter(*args, **kwargs)


write_adapter = trainer._save
trainer._save = full_before_it
torch.save = full_disk
trainer.add_callback(Watch())
trainer.train()
sharded = any(map(rank_checks.is_sharded, trainer.model.parameters()))
assert sharded == (run.distributed.strategy in ("fsdp2", "fsdp2_native"))
print("trained", trainer.state.global_step, flush=True)
for what, trained in (("trainer", trainer), ("model", trainer.model)):
    directory = unsloth_accel.save(trained, Path(run.output_dir, what), tokenizer=trainer.processing_class)
    compare(directory, what)
