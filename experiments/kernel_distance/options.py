"""What to measure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.common.store import stored_repr
from ntkfusion.commands.request import check_seed
from ntkfusion.compression.registry import METHODS, build_method
from ntkfusion.errors import InputError

SectionName = Literal["blocks", "network", "tokens", "tradeoff"]

#: Beside the methods of the registry: some of them with refitted output weights and matched constants.
COMBINATIONS = (
    "mlp-fusion-v2+refit",
    "mlp-fusion-v2+refit+sgd",
    "mlp-fusion-v2+refit+sign",
    "structured-pruning+refit+sgd",
    "active-neurons+refit",
    "active-neurons+refit+sgd",
    "active-neurons+refit+sign",
)
#: Methods whose network kernels are computed.
MAIN = (
    "mlp-fusion",
    "mlp-fusion-v2",
    "svd",
    "svd-whitened",
    "structured-pruning",
    "random-neurons",
    "active-neurons+refit+sgd",
    "ntk-fusion",
    "ntk-fusion-sign",
)


@dataclasses.dataclass(frozen=True)
class DistanceOptions:
    """How far methods leave outputs and kernels from the original's: per block, per network, and against data.

    Attributes:
        sections: what to run.
        model: `minilm`, a Hugging Face folder or a hub id.
        methods: names of methods; by default all of the registry and some combinations.
        widths: kept fractions of the neurons.
        layers: indices of the layers; by default all.
        seeds: of the sampled tokens and the methods; network and tokens take the first.
        tokens: held-out tokens, once with special tokens among them and once words only.
        calibration_tokens: tokens of other sentences for methods that look at text.
        network_methods: methods whose network kernels are computed.
        network_width: their width, in every layer.
        network_sentences: held-out sentences of the network kernels.
        network_length: they are cut to this many tokens.
        readouts: random directions in which the last hidden state of the first token is read.
        overfitting: methods whose errors are measured against the number of calibration tokens; NAME stands for
            NAME and NAME-sign, or NAME+sgd and NAME+sign where there are no such methods.
        overfitting_width: their width, and that of the trade-off between kernels.
        counts: numbers of calibration tokens.
        out: folder for every single result, table.md, results.json and the figures; results of the same settings
            that are there already are not computed again.
        overwrite: replace results of other settings there.
        report: make tables and figures of what is there and compute nothing.
    """

    sections: tuple[SectionName, ...] = ("blocks", "network", "tokens", "tradeoff")
    model: str = "minilm"
    methods: tuple[str, ...] = ()
    widths: tuple[float, ...] = (0.125, 0.25, 0.5)
    layers: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    tokens: int = 512
    calibration_tokens: int = 16384
    network_methods: tuple[str, ...] = MAIN
    network_width: float = 0.25
    network_sentences: int = 32
    network_length: int = 64
    readouts: int = 2
    overfitting: tuple[str, ...] = ("ntk-fusion", "active-neurons+refit")
    overfitting_width: float = 0.25
    counts: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384, 32768)
    out: Path = Path("results/kernel-distance")
    overwrite: bool = False
    report: bool = False

    def __post_init__(self) -> None:
        least = {"tokens": 2, "calibration_tokens": 2, "network_sentences": 2, "network_length": 3, "readouts": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"--{name.replace('_', '-')} must be at least {value}, got {getattr(self, name)}")
        for name in ("sections", "widths", "seeds", "counts", "network_methods", "overfitting"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InputError(f"--{name.replace('_', '-')} needs at least one value, each once; got {list(values)}")
        if min(self.counts) < 2:
            raise InputError(f"--counts must be at least 2, got {min(self.counts)}")
        for seed in self.seeds:
            check_seed(seed)
        for width in (*self.widths, self.network_width, self.overfitting_width):
            build_method("svd", width)

    @property
    def names(self) -> tuple[str, ...]:
        """The methods of the section on blocks."""
        return self.methods or (*METHODS, *(name for name in COMBINATIONS if name not in METHODS))


def known(names: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
    """The names that `build_method` takes; a note about each of the others.

    Raises:
        InputError: if it takes none of them.
    """
    kept = []
    for name in names:
        try:
            build_method(name, 0.5)
        except InputError as error:
            notes.append(f"{name} is left out: {error}")
        else:
            kept.append(name)
    if not kept:
        raise InputError("; ".join(notes))
    return tuple(kept)


def describe(name: str, width: float) -> str:
    """The method with all its settings, as stored results spell it."""
    return stored_repr(build_method(name, width))
