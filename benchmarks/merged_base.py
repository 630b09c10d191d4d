"""What an adapter leaves of its base, and what of it arrives, where it is merged into the base for each sending of
weights and taken out again, as TRL does for a generation server (trl/generation/vllm_generation.py: `sync_weights`).

    python -m benchmarks.merged_base models/SmolLM2-135M-Instruct [--learning-rate 1e-5] [--dtype bfloat16]

Before each sending every entry of B moves by the learning rate, always in its own direction: about as far as AdamW lets
it, and farther than in training, where gradients change their signs. Of a smaller update less arrives.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from transformers import AutoModelForCausalLM

from unsloth_accel.config.run_config import LoraConfig as Usual

TOLD = (1, 10, 50)
"""Sendings after which figures are printed."""


def rms(tensors: Sequence[torch.Tensor]) -> float:
    squares = sum(float(one.double().square().sum()) for one in tensors)
    return float((squares / sum(one.numel() for one in tensors)) ** 0.5)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    wanted = LoraConfig(r=Usual().r, lora_alpha=Usual().alpha, target_modules="all-linear")
    model = get_peft_model(base, wanted)
    assert isinstance(model, PeftModel)
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    trained = [layer.lora_B["default"].weight for layer in layers]
    ways = [torch.randn_like(b).sign() for b in trained]
    weights = [layer.base_layer.weight for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for sending in range(1, max(TOLD) + 1):
            for b, way in zip(trained, ways, strict=True):
                b += options.learning_rate * way
            if sending not in TOLD:
                model.merge_adapter()
                model.unmerge_adapter()
                continue
            updates = [layer.get_delta_weight("default").float() for layer in layers]
            model.merge_adapter()
            sent = [weight.float() - old.float() for weight, old in zip(weights, before, strict=True)]
            arrived = sum(float((one * update).sum()) for one, update in zip(sent, updates, strict=True))
            arrived /= sum(float(update.square().sum()) for update in updates)
            model.unmerge_adapter()
            moved = [weight.float() - old.float() for weight, old in zip(weights, before, strict=True)]
            share = sum(int(one.count_nonzero()) for one in moved) / sum(one.numel() for one in moved)
            print(
                f"{options.dtype}, after {sending:2d}: {share:.2%} of the base changed, by {rms(moved):.1e} (weights "
                f"{rms(before):.1e}); of the adapter's update, {rms(updates):.1e}, {arrived:.1%} arrives",
                flush=True,
            )


if __name__ == "__main__":
    main()
