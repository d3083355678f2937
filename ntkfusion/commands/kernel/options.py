"""The options of ``ntkfusion kernel``; nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from ntkfusion.commands.protocol import Flag, ModelArgument


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Compute the exact neural tangent kernel of one MLP block, of all MLP blocks or of the whole network, on text.

    Writes the kernel with its parts by parameter group, its inputs and conditions (NPZ), a heat map and the spectrum
    (PNG beside it).

    Attributes:
        model: `minilm` (the packaged demo model), a Hugging Face folder, or a hub id such as `org/name`.
        scope: `block:3` (layer 3's MLP block on the tokens that reach it, mean over outputs), `mlp` (the network with
            respect to the parameters of all its MLP blocks) or `network` (all parameters).
        kind: `sgd` is ⟨∇f(x), ∇f(z)⟩, `sign` is ⟨∇f(x), sgn ∇f(z)⟩, the kernel of sign descent and of Adam's first
            steps.
        text: A UTF-8 file with one sentence per line; by default sentences that ship with the package.
        tokens: Tokens of a block kernel, sampled as `compare` samples its held-out tokens.
        words_only: Leave out [CLS], [SEP] and other special tokens of a block kernel.
        examples: Sentences of a network kernel.
        max_length: Sentences of a network kernel are cut to this many tokens, special ones included.
        readouts: Outputs of a network without classification head: so many random unit directions of the last hidden
            state of the first token (GPT-2: the last). A network with a classification head has its logits.
        seed: Drives every random choice; same seed, same machine, same numbers.
        memory_limit: What the computation may take, such as 4GiB; by default a safe share of what is available. It
            changes how many examples are taken at a time, not the result.
        reference: Compute the kernel by neural-tangents as well and print how far it is (SGD only).
        out: File for the kernel, ending in .npz; by default results/kernel-MODEL-SCOPE-KIND.npz.
        ignore_adapter: Take the base weights of a folder that holds an adapter beside them.
        overwrite: Replace earlier files of these names.
    """

    model: ModelArgument = "minilm"
    scope: str = "network"
    kind: Literal["sgd", "sign"] = "sgd"
    text: Path | None = None
    tokens: int = 512
    words_only: Flag = False
    examples: int = 32
    max_length: int = 64
    readouts: int = 2
    seed: int = 0
    memory_limit: str | None = None
    reference: Flag = False
    out: Path | None = None
    ignore_adapter: Flag = False
    overwrite: Flag = False
