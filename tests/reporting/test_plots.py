"""Plots show the numbers they were given, in every special case, and leave matplotlib's settings alone."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from ntkfusion.reporting.plots import FLOOR, error_by_layer, error_by_width, save_png
from ntkfusion.reporting.results import Comparison, ComparisonRow

METHODS = ("mlp-fusion", "mlp-fusion-v4", "svd", "svd-unbalanced", "random-neurons")


def comparison(methods=METHODS, layers=(0, 1), widths=(0.25, 0.5), error=0.2):
    rows = [
        ComparisonRow(method, layer, width, 4, 25, 100, error, error + 0.1 * i, error + 0.1 * layer, 1.0)
        for i, method in enumerate(methods)
        for layer in layers
        for width in widths
    ]
    return Comparison(tuple(rows), "", {}, {}, {}, {}, 1.0)


def lines(axis):
    return {line.get_label(): line for line in axis.lines}


def test_lines_over_widths_are_means_over_layers():
    figure = error_by_width(comparison())
    assert [axis.get_title() for axis in figure.axes] == ["output error", "SGD kernel error", "sign kernel error"]
    np.testing.assert_allclose(lines(figure.axes[1])["svd"].get_ydata(), [0.4, 0.4])
    np.testing.assert_allclose(lines(figure.axes[2])["svd"].get_ydata(), [0.25, 0.25])
    figure.canvas.draw()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1/4", "1/2"]


def test_lines_over_layers_are_the_rows():
    figure = error_by_layer(comparison(), 0.5)
    np.testing.assert_allclose(lines(figure.axes[2])["svd"].get_xydata(), [[0, 0.2], [1, 0.3]])


def test_every_method_looks_different_and_the_same_everywhere():
    shown = [lines(figure.axes[0]) for figure in (error_by_width(comparison()), error_by_layer(comparison(), 0.25))]
    looks = [[(x[m].get_color(), x[m].get_linestyle(), x[m].get_marker()) for m in METHODS] for x in shown]
    assert len(set(looks[0])) == len(METHODS)
    assert looks[0] == looks[1]


def test_sixteen_methods_all_look_different_and_families_share_a_hue():
    plain = [f"{letter}-method" for letter in "abcdefghijklm"]
    names = (*plain, "a-method-v2", "a-method+refit+sgd", "m-method+sgd")
    axis = error_by_width(comparison(methods=names)).axes[0]
    found = lines(axis)
    assert len({(found[n].get_color(), found[n].get_linestyle(), found[n].get_marker()) for n in names}) == 16
    # paler from member to member: the same hue
    shades = [np.array(found[name].get_color()) for name in ("a-method", "a-method-v2", "a-method+refit+sgd")]
    first, second, third = (1 - shade for shade in shades)
    np.testing.assert_allclose(np.cross(first, second), 0, atol=1e-12)
    np.testing.assert_allclose(np.cross(first, third), 0, atol=1e-12)
    assert first.sum() > second.sum() > third.sum()


def test_the_legend_names_methods_in_order():
    (legend,) = error_by_width(comparison()).legends
    assert [text.get_text() for text in legend.get_texts()] == list(METHODS)


@pytest.mark.parametrize(
    "figure", [error_by_width(comparison(widths=(0.25,))), error_by_layer(comparison(layers=(3,)), 0.5)]
)
def test_a_single_point_becomes_dots_with_values(figure):
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(METHODS)
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.200", "0.300", "0.400", "0.500", "0.600"]


def test_a_wide_range_is_logarithmic_and_has_a_floor():
    assert error_by_width(comparison()).axes[0].get_yscale() == "linear"
    wide = comparison(methods=("a",), layers=(0,), error=1e-8)
    wide = Comparison((*wide.rows, *comparison(methods=("b",), layers=(0,), error=3.0).rows), "", {}, {}, {}, {}, 1.0)
    axis = error_by_width(wide).axes[0]
    assert axis.get_yscale() == "log"
    np.testing.assert_allclose(lines(axis)["a"].get_ydata(), FLOOR)
    assert "an output or kernel of zeros" in lines(axis)


@pytest.mark.parametrize("widths", [(0.25,), (0.25, 0.5)])
@pytest.mark.parametrize("error", [math.nan, math.inf, 0.0])
def test_strange_numbers_still_draw(tmp_path, widths, error):
    save_png(error_by_width(comparison(methods=("svd",), widths=widths, error=error)), tmp_path / "x.png", dpi=40)
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_png_is_a_picture_of_its_size_and_the_same_twice(tmp_path):
    for name in ("a.png", "b.png"):
        save_png(error_by_width(comparison()), tmp_path / name, dpi=50)
    picture = imread(tmp_path / "a.png")
    assert picture.shape[1] == 600
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_settings_of_matplotlib_are_left_alone():
    before = dict(matplotlib.rcParams)
    assert isinstance(error_by_width(comparison()), Figure)
    assert dict(matplotlib.rcParams) == before
