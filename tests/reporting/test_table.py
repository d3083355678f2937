"""Tables show the means computed by hand, mark the lowest, and say n/a where there is no number."""

from __future__ import annotations

import dataclasses
import io
import math
import re

import pytest
from rich.console import Console

from ntkfusion.reporting.results import Comparison, ComparisonRow
from ntkfusion.reporting.table import HEADER, conditions, console_table, layer_table, markdown_report, method_table

ROWS = (
    # method, layer, width, neurons, parameters, originally, output, SGD, sign, seconds
    ComparisonRow("svd", 0, 0.25, 4, 30, 100, 0.1, 0.8, 0.5, 1.0),
    ComparisonRow("svd", 1, 0.25, 4, 20, 100, 0.2, 0.6, 0.7, 0.5),
    ComparisonRow("mlp-fusion", 0, 0.25, 4, 25, 100, 0.4, 0.3, 0.6, 0.25),
    ComparisonRow("mlp-fusion", 1, 0.25, 4, 25, 100, 0.1, 0.5, math.nan, 0.25),
)
COMPARISON = Comparison(
    ROWS,
    "ntkfusion compare minilm --seed 7",
    {"seed": 7},
    {"name": "minilm"},
    {"text": "packaged sample", "calibration_tokens": 4096, "held_out_tokens": 1024},
    {"precision": "float32"},
    3.0,
)


def printed(comparison: Comparison, **options) -> str:
    console = Console(file=io.StringIO(), width=80, **options)
    console.print(console_table(comparison))
    return console.file.getvalue()


def test_method_table_shows_means_sums_and_shares():
    lines = method_table(COMPARISON, 0.25).splitlines()
    assert lines[0] == f"| {' | '.join(HEADER)} |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| svd | **0.150** | 0.700 | **0.600** | 25.0 % | 1.50 |"
    assert lines[3] == "| mlp-fusion | 0.250 | **0.400** | n/a | 25.0 % | 0.50 |"
    assert len(lines) == 4


def test_layer_table_marks_the_best_of_each_layer():
    output, sgd, sign = (part for part in layer_table(COMPARISON, 0.25).split("\n\n") if part.startswith("|"))
    assert output.splitlines()[0] == "| method | layer 0 | layer 1 |"
    assert output.splitlines()[2:] == ["| svd | **0.100** | 0.200 |", "| mlp-fusion | 0.400 | **0.100** |"]
    assert sgd.splitlines()[2:] == ["| svd | 0.800 | 0.600 |", "| mlp-fusion | **0.300** | **0.500** |"]
    assert sign.splitlines()[2:] == ["| svd | **0.500** | **0.700** |", "| mlp-fusion | 0.600 | n/a |"]


def test_a_method_that_was_not_run_at_a_width_has_no_numbers_there():
    extra = dataclasses.replace(COMPARISON, rows=(*ROWS, *(dataclasses.replace(r, width=0.5) for r in ROWS[:2])))
    assert "| mlp-fusion | n/a | n/a | n/a | n/a | n/a |" in method_table(extra, 0.5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_method_or_layer_works(count):
    single = dataclasses.replace(COMPARISON, rows=ROWS[:count])
    first = "0.100" if count == 1 else "0.150"
    assert f"| svd | **{first}** |" in method_table(single, 0.25)
    assert first in printed(single)


def test_names_cannot_break_the_table():
    strange = dataclasses.replace(COMPARISON, rows=(dataclasses.replace(ROWS[0], method="a|b\n<i>"),))
    assert method_table(strange, 0.25).splitlines()[2].startswith("| a\\|b &lt;i> | **0.100** |")


def test_conditions_name_what_is_known_and_skip_what_is_not():
    text = conditions(COMPARISON)
    assert text.startswith(
        "minilm · layers 0–1 · text: packaged sample · 4,096 calibration tokens · 1,024 held-out tokens"
    )
    assert "seed 7" in text
    assert "relative Frobenius norms" in text
    bare = conditions(Comparison(ROWS, "", {}, {}, {}, {}, 1.0))
    assert bare.startswith("model · layers 0–1 · errors")
    assert "None" not in bare


def test_report_holds_the_answer_every_table_and_the_command():
    text = markdown_report(COMPARISON, {"svd": "low rank", "unused": "never run"})
    assert text.startswith("# minilm")
    assert "no single method keeps everything" in text
    assert method_table(COMPARISON, 0.25) in text
    assert layer_table(COMPARISON, 0.25) in text
    assert "- `svd`: low rank" in text
    assert "unused" not in text
    assert text.endswith("    ntkfusion compare minilm --seed 7\n")


def test_console_groups_by_width_and_fits_a_pipe():
    longer = [dataclasses.replace(row, width=0.5, method="structured-pruning") for row in ROWS[:2]]
    lines = printed(dataclasses.replace(COMPARISON, rows=(*ROWS, *longer))).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.strip().startswith("1/")] == ["1/4", "1/2"]
    assert any(line.split()[:2] == ["structured-pruning", "0.150"] for line in lines)


def test_console_shows_the_best_in_bold_and_names_as_they_are():
    strange = dataclasses.replace(COMPARISON, rows=(dataclasses.replace(ROWS[0], method="[red]x"), *ROWS[2:3]))
    text = printed(strange, force_terminal=True, color_system="standard")
    assert "[red]x" in text
    assert re.search(r"\x1b\[1;32m *0\.100", text)
    assert not re.search(r"\x1b\[1;32m *0\.400", text)
