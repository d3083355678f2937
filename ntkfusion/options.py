"""The options of every command, as frozen dataclasses that import nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

ModelArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print a model's architecture, its MLP blocks and where its parameters are.

    Attributes:
        model: `minilm` (the packaged demo model), a Hugging Face folder, or a hub id such as `org/name`.
    """

    model: ModelArgument


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compress a model's MLP blocks in several ways and measure what each did to outputs and kernels.

    Every layer's block is compressed on its own and measured on real block inputs: the hidden states of held-out
    sentences. Errors are relative Frobenius norms; kernels are traced over outputs.

    Attributes:
        model: `minilm` (the packaged demo model), a Hugging Face folder, or a hub id such as `org/name`.
        text: A UTF-8 file with one sentence per line; by default sentences that ship with the package.
        methods: Names of methods; by default all of them. `ntkfusion compare --list-methods` explains each.
        width: Kept fractions of the hidden width, each above 0 and at most 1.
        layers: Indices of the layers to compress; by default all.
        tokens: Held-out tokens that kernels and outputs are measured on (and as many again for calibration).
        words_only: Leave out [CLS], [SEP] and other special tokens, whose outputs are many times larger than those of
            words and weigh heavily in every norm.
        restarts: Restarts of k-means.
        seed: Drives every random choice; same seed, same machine, same numbers.
        out: Folder for the report; by default results/compare-MODEL.
        overwrite: Replace an earlier report in that folder, with everything in it.
        list_methods: Print what every method does, and stop.
    """

    model: ModelArgument = "minilm"
    text: Path | None = None
    methods: tuple[str, ...] = ()
    width: tuple[float, ...] = (0.125, 0.25, 0.5)
    layers: tuple[int, ...] = ()
    tokens: int = 512
    words_only: Flag = False
    restarts: int = 10
    seed: int = 0
    out: Path | None = None
    overwrite: Flag = False
    list_methods: Flag = False
