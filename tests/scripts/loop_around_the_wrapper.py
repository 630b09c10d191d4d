"""A plain loop whose loss comes from the model inside the wrapper, so that its ranks never exchange gradients."""

import sys

# isort: off
import unsloth_accel
from unsloth import FastLanguageModel
import torch
from accelerate import Accelerator
# isort: on

accelerator = Accelerator()
model, tokenizer = FastLanguageModel.from_pretrained(sys.argv[1], dtype=torch.float32, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "v_proj"])
optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
model, optimizer = unsloth_accel.prepare(accelerator, model, optimizer)
row = tokenizer(["one", "two"][accelerator.process_index], return_tensors="pt")
accelerator.backward(accelerator.unwrap_model(model)(**row, labels=row["input_ids"]).loss)
optimizer.step()
print("stepped", flush=True)
