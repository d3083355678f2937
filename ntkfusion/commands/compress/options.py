"""The options of ``ntkfusion compress``; nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from ntkfusion.checkpoints.formats import Dtype, Format
from ntkfusion.commands.protocol import Flag, ModelArgument


@dataclasses.dataclass(frozen=True)
class Compress:
    """Compress a model's MLP blocks by one method, measure what that did, and save the smaller model.

    Attributes:
        model: `minilm` (the packaged demo model), a checkpoint folder, or a hub id such as `org/name`.
        method: Name of a method; `ntkfusion compare --list-methods` explains them.
        width: Kept fraction of the hidden width, above 0 and at most 1.
        layers: Indices of the MLP blocks to compress; by default all.
        text: A UTF-8 file with one sentence per line, for calibration and, on other sentences, measurement; by default
            sentences that ship with the package.
        calibration_tokens: Tokens for methods that look at text; all that there are, if fewer.
        tokens: Held-out tokens that outputs and kernels are measured on.
        restarts: Restarts of k-means.
        allocation: How MLP Fusion spends its neurons: `uniform` or `inertia`, see `ntkfusion compare --help`.
        seed: Drives every random choice; same seed, same machine, same numbers.
        out: Folder for the model; by default results/NAME-METHOD-WIDTH.
        format: `hf` is a Hugging Face folder that transformers loads; constants are folded into the weights, which
            keeps the function and changes its kernels. `ntkfusion` keeps everything, and only this library reads it.
            `flax` is a Flax msgpack file with Hugging Face's names.
        pad: Fill layers of different widths up to the widest with zero neurons (hf and flax).
        merge: Multiply factorised or coded weights out to dense ones (hf and flax).
        dtype: How weights are stored, such as float16; by default each tensor as in the original's file.
        ignore_adapter: Take the base weights of a folder that holds an adapter beside them.
        no_tokenizer: Do without the tokenizer: its files are copied, nothing is measured, the method sees no text.
        overwrite: Replace an earlier result in that folder.
    """

    model: ModelArgument
    method: str
    width: float = 0.25
    layers: tuple[int, ...] = ()
    text: Path | None = None
    calibration_tokens: int = 8192
    tokens: int = 512
    restarts: int = 10
    allocation: Literal["uniform", "inertia"] = "uniform"
    seed: int = 0
    out: Path | None = None
    format: Format = "hf"
    pad: Flag = False
    merge: Flag = False
    dtype: Dtype | None = None
    ignore_adapter: Flag = False
    no_tokenizer: Flag = False
    overwrite: Flag = False
