"""Everything a comparison leaves behind, written into one folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ntkfusion.reporting.answer import reference_width
from ntkfusion.reporting.heatmaps import kernel_heatmaps
from ntkfusion.reporting.page import html_page
from ntkfusion.reporting.plots import error_by_layer, error_by_width, save_png
from ntkfusion.reporting.results import Comparison, KernelGallery
from ntkfusion.reporting.table import markdown_report


def write_report(
    comparison: Comparison, descriptions: Mapping[str, str], galleries: Sequence[KernelGallery], folder: Path
) -> None:
    """Write ``results.json``, ``table.md``, the pictures as PNG and ``index.html``.

    Args:
        comparison: the results, with at least one row.
        descriptions: method → what it is, in one line.
        galleries: kernels to show; their pictures carry layer and width in their names if there are several galleries.
        folder: an existing folder; files of the same names are overwritten.

    Raises:
        InputError: if the comparison has no rows, or a gallery has no original kernel.
    """
    figures = dict(_figures(comparison, galleries))
    (folder / "results.json").write_text(comparison.to_json(), encoding="utf-8")
    (folder / "table.md").write_text(markdown_report(comparison, descriptions), encoding="utf-8", errors="replace")
    for name, figure in figures.items():
        save_png(figure, folder / f"{name}.png")
    pictures = {name: (folder / f"{name}.png").read_bytes() for name in figures}
    (folder / "index.html").write_text(html_page(comparison, descriptions, pictures), "utf-8", "replace")


def _figures(comparison: Comparison, galleries: Sequence[KernelGallery]) -> Iterator[tuple[str, Figure]]:
    width = reference_width(comparison)
    yield "error_by_width", error_by_width(comparison)
    yield "error_by_layer", error_by_layer(comparison, width)
    for gallery in galleries:
        which = f"_layer{gallery.layer}_width{gallery.width:g}" if len(galleries) > 1 else ""
        for kind in gallery.kernels:
            yield f"kernels_{kind}{which}", kernel_heatmaps(gallery, kind)
