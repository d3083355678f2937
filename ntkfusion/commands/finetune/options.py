"""The options of ``ntkfusion finetune``; nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ntkfusion.checkpoints.formats import Format
from ntkfusion.commands.protocol import Flag, ModelArgument
from ntkfusion.training.recipe import Recipe


def _zero_is_never(number: type[int] | type[float]) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """How the command line writes a number that may be None: as 0, which means never."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=number.__name__.upper(),
        instance_from_str=lambda words: number(words[0]) or None,
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: ["0" if value is None else str(value)],
    )


@dataclasses.dataclass(frozen=True)
class RecipeOptions(Recipe):
    """How the model is trained.

    Attributes:
        b1: Adam's decay of the mean gradient.
        b2: Adam's decay of the mean squared gradient.
        eps: Adam's addition to the denominator.
        clip_norm: gradients of a larger norm are scaled down to it; 0 never does.
        dropout: train without dropout.
        patience: stop after so many evaluations without improvement; 0 never does.
    """

    clip_norm: Annotated[float | None, _zero_is_never(float)] = 1.0
    patience: Annotated[int | None, _zero_is_never(int)] = None

    def __post_init__(self) -> None:
        """Check nothing: that is up to the command's plan, whose errors are one sentence."""


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
            head.
        new_head: Put a fresh head on the model, even if it has one with as many outputs as the task has classes, which
            is kept otherwise.
        label_order: Which output of the checkpoint's head is which: the task's classes in the order of the outputs. By
            default the names in its config.json say it; other names than the task's are refused.
        freeze: Patterns of parameters that are not trained, such as `embeddings/*`; `ntkfusion inspect` shows names.
        probe: Train the head alone, on the frozen network's output.
        rates: Parameters with a learning rate of their own, as PATTERN=FACTOR, such as `*/mlp/*=0.5`.
        recipe: How it is trained.
        format: Of the saved models, as for `ntkfusion compress`; `none` saves none.
        merge: Multiply factorised or coded weights out to dense ones (hf and flax).
        tensorboard: Write event files too (needs tensorboardX).
        out: Folder for the results; by default results/finetune-NAME-TASK.
        resume: Go on with an interrupted run in that folder, or add seeds; what it has done is not done again. Only the
            format may be another one.
        ignore_adapter: Take the base weights of a folder that holds an adapter beside them.
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
    new_head: Flag = False
    label_order: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    probe: Flag = False
    rates: tuple[str, ...] = ()
    recipe: Annotated[
        Recipe,
        tyro.conf.arg(constructor=RecipeOptions),
        tyro.conf.OmitArgPrefixes,
        tyro.conf.FlagCreatePairsOff,
    ] = Recipe()  # noqa: RUF009 (frozen)
    format: Format | Literal["none"] = "hf"
    merge: Flag = False
    tensorboard: Flag = False
    out: Path | None = None
    resume: Flag = False
    ignore_adapter: Flag = False
    overwrite: Flag = False
