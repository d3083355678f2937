"""The sections one after the other, their tables, and the folder that holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.benchmarks.kernels.block import against_neural_tangents, many_tokens
from experiments.benchmarks.kernels.growth import growth
from experiments.benchmarks.kernels.network import network_section
from experiments.benchmarks.kernels.options import KernelsOptions
from experiments.common.console import open_console, repeat_command
from experiments.common.tables import Section, report_text, write_report
from ntkfusion.commands.conditions import environment
from ntkfusion.errors import InputError
from ntkfusion.utils.files import check_output, new_folder

SECTIONS: dict[str, Callable[[KernelsOptions], Section]] = {
    "block": against_neural_tangents,
    "tokens": many_tokens,
    "network": network_section,
    "growth": growth,
}


def main(options: KernelsOptions) -> None:
    """Run the sections, print their tables as they come, write everything.

    Raises:
        InputError: if the system has no /proc.
        OutputExistsError: if the output folder must not be written to.
    """
    if not Path("/proc/self/status").exists():
        raise InputError("this benchmark reads the memory of its processes from /proc, which this system has not")
    check_output(options.out, overwrite=options.overwrite)
    console, sections = open_console(140), []
    for name in options.sections:
        sections.append(SECTIONS[name](options))
        for table in sections[-1].tables:
            table.print(console)
    with new_folder(options.out, overwrite=options.overwrite) as folder:
        _write(sections, folder)
    console.print(f"written to {options.out}", highlight=False)


def _write(sections: Sequence[Section], folder: Path) -> None:
    facts = environment()
    measured = {section.name: section.record for section in sections}
    record = {"command": repeat_command(), "environment": facts, "sections": measured}
    parts = [table.markdown() for section in sections for table in section.tables]
    figures = {name: figure for section in sections for name, figure in section.figures.items()}
    write_report(folder, report_text("Benchmark of the exact kernels", facts, parts), figures, record)
