"""The sections one after the other, their tables, and the files that hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from experiments.common.console import open_console, repeat_command, say
from experiments.common.tables import Section, report_text, write_report
from experiments.kernel_distance.bench import Bench
from experiments.kernel_distance.blocks import blocks_section
from experiments.kernel_distance.network import network_section
from experiments.kernel_distance.options import DistanceOptions
from experiments.kernel_distance.overfitting import tokens_section
from experiments.kernel_distance.tradeoff import tradeoff_section
from ntkfusion.commands.conditions import environment

SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "blocks": blocks_section,
    "network": network_section,
    "tokens": tokens_section,
    "tradeoff": tradeoff_section,
}


def main(options: DistanceOptions) -> None:
    """Run the sections, print their tables as they come, write everything."""
    bench, console = Bench(options), open_console(160)
    say(console, f"text: {bench.text.name}")
    sections = []
    with jax.default_matmul_precision("highest"):
        for name in options.sections:
            sections.append(SECTIONS[name](bench))
            for table in sections[-1].tables:
                table.print(console)
        for note in bench.notes:
            say(console, note)
        _write(bench, sections)  # here, since it states the precision that is in force
    say(console, f"written to {options.out}")


def _write(bench: Bench, sections: Sequence[Section]) -> None:
    """Tables, numbers and figures, made anew from the single results every time."""
    facts = environment()
    record = {
        "command": repeat_command(),
        "environment": facts,
        "text": bench.text.name,
        "notes": bench.notes,
        "sections": {section.name: section.record for section in sections},
    }
    parts = [table.markdown() for section in sections for table in section.tables]
    parts += ["\n".join(f"- {note}" for note in bench.notes)] if bench.notes else []
    figures = {name: figure for section in sections for name, figure in section.figures.items()}
    write_report(bench.options.out, report_text("Distance of kernels", facts, parts), figures, record)
    bench.store.mark()
