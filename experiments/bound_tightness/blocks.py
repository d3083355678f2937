"""Real blocks with inputs to measure at and others to calibrate on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ntkfusion as nf
from experiments.common.lab import load_text
from ntkfusion.data.tasks.load import DATA_DIR
from ntkfusion.errors import InputError


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """A layer's block in float64 with its inputs."""

    layer: int
    block: nf.MLPBlock
    inputs: jax.Array
    calibration: jax.Array


def minilm_cases(tokens: int, calibration: int, seed: int) -> tuple[str, list[LayerCase]]:
    """MiniLM's blocks on text."""
    model, text = nf.load_model("minilm", dtype="float64"), load_text()
    sides = text.split(seed)
    sizes = (calibration, tokens)
    # enough sentences for the sample, not all of a large training set
    before, at = (
        nf.collect_block_inputs(model, side[:2000], max_tokens=size, seed=seed).inputs
        for side, size in zip(sides, sizes, strict=True)
    )
    blocks = [block for block in model.mlp_blocks() if isinstance(block, nf.MLPBlock)]
    double = [tuple(jnp.asarray(side[layer], jnp.float64) for side in (at, before)) for layer in range(len(blocks))]
    return f"MiniLM, {text.name}", [LayerCase(layer, blocks[layer], *double[layer]) for layer in range(len(blocks))]


def bert_tiny_cases(tokens: int, calibration: int, seed: int) -> tuple[str, list[LayerCase]]:
    """BERT-tiny's blocks on Gaussian vectors through the LayerNorm in front of them.

    Raises:
        InputError: if the file is not there.
    """
    cases = []
    for layer, (block, scale, shift) in enumerate(read_bert_tiny()):
        noise = np.random.default_rng([seed, layer]).normal(size=(tokens + calibration, scale.size))
        noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)
        x = jnp.asarray(noise * scale + shift)
        cases.append(LayerCase(layer, block, x[:tokens], x[tokens:]))
    return "BERT-tiny (SST-2), Gaussian inputs through LayerNorm", cases


def read_bert_tiny() -> list[tuple[nf.MLPBlock, np.ndarray, np.ndarray]]:
    """The blocks of a BERT-tiny fine-tuned on SST-2, with scale and shift of the LayerNorm in front of each.

    They lie in ``$NTKFUSION_DATA_DIR/bert_tiny_sst2/layers.npz``, by their names in transformers; the file has no
    embeddings, hence takes no text.

    Raises:
        InputError: if the file is not there.
    """
    path = Path(os.environ.get(DATA_DIR, "")) / "bert_tiny_sst2" / "layers.npz"
    if not path.is_file():
        raise InputError(f"{path} does not exist; {DATA_DIR} must name a folder with bert_tiny_sst2/layers.npz")
    with np.load(path) as file:
        stored = {name: np.asarray(file[name], np.float64) for name in file.files}
    layers = []
    for layer in range(2):
        here = f"bert.encoder.layer.{layer}."
        w1, b1 = (stored[f"{here}intermediate.dense.{part}"] for part in ("weight", "bias"))
        w2, b2 = (stored[f"{here}output.dense.{part}"] for part in ("weight", "bias"))
        scale, shift = (stored[f"{here}attention.output.LayerNorm.{part}"] for part in ("weight", "bias"))
        block = nf.MLPBlock(*(jnp.asarray(part) for part in (w1.T, b1, w2.T, b2)), activation="gelu")
        layers.append((block, scale, shift))
    return layers
