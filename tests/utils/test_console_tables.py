"""Tables keep every number and every name, however narrow the terminal is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from ntkfusion.utils.console_tables import print_table, row_lines


def shown(table, width):
    """What a terminal of that width shows."""
    out = io.StringIO()
    print_table(Console(file=out, width=width), table)
    return out.getvalue()


def results(**options):
    table = Table(title="Errors", **options)
    table.add_column("method", no_wrap=True)
    for name in ("output\nerror", "SGD kernel error", "best at update"):
        table.add_column(name, justify="right")
    table.add_row("active-neurons+refit", "0.167 ± 0.025", "38.902", "1,234 of 5,678")
    table.add_section()
    table.add_row("[bold]svd[/bold]", "", "0.087", "")
    return table


CELLS = ("active-neurons+refit", "0.167 ± 0.025", "38.902", "1,234 of 5,678", "svd", "0.087")


@pytest.mark.parametrize("options", [{}, {"show_edge": False}, {"pad_edge": False}, {"box": None}])
def test_narrow_terminals_lose_no_number(options):
    for width in range(8, 120):
        text = shown(results(**options), width)
        assert "…" not in text
        assert all(cell in text for cell in CELLS), (width, text)


def test_no_line_is_wider_than_the_terminal_while_it_is_a_table():
    tables = 0
    for width in range(20, 120):
        text = shown(results(), width)
        if "output error:" not in text:
            tables += 1
            assert max(map(len, text.splitlines())) <= width
    assert 40 < tables < 90


def test_wide_terminals_show_the_table_as_rich_does():
    out = io.StringIO()
    Console(file=out, width=200).print(results())
    assert shown(results(), 200) == out.getvalue()


def test_rows_name_what_their_numbers_are():
    assert row_lines(results()) == [
        "Errors",
        "method: active-neurons+refit",
        "  output error: 0.167 ± 0.025",
        "  SGD kernel error: 38.902",
        "  best at update: 1,234 of 5,678",
        "method: svd",
        "  SGD kernel error: 0.087",
    ]


def test_a_long_text_in_a_column_of_numbers_is_wrapped():
    table = Table()
    table.add_column("kernel")
    table.add_column("at most", justify="right")
    table.add_row("network", "does not fit: a row of it would take 12 GiB, and 4 are available")
    text = shown(table, 40)
    assert np.all([word in text for word in ("network", "does", "12 GiB", "available")])
    assert max(map(len, text.splitlines())) <= 40
