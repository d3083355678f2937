"""File formats of checkpoints: safetensors, Flax msgpack, and the native one. Nothing heavy is imported here."""

from typing import Literal, TypeAlias

#: What `save_model` can write.
Format: TypeAlias = Literal["hf", "flax", "ntkfusion"]

#: How it can store weights, by numpy's names.
Dtype: TypeAlias = Literal["float16", "bfloat16", "float32", "float64"]
