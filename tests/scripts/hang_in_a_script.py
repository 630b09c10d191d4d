"""A user's script with a Trainer of its own, adapted: rank 1 hangs in its third step as KIND says, after OUTPUT KIND.

asleep: in a forward pass. held: there, too, and it holds on to Python, so that its heartbeat stops. apart: it comes to
a barrier where rank 0 gathers. killed: by SIGKILL, which is no hang. slow: for longer than the limit in its loader, in
an evaluation and in a callback, which is none either.
"""

import ctypes
import os
import signal
import sys
import time
from typing import Any

import unsloth_accel

output, kind = sys.argv[1:3]
LIMIT = 5.0
rank = int(os.environ["RANK"])
print(f"started {os.getpid()}\n", end="", flush=True)

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(1)
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
rows = [{"input_ids": [n, n + 1, n + 2], "labels": [n, n + 1, n + 2]} for n in range(16)]


class Hang(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if kind == "apart" and state.global_step == 2:
            torch.distributed.barrier() if rank == 1 else torch.distributed.all_gather_object([None, None], rank)
        if kind == "slow" and state.global_step == 2 and rank == 1:
            time.sleep(1.6 * LIMIT)


def hang(module: Any, given: Any) -> None:
    if rank != 1 or not module.training or trainer.state.global_step != 2:
        return
    if kind in ("asleep", "held"):
        time.sleep(3)  # in which a heartbeat tells where it is
    if kind == "asleep":
        time.sleep(600)
    if kind == "held":
        library, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        for _ in range(2):  # the second waits for the first, and no signal interrupts it
            library.pthread_mutex_lock(lock)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def collate(batch: Any) -> Any:
    if kind == "slow" and rank == 1 and (trainer.state.global_step == 3 or not trainer.model.training):
        time.sleep(1.6 * LIMIT)
    return {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}


trainer: Any = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=output, max_steps=5, per_device_train_batch_size=1, per_device_eval_batch_size=8,
        use_cpu=os.environ.get("ACCELERATE_USE_CPU") == "true", report_to="none", disable_tqdm=True,
        save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=4,
    ),
    train_dataset=rows,
    eval_dataset=rows,
    data_collator=collate,
    callbacks=[Hang()],
)  # fmt: skip
model.register_forward_pre_hook(hang)
unsloth_accel.adapt(trainer, hang_after=LIMIT)
trainer.train()
print(f"trained {trainer.state.global_step}", flush=True)
