"""What to train and to measure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ntkfusion.commands.request import check_seed
from ntkfusion.compression.registry import build_method
from ntkfusion.data.tasks.load import TASKS
from ntkfusion.errors import InputError
from ntkfusion.training.recipe import Recipe

#: The model as it is.
NONE = "none"
#: The methods that are compared, the original first.
METHODS = (
    NONE,
    "mlp-fusion",
    "mlp-fusion-v2",
    "mlp-fusion-v4",
    "svd",
    "structured-pruning",
    "random-neurons",
    "mmd",
    "autoencoder",
    "ntk-fusion",
)
#: Passes over the training examples: small tasks need more of them.
EPOCHS = {"sst2": 1, "qnli": 1, "mnli": 1, "cola": 2, "mrpc": 2, "rte": 3, "stsb": 3}

#: At most so many training examples: pairs are several times as long as sentences.
EXAMPLES = {"mrpc": 2048, "rte": 2048, "stsb": 2048}


@dataclasses.dataclass(frozen=True)
class FinetuningOptions:
    """Which measure taken before training foretells the score after it?

    Attributes:
        tasks: tasks of GLUE, from $NTKFUSION_DATA_DIR or the hub.
        methods: `none` (the original) and names of compression methods.
        widths: kept fractions of the neurons, in every layer.
        seeds: of compression, head, order of examples and dropout.
        model: `minilm`, a checkpoint folder or a hub id.
        max_train: training examples of a task, a random subset of larger ones; tasks on pairs have at most 2048.
        learning_rate: the largest rate.
        batch_size: examples per update.
        max_length: texts are cut to so many tokens.
        tokens: of dev texts, that outputs and kernels of blocks are compared on.
        kernel_texts: dev texts that network kernels are compared on.
        kernel_length: they are cut to so many tokens.
        linearised: methods whose linearised training is compared with the real one, at the first width, first task and
            first seed.
        linearised_updates: for so many updates.
        resamples: of the bootstrap.
        out: folder for every single result, table.md, results.json and the figures; what is there is not computed
            again.
        overwrite: replace results of other settings there.
        report: make tables and figures of what is there, and compute nothing.
    """

    tasks: tuple[str, ...] = ("sst2", "cola", "mrpc", "rte")
    methods: tuple[str, ...] = METHODS
    widths: tuple[float, ...] = (0.25, 0.5)
    seeds: tuple[int, ...] = (0, 1, 2)
    model: str = "minilm"
    max_train: int = 4096
    learning_rate: float = 1e-4
    batch_size: int = 32
    max_length: int = 96
    tokens: int = 512
    kernel_texts: int = 16
    kernel_length: int = 48
    linearised: tuple[str, ...] = (NONE, "mlp-fusion", "mlp-fusion-v4", "svd", "ntk-fusion")
    linearised_updates: int = 100
    resamples: int = 2000
    out: Path = Path("results/kernel-vs-finetuning")
    overwrite: bool = False
    report: bool = False

    def __post_init__(self) -> None:
        for name in ("tasks", "methods", "widths", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InputError(f"--{name} needs at least one value, each once; got {list(values)}")
        if unknown := [task for task in self.tasks if task not in EPOCHS]:
            raise InputError(f"unknown task {unknown[0]!r}; there are {', '.join(TASKS)}")
        for seed in self.seeds:
            check_seed(seed)
        for name in {*self.methods, *self.linearised} - {NONE}:
            for width in self.widths:
                build_method(name, width)
        least = {"max_train": 2, "tokens": 2, "kernel_texts": 2, "linearised_updates": 2, "resamples": 100}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"--{name.replace('_', '-')} must be at least {value}, got {getattr(self, name)}")

    def examples(self, task: str) -> int:
        """Training examples of a task, unless it has fewer."""
        return min(self.max_train, EXAMPLES.get(task, self.max_train))

    def recipe(self, task: str) -> Recipe:
        """How a task is learned; the last update's parameters are judged, so that the dev set chooses nothing."""
        return Recipe(
            learning_rate=self.learning_rate,
            epochs=EPOCHS[task],
            batch_size=self.batch_size,
            max_length=self.max_length,
            keep="last",
        )
