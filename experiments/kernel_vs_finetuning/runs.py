"""One run: measure, score before training, train, score after it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from kernel_distance_parts.store import Job

from kernel_vs_finetuning_parts.lab import Lab
from kernel_vs_finetuning_parts.measures import MEASURES, Measures
from kernel_vs_finetuning_parts.options import NONE, Options
from ntkfusion.compression.registry import build_method
from ntkfusion.models.model import Model
from ntkfusion.training.evaluation import evaluate
from ntkfusion.training.fine_tuning import fit


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained: a method at a width, with a seed, on a task."""

    task: str
    method: str
    width: float
    seed: int

    @property
    def name(self) -> str:
        """For people and files."""
        size = "" if self.method == NONE else f"_width{self.width:g}"
        return f"{self.task}_{self.method}{size}_seed{self.seed}"


def cases(options: Options) -> list[Case]:
    """Every run, the original's first: zero-shot scores need it."""
    found = []
    for task in options.tasks:
        for seed in options.seeds:
            found += [Case(task, NONE, 1.0, seed)]
            names = [name for name in options.methods if name != NONE]
            found += [Case(task, name, width, seed) for width in options.widths for name in names]
    return found


def job(options: Options, lab: Lab, case: Case) -> Job:
    """The run with everything its result depends on."""
    measured = {"measured on": [options.tokens, options.kernel_texts, options.kernel_length]}
    return Job("runs", case.name, settings(options, lab, case) | measured)


def settings(options: Options, lab: Lab, case: Case) -> dict[str, Any]:
    """What training depends on."""
    return {
        "model": options.model,
        "examples": lab.digest,
        "recipe": dataclasses.asdict(options.recipe(case.task)),
        "method": case.method if case.method == NONE else repr(build_method(case.method, case.width)),
        "seed": case.seed,
    }


def run(lab: Lab, measures: Measures, case: Case) -> dict[str, Any]:
    """Measure and train.

    Returns:
        Errors before training (`MEASURES`); ``zero_shot``: the dev score of the *trained* original, compressed and not
        trained again; ``dev``: that of the compressed pretrained model after training; ``history``, ``parameters``,
        ``seconds``.
    """
    start, task = time.perf_counter(), lab.task
    recipe = lab.options.recipe(case.task)
    model = lab.compressed(case.method, case.width, case.seed)
    found: dict[str, Any] = dict.fromkeys(MEASURES, 0.0) if case.method == NONE else measures.of(model)
    fitted = fit(lab.with_head(model, case.seed), task, recipe, seed=case.seed)
    if case.method == NONE:
        lab.keep_trained(fitted.model, case.seed)
        found["zero_shot"] = fitted.dev
    else:
        found["zero_shot"] = _score(lab, lab.compress(lab.trained(case.seed), case.method, case.width, case.seed))
    found |= {"dev": fitted.dev, "history": list(fitted.history), "parameters": fitted.model.num_parameters}
    return found | {"metric": task.metrics[0], "seconds": time.perf_counter() - start}


def _score(lab: Lab, model: Model) -> dict[str, float]:
    recipe = lab.options.recipe(lab.name)
    sizes = {"max_length": recipe.max_length, "batch_size": recipe.batch_size}
    return evaluate(model, lab.task.dev, lab.task.metrics, **sizes)
