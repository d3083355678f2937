"""Time and memory of the exact kernels against neural-tangents, dense Jacobians and the machine's matmul rate.

Run it: ``uv run --extra test experiments/benchmarks/kernels.py`` (an hour on two cores, ``--sections block tokens``
minutes; Linux, whose /proc it reads). Every contestant runs in a process of its own, by turns with the others,
within the same memory and time; who exceeds them is a row that says so. Writes results.json, table.md and growth.png.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from kernel_benchmark.block import against_neural_tangents, many_tokens
from kernel_benchmark.growth import growth
from kernel_benchmark.network import network_section
from kernel_benchmark.options import Options
from kernel_benchmark.tables import Section
from rich.console import Console

from ntkfusion.errors import InputError, NTKFusionError
from ntkfusion.utils.files import check_output, new_folder

SECTIONS: dict[str, Callable[[Options], Section]] = {
    "block": against_neural_tangents,
    "tokens": many_tokens,
    "network": network_section,
    "growth": growth,
}


def main(options: Options) -> None:
    """Run the sections, print their tables as they come, write everything."""
    if not Path("/proc/self/status").exists():
        raise InputError("this benchmark reads the memory of its processes from /proc, which this system has not")
    check_output(options.out, overwrite=options.overwrite)
    console, sections = _console(), []
    for name in options.sections:
        sections.append(SECTIONS[name](options))
        for table in sections[-1].tables:
            table.print(console)
    with new_folder(options.out, overwrite=options.overwrite) as folder:
        _write(options, sections, folder)
    console.print(f"written to {options.out}", highlight=False)


def _console() -> Console:
    console = Console()
    # a pipe gets wide tables, a terminal what fits it
    return console if console.is_terminal else Console(width=140)


def _write(options: Options, sections: list[Section], folder: Path) -> None:
    from ntkfusion.commands.compare.run import environment
    from ntkfusion.reporting.plots import save_png

    command = shlex.join(["python", *sys.argv])
    results: dict[str, Any] = {"command": command, "environment": environment(), "sections": {}}
    for section in sections:
        record = dict(section.record)
        figure = record.pop("figure", None)
        if figure:
            save_png(figure, folder / f"{section.name}.png")
        results["sections"][section.name] = record
    (folder / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    facts = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    tables = [table.markdown() for section in sections for table in section.tables]
    text = "\n\n".join(["# Benchmark of the exact kernels", facts, *tables, "## Repeat it", f"    {command}"])
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except NTKFusionError as error:
        sys.exit(f"error: {error}")
