"""Tables of scores and of correlations, from the single results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.common.correlations import Pair, bootstrap
from experiments.common.store import Result, number
from experiments.common.tables import ResultTable
from experiments.kernel_vs_finetuning.measures import MEASURES
from experiments.kernel_vs_finetuning.options import NONE, FinetuningOptions
from experiments.kernel_vs_finetuning.runs import RunCase
from ntkfusion.commands.finetune.report import show_mean
from ntkfusion.reporting.summary import format_error, width_label
from ntkfusion.training.linearised import curve_distance

#: Scores that a measure may foretell.
OUTCOMES = {"zero_shot": "score without training", "dev": "score after fine-tuning"}


@dataclasses.dataclass(frozen=True)
class ScorePoint:
    """A method at a width on a task: measures and scores, one per seed."""

    task: str
    method: str
    width: float
    metric: str
    values: dict[str, list[float]]

    def mean(self, name: str) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values[name]))


def points(results: Mapping[RunCase, Result]) -> list[ScorePoint]:
    """The results of all seeds together."""
    found: dict[tuple[str, str, float], ScorePoint] = {}
    for case, result in results.items():
        metric = result["metric"]
        point = found.setdefault(
            (case.task, case.method, case.width), ScorePoint(case.task, case.method, case.width, metric, {})
        )
        scores = {outcome: result[outcome][metric] for outcome in OUTCOMES}
        for name, value in {**{name: result[name] for name in MEASURES}, **scores}.items():
            point.values.setdefault(name, []).append(number(value))
    return list(found.values())


def score_tables(options: FinetuningOptions, all_points: Sequence[ScorePoint]) -> list[ResultTable]:
    """A table per task: measures before training, scores with 95 % intervals over seeds."""
    return [
        _score_table(options, task, [point for point in all_points if point.task == task]) for task in options.tasks
    ]


def _score_table(options: FinetuningOptions, task: str, chosen: Sequence[ScorePoint]) -> ResultTable:
    rows = []
    for point in sorted(chosen, key=lambda point: (point.method != NONE, point.width, -point.mean("dev"))):
        measures = ["–" if point.method == NONE else format_error(point.mean(name)) for name in MEASURES]
        scores = [show_mean(point.values[outcome]) for outcome in OUTCOMES]
        width = "1" if point.method == NONE else width_label(point.width)
        rows.append([point.method, width, *scores, *measures, str(len(point.values["dev"]))])
    metric = chosen[0].metric if chosen else "score"
    recipe = options.recipe(task)
    passes = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    note = (
        f"Scores: {metric} on dev, mean over seeds ± half of Student's 95 % interval. Without training: the trained "
        "original of the same seed, compressed. After fine-tuning: the compressed pretrained model after "
        f"{passes} of at most {options.examples(task)} examples, batches of {recipe.batch_size}, rate "
        f"{recipe.learning_rate:g}; the last update's parameters. Errors of the compressed pretrained model before "
        f"training, relative Frobenius: blocks on {options.tokens} dev tokens, kernels traced over outputs, means over "
        f"layers; network on {options.kernel_texts} dev texts, two random readouts, all parameters."
    )
    columns = ("method", "width", *OUTCOMES.values(), *MEASURES.values(), "seeds")
    return ResultTable(f"{task}: {metric}", columns, rows, (note,))


def correlation_table(options: FinetuningOptions, all_points: Sequence[ScorePoint]) -> ResultTable:
    """Rank correlations of −error with scores, within tasks: per width, over all, and of every task alone."""
    compressed = [point for point in all_points if point.method != NONE]
    choices: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
        f"width {width_label(width)}": (options.tasks, (width,)) for width in options.widths
    }
    choices["all widths"] = (options.tasks, options.widths)
    if len(options.tasks) > 1:
        choices |= {f"{task} alone": ((task,), options.widths) for task in options.tasks}
    rows = []
    for outcome, outcome_name in OUTCOMES.items():
        for measure, name in MEASURES.items():
            pairs = [_pairs(tasks, compressed, widths, measure, outcome) for tasks, widths in choices.values()]
            rows.append([name, outcome_name, *(_cell(each, options) for each in pairs)])
    count = len({point.method for point in compressed})
    note = (
        f"Spearman's ρ between −error before training and score, over {count} methods, mean over tasks "
        f"({', '.join(options.tasks)}); 1 means that the measure orders methods as the score does. In brackets 95 % "
        f"intervals of the percentile bootstrap over methods, each drawn with all its widths and tasks "
        f"({options.resamples} draws, seed 0). Points are means over seeds."
    )
    return ResultTable("Which measure foretells the score?", ("error of", "foretells", *choices), rows, (note,))


def _pairs(
    tasks: Sequence[str], points: Sequence[ScorePoint], widths: Sequence[float], measure: str, outcome: str
) -> list[Pair]:
    """−error and score of every task that has both, [methods, widths]."""
    methods, found = list(dict.fromkeys(point.method for point in points)), []
    for task in tasks:
        x, y = np.full((2, len(methods), len(widths)), np.nan)
        for point in points:
            if point.task == task and point.width in widths:
                place = methods.index(point.method), widths.index(point.width)
                x[place], y[place] = -point.mean(measure), point.mean(outcome)
        if np.isfinite(x).any():
            found.append((x, y))
    return found


def _cell(pairs: Sequence[Pair], options: FinetuningOptions) -> str:
    rho, low, high = bootstrap(pairs, options.resamples) if pairs else (np.nan, np.nan, np.nan)
    return "–" if np.isnan(rho) else f"{rho:.2f} [{low:.2f}, {high:.2f}]"


def curve_table(found: Mapping[RunCase, Result]) -> ResultTable | None:
    """How far linearised training is from the real one."""
    if not found:
        return None
    first = next(iter(found))
    original = next((result["real"] for case, result in found.items() if case.method == NONE), None)
    rows = []
    for case, result in found.items():
        apart = "–" if case.method == NONE or original is None else _apart(result["real"], original)
        rows.append(
            [case.method, format_error(result["distance of the first half"]), format_error(result["distance"]), apart]
        )
    count = len(found[first]["real"])
    note = (
        f"‖predicted − real‖ / ‖real‖ of the training losses of {first.task}, no dropout, the same batches; "
        f"predicted: the model linear in its parameters around the start (its tangent kernel), same AdamW. Width "
        f"of compressed blocks {width_label(min(case.width for case in found))}, seed {first.seed}. The last column "
        "compares the compressed model's real losses with the original's."
    )
    columns = ("method", f"first {count // 2} updates", f"{count} updates", "real, to the original's")
    return ResultTable("Linearised against real training", columns, rows, (note,))


def _apart(losses: Sequence[float], original: Sequence[float]) -> str:
    return format_error(curve_distance(np.array(original), np.array(losses)))
