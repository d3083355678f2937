"""What the runs of a task share: its examples, the original model, and the models that were trained before."""

from __future__ import annotations

import hashlib
import shutil
from functools import cached_property
from pathlib import Path

from experiments.common.store import stored_repr
from experiments.kernel_vs_finetuning.options import NONE, FinetuningOptions
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.compression.compress_model import compress
from ntkfusion.compression.registry import build_method
from ntkfusion.data.tasks.load import load_task
from ntkfusion.data.tasks.task import Task
from ntkfusion.models.model import Model
from ntkfusion.models.new_head import with_new_head

#: Training texts that a method may look at, and tokens of them.
CALIBRATION_TEXTS, CALIBRATION_TOKENS = 2000, 8192
#: Methods that look at weights alone and take minutes: their models are kept for all tasks.
SLOW = ("autoencoder", "autoencoder-linear", "autoencoder-layer", "mmd")


class TaskLab:
    """One task."""

    def __init__(self, options: FinetuningOptions, name: str) -> None:
        """Read the task; the model is loaded when it is needed."""
        self.options, self.name = options, name
        whole = load_task(name, seed=0)
        self.task: Task = whole.subsampled(train=options.examples(name), dev=None, seed=0)

    @cached_property
    def original(self) -> Model:
        """The pretrained model."""
        return load_model(self.options.model)

    @cached_property
    def digest(self) -> str:
        """The examples in short."""
        parts = (self.task.train, self.task.dev)
        text = repr([(part.first, part.second, part.labels.tolist()) for part in parts])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def compressed(self, method: str, width: float, seed: int) -> Model:
        """The pretrained model, compressed; without a head."""
        if method == NONE:
            return self.original
        if method not in SLOW:
            return self.compress(self.original, method, width, seed)
        folder = self.options.out / "models" / f"{method}-{width:g}-seed{seed}-{self.key(method, width)}"
        if not folder.exists():
            save_model(self.compress(self.original, method, width, seed), folder, format="ntkfusion", dtype="float32")
        return load_model(str(folder))

    def key(self, method: str, width: float) -> str:
        """What a kept model depends on, in short: a model or a method of another kind has a folder of its own."""
        text = stored_repr((self.options.model, build_method(method, width)))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def compress(self, model: Model, method: str, width: float, seed: int) -> Model:
        """A model compressed by a method that may look at training texts."""
        texts = self.task.train.take(range(min(CALIBRATION_TEXTS, len(self.task.train)))).first
        built = build_method(method, width)
        return compress(model, built, calibration=texts, max_tokens=CALIBRATION_TOKENS, seed=seed)[0]

    def with_head(self, model: Model, seed: int) -> Model:
        """A fresh head for the task."""
        return with_new_head(model, "sequence-classification", num_labels=self.task.num_labels, seed=seed)

    def _trained_folder(self, seed: int) -> Path:
        return self.options.out / "models" / f"{self.name}-trained-seed{seed}"

    def keep_trained(self, model: Model, seed: int) -> None:
        """Keep the original as it was trained on the task: what zero-shot scores compress."""
        folder = self._trained_folder(seed)
        shutil.rmtree(folder, ignore_errors=True)
        save_model(model, folder, format="ntkfusion", dtype="float32")

    def trained(self, seed: int) -> Model:
        """The original as it was trained on the task."""
        return load_model(str(self._trained_folder(seed)))
