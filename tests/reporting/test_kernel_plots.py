"""Pictures of one kernel: every group has its panel and its line, with the right numbers in the titles."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from ntkfusion.commands.kernel.run import spectra_of
from ntkfusion.reporting.kernel_plots import LABEL_LENGTH, describe, kernel_figure, spectrum_figure
from ntkfusion.reporting.plots import save_png
from tests.helpers.kernel_files import kernel_file


def network(layers=3, examples=4, kind="sgd"):
    """A network kernel with embeddings, some layers and a head without gradient."""
    rng = np.random.default_rng(0)
    names = ("embeddings", *(f"layer_{index}" for index in range(layers)), "head")
    factors = {name: rng.normal(size=(examples, 2, 40)) * (name != "head") for name in names}
    groups = {name: np.einsum("ncp,mdp->nmcd", factor, factor) for name, factor in factors.items()}
    sentences = tuple(f"$sentence {index} \\frac of quite some length, too long" for index in range(examples))
    return kernel_file(sum(groups.values()), groups, scope="network", kind=kind, labels=sentences)


def panels(figure):
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


@pytest.mark.parametrize("layers", [1, 6, 24])
def test_a_panel_for_the_kernel_and_one_for_every_group(tmp_path, layers):
    file = network(layers)
    figure = kernel_figure(file)
    shown = panels(figure)
    np.testing.assert_allclose(shown[0].images[0].get_array(), np.einsum("nmcc->nm", file.kernel) / 2)
    assert [axis.get_title().split(":")[0] for axis in shown[1:]] == list(file.groups)
    save_png(figure, tmp_path / "x.png", dpi=40)


def test_titles_carry_shares_of_the_trace():
    kernel = np.diag([3.0, 1.0])
    figure = kernel_figure(kernel_file(kernel, {"w1": np.diag([2.5, 0.5]), "b1": np.diag([0.5, 0.5])}))
    assert [axis.get_title() for axis in panels(figure)][1:] == ["w1: 75.0 %", "b1: 25.0 %"]


@pytest.mark.filterwarnings("error")
def test_a_kernel_near_the_end_of_its_range_is_drawn_without_a_warning(tmp_path):
    kernel = np.full((3, 3), 3e38, np.float32)
    file = kernel_file(kernel, {"w1": kernel, "b1": -kernel})
    save_png(kernel_figure(file), tmp_path / "x.png", dpi=40)
    save_png(spectrum_figure(file, spectra_of(file)), tmp_path / "y.png", dpi=40)


@pytest.mark.filterwarnings("error")
def test_labels_are_cut_text_not_mathematics(tmp_path):
    figure = kernel_figure(network())
    labels = [tick.get_text() for tick in panels(figure)[0].get_yticklabels()]
    assert len(labels) == 4
    assert all(len(label) <= LABEL_LENGTH and label.endswith("…") for label in labels)
    save_png(figure, tmp_path / "x.png", dpi=40)


def test_a_sign_kernel_says_which_side_is_trained():
    assert panels(kernel_figure(network(kind="sign")))[0].get_xlabel() == (
        "rows: evaluated example; columns: training example"
    )
    assert not panels(kernel_figure(network()))[0].get_xlabel()


def test_many_tokens_are_counted_instead():
    count = 41
    figure = kernel_figure(kernel_file(np.eye(count), labels=tuple("x" * count)))
    assert panels(figure)[0].get_ylabel() == "41 tokens in the order of the text"
    assert not len(panels(figure)[0].get_yticks())


@pytest.mark.parametrize(("kind", "value"), [("sgd", "eigenvalue"), ("sign", "singular value")])
def test_spectra_are_lines_with_effective_ranks(tmp_path, kind, value):
    file = network(kind=kind)
    spectra = spectra_of(file)
    figure = spectrum_figure(file, spectra)
    (axis,) = figure.axes
    assert axis.get_ylabel() == value
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines) == [f"{name}: {spectrum.effective_rank:.1f}" for name, spectrum in spectra.items()]
    for line, spectrum in zip(lines.values(), spectra.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), spectrum.significant)
    assert len({tuple(np.atleast_1d(line.get_color())) for line in axis.lines}) == len(lines)
    save_png(figure, tmp_path / "x.png", dpi=40)


@pytest.mark.parametrize("kernel", [np.zeros((2, 2)), np.ones((1, 1)), np.full((1, 1, 1, 1), 2.0)])
def test_degenerate_kernels_still_draw(tmp_path, kernel):
    file = kernel_file(kernel, labels=tuple("ab"[: len(kernel)]))
    save_png(kernel_figure(file), tmp_path / "x.png", dpi=40)
    save_png(spectrum_figure(file, spectra_of(file)), tmp_path / "y.png", dpi=40)


def test_description():
    assert describe(kernel_file()) == "SGD kernel of tiny, block 0, 2 tokens"
    assert describe(network(kind="sign")) == "sign kernel of tiny, all parameters, 4 sentences"


def test_settings_of_matplotlib_are_left_alone():
    before = dict(matplotlib.rcParams)
    file = network()
    kernel_figure(file)
    spectrum_figure(file, spectra_of(file))
    assert dict(matplotlib.rcParams) == before
