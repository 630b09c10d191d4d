"""The interface of unsloth-multigpu: devices, a planned config, and a training with it.

python examples/advanced_config.py            (with several GPUs it prints the commands that launch it)
"""

import argparse

# The order matters: unsloth_accel sets what must be set before unsloth, and unsloth patches trl.
# isort: off
import unsloth_accel as ump
from unsloth import FastLanguageModel
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
from unsloth_accel.multigpu.utils import ConfigManager, DeviceManager
# isort: on

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--data", default="examples/data/elements-train.jsonl")
parser.add_argument("--output", default="runs/advanced_config")
parser.add_argument("--gpus", type=int, default=2)
parser.add_argument("--model-size", default="135M", help="what the config is planned for")
parser.add_argument("--memory", default="32GB", help="of each GPU")
parser.add_argument("--global-batch", type=int, default=8, help="rows per optimizer step, over all GPUs")
parser.add_argument("--max-steps", type=int, default=10)
options = parser.parse_args()

log = ump.get_ddp_logger("advanced_config")
log.logger.setLevel("INFO")
log.info(DeviceManager().get_device_summary()["text"])
manager = ConfigManager(options.output)
config = manager.get_optimal_config(
    options.model_size,
    options.memory,
    num_gpus=options.gpus,
    target_batch_size=options.global_batch,
    max_seq_length=256,
)
if ump.get_multi_gpu_status()["rank"] == 0:
    print("planned", manager.compare_configs(manager.load_config("default"), config), flush=True)
ump.enable_multi_gpu(**config)

model, tokenizer = FastLanguageModel.from_pretrained(options.model, max_seq_length=256, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj"])
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
memory = ump.MemoryManager()
with memory.memory_guard():
    trainer.train()
log.info(memory.get_memory_report())
trainer.save_model(f"{options.output}/adapter")
ump.disable_multi_gpu()
