"""What ``ntkfusion finetune`` prints and writes: scores of every seed, their mean with an interval, curves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import stats

from ntkfusion.commands.finetune.run import Finetuned, SeedResult
from ntkfusion.commands.protocol import print_lines
from ntkfusion.reporting.plots import RC, save_png
from ntkfusion.utils.console_tables import print_table
from ntkfusion.utils.files import Json, new_files

#: Where scores come from, in the order of the table.
SPLITS = ("zero_shot", "dev", "test")

_TITLES = {"zero_shot": "before training", "dev": "dev", "test": "test"}

#: Losses are drawn as means of so many updates.
SMOOTH = 20


def mean_and_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None]:
    """The mean, and half the width of Student's t interval for it; None for a single value.

    >>> mean_and_interval([0.9, 0.92, 0.91])
    (0.91, 0.0248...)
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error


def show_mean(values: Sequence[float]) -> str:
    """Mean and interval for people.

    >>> show_mean([0.9, 0.92, 0.91])
    '0.910 ± 0.025'
    """
    mean, half = mean_and_interval(values)
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def _columns(found: Finetuned) -> list[tuple[str, str]]:
    """(split, metric) of every column."""
    first = found.seeds[0]
    return [(split, name) for split in SPLITS for name in found.metrics if name in getattr(first, split)]


def finetuning_table(found: Finetuned) -> Table:
    """A row per seed and metric; with several seeds their means with 95 % intervals."""
    table, splits = Table(show_edge=False), list(dict.fromkeys(split for split, _ in _columns(found)))
    for name in ("seed", "metric"):
        table.add_column(name)
    for name in (*(_TITLES[split] for split in splits), "best at update"):
        table.add_column(name, justify="right")
    for seed in found.seeds:
        facts = (str(seed.seed), f"{seed.best_step} of {seed.num_updates}")
        for metric in found.metrics:
            scores = [show_mean([getattr(seed, split)[metric]]) for split in splits]
            table.add_row(facts[0], metric, *scores, facts[1])
            facts = ("", "")
    if len(found.seeds) > 1:
        table.add_section()
        for metric in found.metrics:
            means = [show_mean([getattr(seed, split)[metric] for seed in found.seeds]) for split in splits]
            table.add_row("mean", metric, *means, "")
    return table


def results_json(found: Finetuned) -> Json:
    """Everything as JSON: conditions, seeds, and means with half the width of their 95 % interval."""
    summary: dict[str, Json] = {}
    for split, name in _columns(found):
        mean, half = mean_and_interval([getattr(seed, split)[name] for seed in found.seeds])
        summary.setdefault(split, {})[name] = {"mean": mean, "interval": half, "seeds": len(found.seeds)}
    return {**found.conditions, "summary": summary, "seeds": [dataclasses.asdict(seed) for seed in found.seeds]}


def curves_figure(found: Finetuned) -> Figure:
    """Training loss, and the first metric on the dev set, by update; a line per seed."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(11, 4.2))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for number, seed in enumerate(found.seeds):
            _draw(left, right, found, seed, f"C{number}")
        left.set(xlabel="update", ylabel=f"training loss, mean of {SMOOTH} updates")
        right.set(xlabel="update", ylabel=f"{found.metrics[0]} on dev")
        if len(found.seeds) > 1:
            right.legend(title="seed", loc="best")
        figure.suptitle(found.conditions["command"], fontsize=9, wrap=True)
    return figure


def _draw(left: Any, right: Any, found: Finetuned, seed: SeedResult, color: str) -> None:
    lines = found.updates[seed.seed]
    losses = np.array([line["loss"] for line in lines], float)
    width = min(SMOOTH, len(losses))
    if width:
        steps = np.array([line["step"] for line in lines])[width - 1 :]
        left.plot(steps, np.convolve(losses, np.ones(width) / width, "valid"), color=color, label=str(seed.seed))
    name = found.metrics[0]
    steps, scores = [0.0], [seed.zero_shot[name]]
    for each in seed.history:
        steps.append(each["step"])
        scores.append(each[name])
    right.plot(steps, scores, color=color, marker="o", label=str(seed.seed))


def write(result: Finetuned, folder: Path) -> None:
    """Write ``results.json`` and ``curves.png``, both or none, into the folder that holds the seeds."""
    figure = curves_figure(result)
    with new_files([folder / "curves.png", folder / "results.json"], overwrite=True) as (picture, numbers):
        save_png(figure, picture)
        numbers.write_text(json.dumps(results_json(result), indent=1) + "\n", encoding="utf-8")


def show(result: Finetuned, console: Console) -> None:
    """Print the table, its conditions and where everything is."""
    folder = result.plan.folder
    task = result.conditions["task"]
    sizes = ", ".join(f"{count:,} {name}" for name, count in task["examples"].items() if count)
    print_table(console, finetuning_table(result))
    several = len(result.seeds) > 1
    head = f"Head: {result.conditions['head']}{_outputs(result)}."
    spread = "± is half of Student's 95 % interval for the mean over seeds" if several else "One seed: no interval"
    print_lines(
        console,
        f"Task: {task['name']}, {sizes} examples ({task['source']}). {head}",
        f"{spread}{_choice(result)}.",
        f"Pace: {_pace(result)} tokens/s, padding not counted, compilation included.",
        *_tuning(result),
        *result.other_files,
        f"Results: {folder / 'results.json'}, curves: {folder / 'curves.png'}",
    )


def _outputs(found: Finetuned) -> str:
    """The order of a head that the checkpoint came with."""
    names = found.conditions.get("outputs", ())
    return f", outputs {', '.join(names)}" if names and found.conditions["head"] != "fresh" else ""


def _choice(found: Finetuned) -> str:
    """What the dev set decided."""
    recipe = found.conditions["recipe"]
    if recipe["keep"] == "best" and any(len(seed.history) > 1 for seed in found.seeds):
        return "; the dev set chose the evaluation that is kept, so its score is that much too good"
    return "; the dev set chose when to stop" if recipe["patience"] else "; the dev set chose nothing"


def _pace(found: Finetuned) -> str:
    seconds = sum(seed.seconds for seed in found.seeds)
    return f"{sum(seed.tokens for seed in found.seeds) / seconds:,.0f}" if seconds else "–"


def _tuning(found: Finetuned) -> list[str]:
    """What layer-wise tuning did, if there was any."""
    if not all(seed.tuning for seed in found.seeds):
        return []
    before, after = ([seed.tuning[name] for seed in found.seeds] for name in ("loss_before", "loss_after"))
    what = "Layer-wise tuning: mean squared distance of hidden states from the original's on the dev set's texts"
    return [f"{what} {np.mean(before):.4g} before, {np.mean(after):.4g} after it."]
