"""Heat maps: one colour scale, the right titles, and the original in front."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.reporting.kernel_plots import kernel_heatmaps
from ntkfusion.reporting.plots import save_png
from ntkfusion.reporting.results import KernelGallery


def gallery(count, tokens=6):
    original = np.eye(tokens) + 0.5
    kernels = {"original": original, **{f"method-{i}": original * (1 + 0.1 * i) for i in range(count)}}
    return KernelGallery(2, 0.25, tuple(f"w{i}" for i in range(tokens)), {"sgd": kernels})


def panels(figure):
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 11, 23])
def test_heatmaps_share_the_originals_colours(tmp_path, count):
    figure = kernel_heatmaps(gallery(count), "sgd")
    shown = panels(figure)
    assert len(shown) == count + 1
    assert len({axis.images[0].get_clim() for axis in shown}) == 1
    assert figure.get_figwidth() <= 12
    save_png(figure, tmp_path / "x.png", dpi=40)


def test_heatmap_titles_carry_the_error_and_only_the_original_has_tokens():
    shown = panels(kernel_heatmaps(gallery(3), "sgd"))
    assert [axis.get_title() for axis in shown][1:] == [f"method-{i}\nerror 0.{i}00" for i in range(3)]
    assert [tick.get_text() for tick in shown[0].get_yticklabels()] == [f"w{i}" for i in range(6)]
    assert not any(len(axis.get_yticks()) for axis in shown[1:])
    assert not len(panels(kernel_heatmaps(gallery(1, tokens=41), "sgd"))[0].get_yticks())


def test_signed_kernels_get_colours_centred_at_zero():
    kernels = {"original": np.array([[2.0, -1.0], [-1.0, 2.0]])}
    (panel,) = panels(kernel_heatmaps(KernelGallery(0, 0.5, ("a", "b"), {"sign": kernels}), "sign"))
    low, high = panel.images[0].get_clim()
    assert low == -high


@pytest.mark.filterwarnings("error")
def test_tokens_are_text_not_mathematics(tmp_path):
    kernels = {"original": np.eye(3), "$m_{$": np.full((3, 3), np.nan)}
    figure = kernel_heatmaps(KernelGallery(0, 0.5, ("$\\frac", "日本", "<b>"), {"sgd": kernels}), "sgd")
    save_png(figure, tmp_path / "x.png", dpi=40)
    assert panels(figure)[1].get_title().endswith("error n/a")


def test_a_gallery_without_the_original_is_refused():
    with pytest.raises(InputError, match="no original sign kernel"):
        kernel_heatmaps(gallery(1), "sign")


def test_settings_of_matplotlib_are_left_alone():
    before = dict(matplotlib.rcParams)
    kernel_heatmaps(gallery(2), "sgd")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("most", [np.inf, np.nan, 3e38])
def test_a_block_that_overflows_is_drawn_without_a_warning(tmp_path, most):
    """Of float32 kernels whose entries, or their squares, differences and sums, leave the range."""
    original = np.array([[3e38, 1e20], [1e20, 3e38]], np.float32)
    other = np.array([[most, -3e38], [-3e38, 1.0]], np.float32)
    for kernels in ({"original": original, "svd": other}, {"original": other, "svd": original}):
        figure = kernel_heatmaps(KernelGallery(0, 0.5, ("a", "b"), {"sgd": kernels}), "sgd")
        error = panels(figure)[1].get_title().partition("error ")[2]
        assert (error == "n/a") == (not np.isfinite(most))
        save_png(figure, tmp_path / "x.png", dpi=40)
