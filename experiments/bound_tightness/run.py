"""Every layer at every width that is missing, then tables and figures."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.bound_tightness.blocks import LayerCase, bert_tiny_cases, minilm_cases
from experiments.bound_tightness.measure import measure
from experiments.bound_tightness.report import curve_figure, plain_table, scatter_figure, share_table
from experiments.common.console import open_console, say
from experiments.common.store import Result
from experiments.common.tables import report_text, write_report
from ntkfusion.commands.conditions import environment
from ntkfusion.utils.files import Output, new_files


@dataclasses.dataclass(frozen=True)
class TightnessOptions:
    """What to measure.

    Attributes:
        out: folder for tables, numbers and figures.
        widths: kept shares of the neurons.
        layers: which layers; by default all.
        shares: which parts of the directions are evaluated.
        tokens: inputs that bounds are measured at.
        calibration: other inputs, that directions are taken from.
        restarts: of k-means.
        seed: of text, sample and k-means.
        bert_tiny: BERT-tiny's blocks instead of MiniLM's.
    """

    out: Path = Path("bound_tightness")
    widths: tuple[float, ...] = (0.25, 0.5)
    layers: tuple[int, ...] | None = None
    shares: tuple[float, ...] = (0.0, 0.0625, 0.125, 0.25, 0.5)
    tokens: int = 160
    calibration: int = 2048
    restarts: int = 10
    seed: int = 0
    bert_tiny: bool = False


def main(options: TightnessOptions) -> None:
    """Measure every layer and width in float64, print the tables, write everything.

    Raises:
        OutputBusyError: if another process writes there.
        SystemExit: with code 1, if a limit was crossed.
    """
    with Output(options.out, grows=True).reserved(), jax.enable_x64(True):
        rows, summary = _measure(options)
    console = open_console(160)
    tables = [share_table(rows, options.shares, what) for what in ("output", "clusters", "directions")]
    tables.append(plain_table(rows))
    for table in tables:
        table.print(console)
    say(console, summary)
    facts = environment() | {"precision": "float64"}
    text = report_text("Tightness of bounds", facts, [*(table.markdown() for table in tables), summary])
    figures = {"scatter": scatter_figure(rows), "curve": curve_figure(rows, np.asarray(options.shares))}
    write_report(options.out, text, figures)
    if any(row["violations"] for row in rows):
        sys.exit(1)


def _measure(options: TightnessOptions) -> tuple[list[Result], str]:
    """The numbers of every layer and width, and how often a limit was crossed."""
    find = bert_tiny_cases if options.bert_tiny else minilm_cases
    name, cases = find(options.tokens, options.calibration, options.seed)
    chosen = [case for case in cases if options.layers is None or case.layer in options.layers]
    rows = [_stored(options, name, case, width) for width in options.widths for case in chosen]
    violations, compared = (_total(rows, key) for key in ("violations", "compared"))
    return rows, f"{name}. {violations} violations among {compared} comparisons of a limit."


def _total(rows: Sequence[Result], key: str) -> int:
    return sum(row[key] for row in rows)


def stored_key(options: TightnessOptions, text: str) -> str:
    """Everything that a layer's numbers depend on, beside layer and width."""
    wanted = dataclasses.asdict(dataclasses.replace(options, out=Path(), widths=(), layers=None)) | {"text": text}
    return json.dumps(wanted, sort_keys=True, default=str)


def _stored(options: TightnessOptions, text: str, case: LayerCase, width: float) -> Result:
    """A layer's numbers, measured unless a run with the same options has done so."""
    key = stored_key(options, text)
    path = options.out / "parts" / f"{'bert_tiny' if options.bert_tiny else 'minilm'}_{case.layer}_{width}.json"
    if path.is_file() and (known := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        return known["row"]
    row = measure(case, width, options.shares, options.restarts, options.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_files([path], overwrite=True) as (file,):
        file.write_text(json.dumps({"key": key, "row": row}), encoding="utf-8")
    print(f"layer {case.layer}, width {width}: done", file=sys.stderr, flush=True)
    return row
