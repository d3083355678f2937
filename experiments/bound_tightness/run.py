"""How far bounds lie above what they bound: output and SGD kernel of MLP Fusion (V4) against real original blocks.

For every layer and width, bound / measured of the plain bounds (`theory.output_bounds`, `theory.sgd_bounds`) and of
those that evaluate leading directions (`theory.tight_output`, `theory.tight_sgd`), by the share that is evaluated.

Run it: ``uv run experiments/bound_tightness.py`` (MiniLM, 6 layers, two widths: some minutes on two cores; ``--layers 0
--widths 0.25`` one). Text: ``$NTKFUSION_DATA_DIR/sst2/{train,dev}.tsv``, or the packaged sentences without that
variable. ``--bert-tiny`` takes ``$NTKFUSION_DATA_DIR/bert_tiny_sst2/layers.npz``, whose blocks get Gaussian vectors
through the LayerNorm in front of them (the file has no embeddings). It can be stopped and started again: finished
layers are kept in the output folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import tyro
from bound_tightness_parts.blocks import Case, bert_tiny_cases, minilm_cases
from bound_tightness_parts.figures import curve_figure, scatter_figure
from bound_tightness_parts.measure import measure
from bound_tightness_parts.tables import plain_table, share_table
from rich.console import Console

from ntkfusion.commands.conditions import environment
from ntkfusion.errors import NTKFusionError
from ntkfusion.reporting.plots import save_png
from ntkfusion.utils.files import new_files


@dataclasses.dataclass(frozen=True)
class Options:
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


def main(options: Options) -> None:
    """Measure every layer and width, print the tables, write everything."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    find = bert_tiny_cases if options.bert_tiny else minilm_cases
    name, cases = find(options.tokens, options.calibration, options.seed)
    chosen = [case for case in cases if options.layers is None or case.layer in options.layers]
    rows = [_stored(options, name, case, width) for width in options.widths for case in chosen]
    tables = [share_table(rows, options.shares, what) for what in ("output", "clusters", "directions")]
    tables.append(plain_table(rows))
    for table in tables:
        table.print(console)
    violations = sum(row["violations"] for row in rows)
    summary = f"{name}. {violations} violations among {sum(row['compared'] for row in rows)} comparisons of a limit."
    console.print(summary, highlight=False, markup=False)
    _write(options, [table.markdown() for table in tables], summary, rows)
    if violations:
        sys.exit(1)


def _stored(options: Options, name: str, case: Case, width: float) -> dict[str, Any]:
    """A layer's numbers, measured unless a run with the same options has done so."""
    wanted = dataclasses.asdict(dataclasses.replace(options, out=Path(), widths=(), layers=None)) | {"text": name}
    key = json.dumps(wanted, sort_keys=True, default=str)
    path = options.out / "parts" / f"{'bert_tiny' if options.bert_tiny else 'minilm'}_{case.layer}_{width}.json"
    if path.is_file() and (known := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        return known["row"]
    row = measure(case, width, options.shares, options.restarts, options.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_files([path], overwrite=True) as (file,):
        file.write_text(json.dumps({"key": key, "row": row}), encoding="utf-8")
    print(f"layer {case.layer}, width {width}: done", file=sys.stderr, flush=True)
    return row


def _write(options: Options, tables: list[str], summary: str, rows: list[dict[str, Any]]) -> None:
    command = shlex.join(["python", *sys.argv])
    facts = ", ".join(f"{key} {value}" for key, value in (environment() | {"precision": "float64"}).items())
    text = "\n\n".join(["# Tightness of bounds", facts, *tables, summary, "## Repeat it", f"    {command}"])
    figures = {"scatter": scatter_figure(rows), "curve": curve_figure(rows, np.asarray(options.shares))}
    options.out.mkdir(parents=True, exist_ok=True)
    paths = [options.out / "table.md", *(options.out / f"{name}.png" for name in figures)]
    with new_files(paths, overwrite=True) as (table, *pictures):
        table.write_text(text + "\n", encoding="utf-8")
        for figure, picture in zip(figures.values(), pictures, strict=True):
            save_png(figure, picture)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    try:
        main(tyro.cli(Options))
    except NTKFusionError as error:
        sys.exit(f"error: {error}")
