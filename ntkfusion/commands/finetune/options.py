"""The options of ``ntkfusion finetune``; nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from ntkfusion.commands.options import Flag, ModelArgument


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
