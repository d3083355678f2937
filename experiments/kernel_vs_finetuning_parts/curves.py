"""Linearised training against the real one: how far the kernel at the start foretells the first updates."""

from __future__ import annotations

from itertools import islice
from typing import Any

from kernel_distance_parts.store import Job

from kernel_vs_finetuning_parts.lab import Lab
from kernel_vs_finetuning_parts.options import NONE, Options
from kernel_vs_finetuning_parts.runs import Case, settings
from ntkfusion.training.batches import minibatches
from ntkfusion.training.linearised import curve_distance, linearised_training
from ntkfusion.training.run import TokenizedTask


def curve_cases(options: Options) -> list[Case]:
    """The first task, width and seed."""
    task, width, seed = options.tasks[0], options.widths[0], options.seeds[0]
    return [Case(task, name, 1.0 if name == NONE else width, seed) for name in options.linearised]


def curve_job(options: Options, lab: Lab, case: Case) -> Job:
    """The curves with everything they depend on."""
    return Job("curves", case.name, settings(options, lab, case) | {"updates": options.linearised_updates})


def curves(lab: Lab, case: Case) -> dict[str, Any]:
    """Losses of the real and of the linearised model on the same batches, and how far they are apart."""
    recipe = lab.options.recipe(case.task)
    model = lab.with_head(lab.compressed(case.method, case.width, case.seed), case.seed)
    data, count = TokenizedTask.of(model, lab.task, recipe), lab.options.linearised_updates
    batches = minibatches(data.sets["train"], recipe, data.buckets, seed=case.seed)
    arrays = [batch.arrays for batch in islice(batches, count)]
    total = recipe.num_updates(len(lab.task.train))
    found = linearised_training(model, arrays, recipe, is_regression=lab.task.is_regression, num_updates=total)
    real, predicted = found.real.losses, found.predicted.losses
    return {
        "real": real.tolist(),
        "predicted": predicted.tolist(),
        "distance": curve_distance(real, predicted),
        "distance of the first half": curve_distance(real[: len(real) // 2], predicted[: len(real) // 2]),
    }
