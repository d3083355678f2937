"""The answer names who is best, shares a draw, never lets NaN win, and says when the best is bad."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.reporting.results import Comparison, ComparisonRow
from ntkfusion.reporting.summary import (
    answer,
    averaged,
    error_grid,
    format_error,
    is_best,
    join,
    layer_label,
    mean_errors,
    reference_width,
    width_label,
)


def comparison(errors, widths=(0.25,)):
    """Method → its three errors, in two layers: 0.1 below them in layer 0, 0.1 above in layer 1."""
    rows = [
        ComparisonRow(method, layer, width, 4, 25, 100, *(e + (0.1 if layer else -0.1) for e in three), 1.0)
        for width in widths
        for method, three in errors.items()
        for layer in (0, 1)
    ]
    return Comparison(tuple(rows), "", {}, {}, {}, {}, 1.0)


def test_three_winners_are_named_with_their_numbers():
    text = answer(comparison({"a": (0.2, 0.4, 0.4), "b": (0.4, 0.2, 0.4), "c": (0.4, 0.4, 0.3)}), {})
    assert text == (
        "At width 1/4, averaged over layers 0–1, the lowest output error is 0.200 (a), the lowest SGD kernel error is "
        "0.200 (b) and the lowest sign kernel error is 0.300 (c): no single method keeps everything."
    )


def test_one_winner_is_described():
    text = answer(comparison({"a": (0.2, 0.3, 0.4), "b": (0.4, 0.4, 0.5)}), {"a": "the good one"})
    assert "a – the good one – wins on all three: output error 0.200, SGD kernel error 0.300 and" in text
    assert "far from" not in text


def test_a_draw_is_shared_and_led_by_who_wins_most():
    three = {"a": (0.2, 0.5, 0.5), "b": (0.2, 0.2, 0.5), "c": (0.2, 0.5, 0.5), "d": (0.5, 0.5, 0.2)}
    text = answer(comparison(three), {})
    assert "the lowest output error is 0.200 (b and 2 others)" in text
    assert "(b and a) and" not in text
    assert "no single method" in text


def test_a_bad_best_is_called_far_from_the_original():
    text = answer(comparison({"a": (0.2, 0.7, 0.9), "b": (0.4, 0.8, 0.95)}), {})
    assert text.endswith("even the best SGD kernel error and sign kernel error are above 0.5, far from the original.")


def test_a_single_method_is_no_winner():
    text = answer(comparison({"a": (0.2, 0.3, 0.6)}), {})
    assert "the only method compared, leaves output error 0.200" in text
    assert "win" not in text
    assert text.endswith("even the best sign kernel error is above 0.5, far from the original.")


def test_nan_never_wins():
    text = answer(comparison({"a": (math.nan, 0.3, math.nan), "b": (0.4, 0.35, math.nan)}), {})
    assert "output error is 0.400 (b), the lowest SGD kernel error is 0.300 (a)" in text
    assert "no method has a finite sign kernel error" in text
    assert "nan" not in text


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows"):
        answer(comparison({}), {})


def test_reference_width_is_the_one_closest_to_a_quarter():
    assert reference_width(comparison({"a": (1, 1, 1)}, widths=(0.5, 0.3, 0.1))) == 0.3


def test_means_need_every_layer():
    full = comparison({"a": (0.2, 0.3, 0.4), "b": (0.5, 0.6, 0.7)})
    np.testing.assert_allclose(mean_errors(full, 0.25)["sgd_kernel_error"], [0.3, 0.6])
    holed = Comparison(full.rows[:-1], "", {}, {}, {}, {}, 1.0)
    np.testing.assert_allclose(error_grid(holed, 0.25, "output_error"), [[0.1, 0.3], [0.4, math.nan]])
    np.testing.assert_allclose(mean_errors(holed, 0.25)["output_error"], [0.2, math.nan])


def test_layers_whose_original_is_zero_are_in_no_mean_and_named():
    full = comparison({"a": (0.2, 0.3, 0.4), "b": (0.5, 0.6, 0.7)})
    rows = [dataclasses.replace(row, output_error=math.nan) if row.layer == 1 else row for row in full.rows]
    zero = dataclasses.replace(full, rows=tuple(rows), undefined={"output_error": [1]})
    np.testing.assert_allclose(mean_errors(zero, 0.25)["output_error"], [0.1, 0.4])
    np.testing.assert_allclose(mean_errors(zero, 0.25)["sgd_kernel_error"], [0.3, 0.6])
    assert averaged(zero) == "averaged over layers 0–1 (layer 1 without errors relative to 0)"
    nothing = dataclasses.replace(zero, undefined={"output_error": [0, 1]})
    assert np.isnan(mean_errors(nothing, 0.25)["output_error"]).all()
    assert '"undefined"' in zero.to_json()
    assert '"undefined"' not in full.to_json()


def test_a_width_that_was_not_compared_is_refused():
    with pytest.raises(InputError, match=r"width 0\.75 was not compared; there is 0\.25 and 0\.5"):
        error_grid(comparison({"a": (1, 1, 1)}, widths=(0.25, 0.5)), 0.75, "output_error")


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.3, 0.2, 0.5], [False, True, False]),
        ([0.2, 0.2000001, 0.201], [True, True, False]),
        ([math.nan, 0.9, math.inf], [False, True, False]),
        ([math.nan, math.inf], [False, False]),
        ([0.0, 3e-8, 1e-3], [True, True, False]),
    ],
)
def test_best(values, best):
    assert is_best(np.array(values)) == best


def test_numbers_and_words():
    shown = [format_error(v) for v in (0.0, 0.12345, 12.5, 1.5e-7, 123456.0, math.nan, math.inf)]
    assert shown == ["0.000", "0.123", "12.500", "1.5e-07", "1.2e+05", "n/a", "n/a"]
    assert [width_label(w) for w in (0.125, 0.25, 0.75, 1.0, 0.3)] == ["1/8", "1/4", "3/4", "1", "0.3"]
    assert [join(w) for w in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["none", "a", "a and b", "a, b and c"]
    assert [layer_label(x) for x in ([3], [0, 1, 2], [0, 2])] == ["layer 3", "layers 0–2", "layers 0 and 2"]
