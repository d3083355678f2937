"""The options of ``ntkfusion compare``; nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from ntkfusion.commands.protocol import Flag, ModelArgument


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compress a model's MLP blocks in several ways and measure what each did to outputs and kernels.

    Every layer's block is compressed on its own and measured on real block inputs: the hidden states of held-out
    sentences. Errors are relative Frobenius norms; kernels are traced over outputs.

    Attributes:
        model: `minilm` (the packaged demo model), a Hugging Face folder, or a hub id such as `org/name`.
        text: A UTF-8 file with one sentence per line; by default sentences that ship with the package.
        methods: Names of methods; by default a selection of about a dozen, `all` for every one that
            `ntkfusion compare --list-methods` explains. NAME+refit, NAME+sgd and the like improve on a method.
        width: Kept fractions of the hidden width, each above 0 and at most 1.
        layers: Indices of the layers to compress; by default all.
        tokens: Held-out tokens that kernels and outputs are measured on.
        calibration_tokens: Tokens of other sentences for methods that look at text; all that there are, if fewer.
        words_only: Leave out [CLS], [SEP] and other special tokens, whose outputs are many times larger than those of
            words and weigh heavily in every norm.
        restarts: Restarts of k-means.
        allocation: How MLP Fusion spends its neurons: `uniform`, the same share in every layer, or `inertia`, as many
            in all, shared over layers so that the sum of inertias is small.
        seed: Drives every random choice; same seed, same machine, same numbers.
        out: Folder for the report; by default results/compare-MODEL.
        ignore_adapter: Take the base weights of a folder that holds an adapter beside them.
        overwrite: Replace an earlier report in that folder, with everything in it.
        list_methods: Print what every method does, and stop.
    """

    model: ModelArgument = "minilm"
    text: Path | None = None
    methods: tuple[str, ...] = ()
    width: tuple[float, ...] = (0.125, 0.25, 0.5)
    layers: tuple[int, ...] = ()
    tokens: int = 512
    calibration_tokens: int = 8192
    words_only: Flag = False
    restarts: int = 10
    allocation: Literal["uniform", "inertia"] = "uniform"
    seed: int = 0
    out: Path | None = None
    ignore_adapter: Flag = False
    overwrite: Flag = False
    list_methods: Flag = False
