"""How far every method leaves outputs and kernels from the original's, on SST-2 text.

Sections: every block; whole networks; overfitting to calibration tokens; one set of constants for both kernels.

Run it: ``uv run experiments/kernel_distance.py`` (an hour on two cores; ``--sections blocks --seeds 0 --methods svd
mlp-fusion`` a minute). Text: ``$NTKFUSION_DATA_DIR/sst2/{train,dev}.tsv``, or the packaged sentences without that
variable. It can be stopped and started again: what is in the output folder is not computed twice.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence

# read when the library is loaded: LAPACK's own threads fight with XLA's, and an SVD takes 5 to 30 times longer
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import tyro
from kernel_distance_parts.bench import Bench
from kernel_distance_parts.blocks import blocks_section
from kernel_distance_parts.network import network_section
from kernel_distance_parts.options import Options
from kernel_distance_parts.overfitting import tokens_section
from kernel_distance_parts.tables import Section
from kernel_distance_parts.tradeoff import tradeoff_section
from rich.console import Console

from ntkfusion.commands.conditions import environment
from ntkfusion.errors import NTKFusionError
from ntkfusion.utils.files import MARKER, new_files

SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "blocks": blocks_section,
    "network": network_section,
    "tokens": tokens_section,
    "tradeoff": tradeoff_section,
}


def main(options: Options) -> None:
    """Run the sections, print their tables as they come, write everything."""
    bench, console = Bench(options), _console()
    console.print(f"text: {bench.text.name}", highlight=False, markup=False)
    sections = []
    with jax.default_matmul_precision("highest"):
        for name in options.sections:
            sections.append(SECTIONS[name](bench))
            for table in sections[-1].tables:
                table.print(console)
    for note in bench.notes:
        console.print(note, highlight=False, markup=False)
    _write(bench, sections)
    console.print(f"written to {options.out}", highlight=False, markup=False)


def _console() -> Console:
    console = Console()
    # a pipe gets wide tables, a terminal what fits it
    return console if console.is_terminal else Console(width=160)


def _write(bench: Bench, sections: Sequence[Section]) -> None:
    """Tables, numbers and figures, made anew from the single results every time."""
    from ntkfusion.reporting.plots import save_png

    command = shlex.join(["python", *sys.argv])
    results = {
        "command": command,
        "environment": environment(),
        "text": bench.text.name,
        "notes": bench.notes,
        "sections": {section.name: section.record for section in sections},
    }
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    tables = [table.markdown() for section in sections for table in section.tables]
    notes = ["\n".join(f"- {note}" for note in bench.notes)] if bench.notes else []
    text = "\n\n".join(["# Distance of kernels", facts, *tables, *notes, "## Repeat it", f"    {command}"])
    figures = {name: figure for section in sections for name, figure in section.figures.items()}
    folder = bench.options.out
    paths = [folder / "table.md", folder / "results.json", *(folder / f"{name}.png" for name in figures)]
    with new_files(paths, overwrite=True) as (table, numbers, *pictures):
        table.write_text(text + "\n", encoding="utf-8")
        numbers.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        for figure, picture in zip(figures.values(), pictures, strict=True):
            save_png(figure, picture)
    (folder / MARKER).touch()


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except NTKFusionError as error:
        sys.exit(f"error: {error}")
