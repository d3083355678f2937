"""results.json keeps every number, and what is no results.json is refused with a sentence."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from ntkfusion.errors import InputError
from ntkfusion.reporting.results import Comparison, ComparisonRow, read_comparison

ROW = ComparisonRow("svd", 3, 0.25, 384, 300, 1200, 0.25, 0.5, 1.5, 0.125)
COMPARISON = Comparison((ROW,), "ntkfusion compare x", {"seed": 1, "widths": [0.25]}, {"name": "x"}, {}, {}, 2.5)


def test_every_number_survives_the_round_trip(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(COMPARISON.to_json(), encoding="utf-8")
    assert read_comparison(path) == COMPARISON


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path, value):
    path = tmp_path / "results.json"
    rows = (dataclasses.replace(ROW, sgd_kernel_error=value),)
    path.write_text(dataclasses.replace(COMPARISON, rows=rows).to_json(), encoding="utf-8")
    assert json.loads(path.read_text())["rows"][0]["sgd_kernel_error"] is None
    (row,) = read_comparison(path).rows
    assert math.isnan(row.sgd_kernel_error)
    assert dataclasses.replace(row, sgd_kernel_error=0.5) == ROW


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "rows": [{"method": "svd"}]}', "{"])
def test_what_is_no_results_file_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"is not a results\.json"):
        read_comparison(path)


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(COMPARISON.to_json().replace('"format": 1', '"format": 99'))
    with pytest.raises(InputError, match="format 99"):
        read_comparison(path)
