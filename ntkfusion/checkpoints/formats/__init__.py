"""File formats of checkpoints: safetensors, Flax msgpack, and the native one."""
