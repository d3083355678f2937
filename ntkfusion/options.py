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
class Finetune:
    """Fine-tune a model on a task, compressed first if you like; write scores, curves and the model.

    Attributes:
        model: `minilm` (the packaged demo model), a checkpoint folder, or a hub id such as `org/name`.
        task: sst2, mrpc, cola, rte, stsb, qnli or mnli; or any name for your own task, given by --train.
        data_dir: Folder with one folder per task; by default the environment variable NTKFUSION_DATA_DIR, else the
            hub.
        train: Your own task: a .csv, .tsv or .jsonl file with a column of texts and one of labels.
        dev: Its dev set; by default a tenth of --train.
        test: Its test set, which is looked at once, at the end.
        text: Its column of texts.
        pair: Its column of second texts, for a task on pairs.
        label: Its column of labels: words or whole numbers for classes, other numbers for regression; --labels decides
            otherwise.
        labels: What its labels are: `classes`, `scores`, or `auto`, what they look like.
        max_train: Train on so many examples, chosen at random.
        max_dev: Look at so many examples of the dev set, chosen at random.
        compress: Compress the MLP blocks by this method first; `ntkfusion compare --list-methods` explains them. A
            method that looks at text sees texts of the training set.
        width: Kept fraction of the hidden width, for --compress.
        layers: Indices of the MLP blocks to compress; by default all.
        tune_layers: After compression train the compressed blocks to give the original's hidden states on the training
            texts (one epoch at the learning rate), before the task is learned.
        seeds: One run each. A seed drives compression, the order of examples and dropout, and the weights of a fresh
            head; a head with as many outputs as the task has classes is kept.
        freeze: Patterns of parameters that are not trained, such as `embeddings/*`; `ntkfusion inspect` shows names.
        probe: Train the head alone, on the frozen network's output.
        rates: Parameters with a learning rate of their own, as PATTERN=FACTOR, such as `*/mlp/*=0.5`.
        learning_rate: The largest rate of the schedule.
        epochs: Passes over the training examples.
        batch_size: Examples per update.
        accumulation: Parts that a batch is computed in, to save memory; the update stays the same.
        max_length: Texts are cut to so many tokens.
        schedule: After the warm-up the rate is `constant`, falls to 0 along a line (`linear`) or its square
            (`polynomial`).
        warmup: Share of the updates in which the rate grows from 0.
        weight_decay: Decoupled, on matrices only.
        clip_norm: Gradients of a larger norm are scaled down to it; 0 never does.
        no_dropout: Train without dropout.
        precision: Of activations and gradients.
        evaluations: Looks at the dev set per epoch.
        patience: Stop after so many evaluations without improvement; 0 never does.
        keep: Which model to keep: of the `best` evaluation, or the `last`.
        format: Of the saved models, as for `ntkfusion compress`; `none` saves none.
        merge: Multiply factorised or coded weights out to dense ones (hf and flax).
        tensorboard: Write event files too (needs tensorboardX).
        out: Folder for the results; by default results/finetune-NAME-TASK.
        resume: Go on with an interrupted run in that folder, or add seeds; what it has done is not done again. Only the
            format may be another one.
        overwrite: Replace an earlier result in that folder.
    """

    model: ModelArgument
    task: str
    data_dir: Path | None = None
    train: Path | None = None
    dev: Path | None = None
    test: Path | None = None
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    labels: Literal["auto", "classes", "scores"] = "auto"
    max_train: int | None = None
    max_dev: int | None = None
    compress: str | None = None
    width: float = 0.25
    layers: tuple[int, ...] = ()
    tune_layers: Flag = False
    seeds: tuple[int, ...] = (0,)
    freeze: tuple[str, ...] = ()
    probe: Flag = False
    rates: tuple[str, ...] = ()
    learning_rate: float = 5e-5
    epochs: int = 3
    batch_size: int = 32
    accumulation: int = 1
    max_length: int = 128
    schedule: Literal["linear", "polynomial", "constant"] = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    no_dropout: Flag = False
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluations: int = 1
    patience: int = 0
    keep: Literal["best", "last"] = "best"
    format: Literal["hf", "flax", "ntkfusion", "none"] = "hf"
    merge: Flag = False
    tensorboard: Flag = False
    out: Path | None = None
    resume: Flag = False
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
