"""Sentences to calibrate on and others to measure on, and the block inputs at their tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from functools import cached_property

import jax.numpy as jnp
import numpy as np

from ntkfusion.compression.block_errors import Reference
from ntkfusion.compression.workspace import Workspace
from ntkfusion.data.block_inputs import BlockInputs
from ntkfusion.data.calibration import CalibrationSplit
from ntkfusion.data.tasks.load import DATA_DIR, load_task
from ntkfusion.data.text import sample_sentences, split_sentences
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.model import Model

#: No sentence has fewer tokens: [CLS], a word, [SEP].
SHORTEST = 3


@dataclasses.dataclass(frozen=True)
class Text:
    """Two sets of sentences.

    Attributes:
        name: where they are from.
        train: to calibrate on; None if `dev` is to be split for every seed.
        dev: to measure on.
    """

    name: str
    train: tuple[str, ...] | None
    dev: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A short text that is another one for other sentences."""
        return hashlib.sha256("\n".join((*(self.train or ()), "", *self.dev)).encode()).hexdigest()[:16]

    def split(self, seed: int) -> tuple[list[str], list[str]]:
        """Sentences to calibrate on, and to measure on, in random order, each once."""
        if self.train is None:
            return split_sentences(self.dev, seed=seed)
        rng = np.random.default_rng(seed)
        sides = [list(dict.fromkeys(side)) for side in (self.train, self.dev)]
        calibration, held_out = ([side[i] for i in rng.permutation(len(side))] for side in sides)
        return calibration, held_out


def load_text() -> Text:
    """SST-2 if the data folder is known, else the packaged sentences.

    Raises:
        InputError: if the folder has no SST-2, or files of it that are broken.
    """
    folder = os.environ.get(DATA_DIR)
    if not folder:
        return Text(f"packaged sample, split in halves ({DATA_DIR} is not set)", None, tuple(sample_sentences()))
    task = load_task("sst2", data_dir=folder)
    train, dev = (tuple(text.strip() for text in split.first) for split in (task.train, task.dev))
    return Text("SST-2: calibration on train, held-out from dev", train, dev)


class SentenceLab:
    """Everything of one seed, made when it is asked for: tokens, the original's kernels, what methods share."""

    def __init__(self, model: Model, text: Text, seed: int, layers: tuple[int, ...], tokens: int, calibration: int):
        """For some layers, `tokens` held-out tokens and at most `calibration` others."""
        self.model, self.seed, self.layers = model, seed, layers
        self._tokens, self._calibration = tokens, calibration
        self.split = CalibrationSplit(*text.split(seed), seed=seed)

    @cached_property
    def blocks(self) -> list[Block]:
        """The original blocks."""
        every_block = self.model.mlp_blocks()
        return [every_block[layer] for layer in self.layers]

    @cached_property
    def calibration(self) -> BlockInputs:
        """Tokens of sentences that are not among the held-out ones, not even after tokenisation."""
        return self.split.calibration_inputs(self.model, self._calibration, shortest=SHORTEST)

    @cached_property
    def references(self) -> Mapping[str, list[Reference]]:
        """The original blocks on held-out tokens: all kinds of tokens ("") and words only ("words_")."""
        splits = {"": self.split, "words_": dataclasses.replace(self.split, special_tokens=False)}
        held_out = {name: split.held_out_inputs(self.model, self._tokens) for name, split in splits.items()}
        return {name: self.references_on(inputs) for name, inputs in held_out.items()}

    def references_on(self, inputs: BlockInputs) -> list[Reference]:
        """The original blocks on some inputs."""
        pairs = zip(self.blocks, self.layers, strict=True)
        return [Reference.of(block, inputs.inputs[layer]) for block, layer in pairs]

    @cached_property
    def workspace(self) -> Workspace:
        """Shared by all methods and widths of this seed."""
        return self.workspace_on(self.calibration)

    def workspace_on(self, inputs: BlockInputs) -> Workspace:
        """A new workspace with these calibration inputs."""
        return Workspace(self.seed, [inputs.inputs[layer] for layer in self.layers])


def shuffled(inputs: BlockInputs, seed: int) -> BlockInputs:
    """The same tokens in random order, so that their beginnings are samples of all of them."""
    order = np.random.default_rng(seed).permutation(len(inputs.tokens))
    rows = tuple(x[jnp.asarray(order)] for x in inputs.inputs)
    return BlockInputs(rows, tuple(inputs.tokens[i] for i in order), inputs.num_sentences)


def first(inputs: BlockInputs, count: int) -> BlockInputs:
    """The first `count` tokens."""
    return BlockInputs(tuple(x[:count] for x in inputs.inputs), inputs.tokens[:count], inputs.num_sentences)
