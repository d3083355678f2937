"""A small random Switch Transformer as a folder with a tokenizer, and sentences for it."""

from __future__ import annotations

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from ntkfusion.models.model import abstract_params
from ntkfusion.models.switch.config import SwitchConfig, switch_hf_config
from ntkfusion.models.switch.names import SWITCH

CONFIG = SwitchConfig(
    vocab_size=30522,
    hidden_size=8,
    d_kv=4,
    d_ff=16,
    num_encoder_layers=2,
    num_decoder_layers=1,
    num_heads=2,
    num_experts=3,
    encoder_sparse_step=2,
    decoder_sparse_step=1,
    eos_token_id=102,
)
#: Short sentences, all of one padded length: few programs are compiled.
WORDS = ("film", "plot", "actor", "scene", "music", "ending", "story", "hero")
SENTENCES = [f"the {one} was {how} but the {two} was not" for one in WORDS for two in WORDS for how in ("dull", "fine")]
FEW = ("--tokens", "40", "--calibration-tokens", "60", "--restarts", "2")


def save_switch(path, tokenizer):
    """Write the model's folder: random weights, and somebody's tokenizer."""
    path.mkdir()
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), abstract_params(CONFIG))
    tensors = SWITCH.named_tensors(params, head=None)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(switch_hf_config(CONFIG)))
    tokenizer.save_pretrained(path)
    return path
