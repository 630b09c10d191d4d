"""A model family from outside the package: Llama's shapes under another name."""

from dataclasses import replace

from unsloth_accel.models.architectures import ARCHITECTURES

ARCHITECTURES.add(replace(ARCHITECTURES["llama"], name="toy_llama", decoder_layer_class="ToyDecoderLayer"))
