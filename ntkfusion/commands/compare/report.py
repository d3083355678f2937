"""What ``ntkfusion compare`` writes and prints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ntkfusion.commands.compare.run import CompareResult
from ntkfusion.commands.protocol import print_lines
from ntkfusion.compression.registry import IMPROVEMENTS_HELP
from ntkfusion.reporting.page import write_report
from ntkfusion.reporting.summary import answer
from ntkfusion.reporting.table import console_table
from ntkfusion.utils.console_tables import print_table


def write(result: CompareResult, folder: Path) -> None:
    """Write ``results.json``, ``table.md``, pictures and ``index.html``."""
    assert result.comparison is not None
    write_report(result.comparison, result.descriptions, result.galleries, folder)


def show(result: CompareResult, console: Console) -> None:
    """Print the table, the answer in one sentence and where the report is; or what every method does."""
    if result.comparison is None or result.plan.output is None:
        for name, text in result.descriptions.items():
            console.print(f"[bold]{name}[/bold]: {text}", highlight=False, soft_wrap=True)
        print_lines(console, IMPROVEMENTS_HELP)
        return
    print_table(console, console_table(result.comparison))
    report = result.plan.output.folder / "index.html"
    print_lines(console, answer(result.comparison, result.descriptions), f"Report: {report}")
