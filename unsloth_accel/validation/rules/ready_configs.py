"""Commands that print a config to copy or launch with. Fixes name them, since an installed package has no
accelerate_configs/."""

DDP = "unsloth-accel config --strategy ddp --gpus 2"
ON_CPU = f"{DDP} --cpu"
FSDP2 = "unsloth-accel config --strategy fsdp2 --gpus 2"
