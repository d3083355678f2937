"""A report is a folder with every file that was promised."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.reporting.page import write_report
from ntkfusion.reporting.results import Comparison, ComparisonRow, KernelGallery, read_comparison
from ntkfusion.reporting.table import markdown_report

PLOTS = ("error_by_layer.png", "error_by_width.png")
TEXTS = ("index.html", "results.json", "table.md")


def comparison(layers=(0, 1), widths=(0.25, 0.5), methods=("svd", "sketch")):
    rows = [ComparisonRow(m, n, w, 4, 25, 100, 0.1, 0.8, 0.5, 1.0) for m in methods for n in layers for w in widths]
    return Comparison(tuple(rows), "ntkfusion compare x", {"seed": 0}, {"name": "x"}, {}, {}, 1.0)


def gallery(layer, width=0.25):
    kernels = {"original": np.eye(4), "svd": np.eye(4) / 2}
    return KernelGallery(layer, width, ("a", "b", "<script>", "$"), {"sgd": kernels, "sign": kernels})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_every_file(tmp_path):
    results = comparison()
    write_report(results, {"svd": "low rank"}, [gallery(1)], tmp_path)
    assert names(tmp_path) == sorted([*PLOTS, *TEXTS, "kernels_sgd.png", "kernels_sign.png"])
    assert read_comparison(tmp_path / "results.json") == results
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == markdown_report(results, {"svd": "low rank"})
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<img") == 4
    for path in tmp_path.glob("*.png"):
        picture = path.read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000
        assert base64.b64encode(picture).decode() in page
    assert "<script" not in page


def test_several_galleries_keep_apart(tmp_path):
    write_report(comparison(), {}, [gallery(0), gallery(1), gallery(1, 0.5)], tmp_path)
    kernels = [name for name in names(tmp_path) if name.startswith("kernels_sgd")]
    assert kernels == [f"kernels_sgd_layer{n}_width{w}.png" for n, w in ((0, 0.25), (1, 0.25), (1, 0.5))]


def test_the_smallest_comparison_without_kernels(tmp_path):
    write_report(comparison((3,), (0.25,), ("svd",)), {}, [], tmp_path)
    assert names(tmp_path) == sorted([*PLOTS, *TEXTS])


def test_a_method_without_numbers_is_shown_as_such(tmp_path):
    results = comparison(methods=("svd",))
    failed = ComparisonRow("broken", 0, 0.25, 4, 25, 100, math.nan, math.inf, math.nan, 1.0)
    results = Comparison((*results.rows, failed), "", {}, {}, {}, {}, 1.0)
    write_report(results, {}, [], tmp_path)
    assert "| broken | n/a | n/a | n/a | 25.0 % | 1.00 |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "NaN" not in (tmp_path / "results.json").read_text(encoding="utf-8")


def test_no_rows_leave_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        write_report(Comparison((), "", {}, {}, {}, {}, 1.0), {}, [], tmp_path)
    assert names(tmp_path) == []
