"""The interface of unsloth-multigpu: one call, and an Unsloth script with SFTTrainer runs on several GPUs.

    python examples/quick_start.py                (with several GPUs it prints the commands that launch it)

Launch it with the commands that it prints, or by `--launch`, which does so itself.
"""

import argparse

# The order matters: unsloth_accel sets what must be set before unsloth, and unsloth patches trl.
# isort: off
import unsloth_accel as ump
from unsloth import FastLanguageModel
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
# isort: on

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--data", default="examples/data/elements-train.jsonl")
parser.add_argument("--output", default="runs/quick_start")
parser.add_argument("--gpus", type=int, default=2)
parser.add_argument("--max-steps", type=int, default=10)
parser.add_argument("--per-device", type=int, default=4, help="rows per process and micro-batch")
parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per optimizer step")
parser.add_argument("--strategy", help="of the launch, such as fsdp2 for a model larger than a GPU; default: ddp")
parser.add_argument("--launch", action="store_true", help="launch it from here, in place of printing how")
options = parser.parse_args()

ump.enable_multi_gpu(
    num_gpus=options.gpus,
    batch_size_per_gpu=options.per_device,
    gradient_accumulation_steps=options.accumulation,
    enable_memory_optimization=True,
    strategy=options.strategy,
    launch=options.launch,
)
model, tokenizer = FastLanguageModel.from_pretrained(options.model, max_seq_length=256, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=load_dataset("json", data_files=options.data, split="train"),
    args=SFTConfig(
        output_dir=options.output,
        max_steps=options.max_steps,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
    ),
)
trainer.train()
trainer.save_model(f"{options.output}/adapter")
if trainer.is_world_process_zero():
    print(ump.get_multi_gpu_status())
ump.disable_multi_gpu()
