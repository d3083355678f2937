"""The options of every command, as frozen dataclasses that import nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

ModelArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Format = Literal["hf", "flax", "ntkfusion"]
Dtype = Literal["float16", "bfloat16", "float32", "float64"]


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
    overwrite: Flag = False
    list_methods: Flag = False


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
    overwrite: Flag = False


@dataclasses.dataclass(frozen=True)
class Convert:
    """Rewrite a checkpoint in another format, with an account of every tensor.

    Reads Hugging Face safetensors (single or sharded), Flax msgpack and this library's own folders. Torch pickles are
    never opened.

    Attributes:
        model: The checkpoint: `minilm`, a folder, or a hub id such as `org/name`.
        out: Folder to write.
        format: `hf`, `flax` or `ntkfusion`, as for `ntkfusion compress`.
        pad: Fill layers of different widths up to the widest with zero neurons (hf and flax).
        merge: Multiply factorised or coded weights out to dense ones (hf and flax).
        dtype: How weights are stored, such as float16; by default each tensor as in the original's file.
        overwrite: Replace an earlier result in that folder.
    """

    model: ModelArgument
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    format: Format = "hf"
    pad: Flag = False
    merge: Flag = False
    dtype: Dtype | None = None
    overwrite: Flag = False


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check every statement of the theory against measured outputs and kernels; exit code 1 if one fails.

    Every check brings controls: comparisons with something wrong on purpose, which must fail.

    Attributes:
        checks: Names of checks; by default all.
        quick: Fewer cases, widths and layers: under a minute.
        model: Run the checks that depend on data on this model's blocks: a folder, or a hub id such as `org/name`. By
            default on the packaged demo model, if it is installed.
        text: A UTF-8 file with one sentence per line for that model; by default sentences that ship with the package.
        seed: Drives every random choice.
        out: Folder for the report; by default results/verify.
        overwrite: Replace an earlier report in that folder.
    """

    checks: tuple[str, ...] = ()
    quick: Flag = False
    model: str | None = None
    text: Path | None = None
    seed: int = 0
    out: Path | None = None
    overwrite: Flag = False


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
    overwrite: Flag = False
