"""Self-contained web pages: no scripts, no requests, pictures inside; and the page and folder of a comparison."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from ntkfusion.reporting.kernel_plots import kernel_heatmaps
from ntkfusion.reporting.plots import DPI, error_by_layer, error_by_width, save_png
from ntkfusion.reporting.results import Comparison, KernelGallery
from ntkfusion.reporting.summary import (
    Cell,
    answer,
    averaged,
    join,
    layer_label,
    layers,
    methods,
    reference_width,
    width_label,
    widths,
)
from ntkfusion.reporting.table import (
    EXPERT_HEADER,
    EXPERTS_NOTE,
    HEADER,
    conditions,
    expert_cells,
    markdown_report,
    method_cells,
    model_name,
    number,
)

_CSS = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #5a656d; --line: #d9dee2; --ground: #fbfbfa; --card: #f0f3f5;
  --accent: #0b5c8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ea; --soft: #a3adb4; --line: #384048; --ground: #15191c;
  --card: #1f252a; --accent: #7cc0ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.2rem 4rem; max-width: 70rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.6 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 .8rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; }
p, ul, dl { max-width: 46rem; }
.answer { font-size: 1.2rem; line-height: 1.5; border-left: .25rem solid var(--accent); margin: 1.6rem 0;
  padding: .2rem 0 .2rem 1rem; }
figure { margin: 1.5rem 0 2rem; }
.picture { background: #fff; border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; overflow-x: auto; }
.picture img { display: block; min-width: 40rem; max-width: 100%; height: auto; margin: 0 auto; }
figcaption, .soft { color: var(--soft); font-size: .92rem; max-width: 46rem; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 34rem; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 1rem 0 .3rem; }
th, td { text-align: right; padding: .3rem clamp(.4rem, 1.5vw, .9rem); border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; font-weight: 400; white-space: nowrap; }
td.best { font-weight: 700; color: var(--accent); }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; }
pre { background: var(--card); border-radius: .4rem; padding: .9rem 1rem; overflow-x: auto; font-size: .9rem; }
"""


def html_document(title: str, sections: Iterable[str]) -> str:
    """A complete HTML document.

    Args:
        title: of the page, plain text.
        sections: its body, HTML.

    Returns:
        The text of the file.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style>"
    )
    body = "\n".join(sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def html_figure(label: str, figure: Figure | bytes, caption: str) -> str:
    """A picture inside the page, with its caption.

    Args:
        label: what it shows, for those who cannot see it.
        figure: the figure, or the bytes of a PNG file.
        caption: the text below it.

    Returns:
        HTML.
    """
    if isinstance(figure, Figure):
        buffer = io.BytesIO()
        save_png(figure, buffer, DPI)
        figure = buffer.getvalue()
    image = f'<img alt="{escape(label)}" src="data:image/png;base64,{base64.b64encode(figure).decode("ascii")}">'
    return f'<figure><div class="picture">{image}</div><figcaption>{escape(caption)}</figcaption></figure>'


_CAPTIONS = {
    "error_by_width": "What is lost at each width, averaged over layers; lower is better. The grey line at 1 is the "
    "error of zeros in place of the output or kernel. Methods that compute the same function share one line on the "
    "left. Where the scale is logarithmic, errors below 0.001 are drawn at 0.001.",
    "error_by_layer": "The same errors layer by layer: a method can be good on average and fail in one layer.",
    "kernels_sgd": "Rows and columns are tokens; an entry says how strongly a step of gradient descent on one token "
    "moves the block's output at the other. All panels share the original's colour scale, so a good method's panel "
    "looks like the original, and one whose kernel has left the scale is a single colour. The error over a panel is "
    "that of the words shown here.",
    "kernels_sign": "The same for the sign of the gradient, the direction in which Adam moves at its first steps. "
    "This kernel need not be symmetric.",
}

_READING = """
<p>Every error is a relative Frobenius norm, <em>‖compressed − original‖ / ‖original‖</em>, on tokens that no method has
seen: 0 is the original itself, 1 is as far from it as all zeros, and there is no upper limit.</p>
<ul>
<li><strong>Output error</strong>: does the compressed block still compute the same outputs?</li>
<li><strong>SGD kernel error</strong>: does it still move the same way in a small step of gradient descent? The
kernel is ⟨∇f(x), ∇f(z)⟩, averaged over the block's outputs.</li>
<li><strong>Sign kernel error</strong>: the same for steps along the sign of the gradient, ⟨∇f(x), sign ∇f(z)⟩, as
Adam takes them at first.</li>
<li><strong>Parameters kept</strong>: trainable numbers of the compressed blocks, as a share of the original ones.</li>
<li><strong>Seconds</strong>: time to compress all layers, compilation included.</li>
</ul>
"""


def html_page(comparison: Comparison, descriptions: Mapping[str, str], figures: Mapping[str, Figure | bytes]) -> str:
    """The text of ``index.html``.

    Args:
        comparison: the results.
        descriptions: method → what it is, in one line.
        figures: file name without its ending (``error_by_width`` ...) → figure or PNG bytes, in the order shown.

    Returns:
        A complete HTML document.
    """
    title = f"{model_name(comparison)}, compressed: what its MLP blocks kept"
    known = [
        f"<dt>{escape(n)}</dt><dd>{escape(descriptions[n])}</dd>" for n in methods(comparison) if n in descriptions
    ]
    verdict = answer(comparison, descriptions)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_scope(comparison))}</p>",
        f'<p class="answer">{escape(verdict)}</p>',
        *(_figure(name, figure) for name, figure in figures.items()),
        "<h2>The numbers</h2>",
        f'<p class="soft">Errors {escape(averaged(comparison))}; the best of each column is bold.</p>',
        *(_table(HEADER, method_cells(comparison, width), width) for width in widths(comparison)),
        *_experts(comparison),
        "<h2>How to read the errors</h2>",
        _READING,
        *(["<h2>The methods</h2>", f"<dl>{''.join(known)}</dl>"] if known else []),
        "<h2>Conditions</h2>",
        f"<p>{escape(conditions(comparison))}</p><p>{escape(_environment(comparison))}</p>",
        f"<h2>Repeat it</h2>\n<pre>{escape(comparison.command)}</pre>",
    ]
    return html_document(title, sections)


def _scope(comparison: Comparison) -> str:
    """What was compared, in two sentences; what is not known is left out."""
    model, inputs = comparison.model, comparison.inputs
    parts = (
        ("{}", model.get("architecture")),
        ("{} layers", number(model.get("num_layers"))),
        ("model width {}", number(model.get("model_width"))),
        ("hidden width {}", number(model.get("hidden_width"))),
        ("{} parameters", number(model.get("num_parameters"))),
        ("{} of them in its MLP blocks", number(model.get("mlp_parameters"))),
    )
    facts = ", ".join(pattern.format(value) for pattern, value in parts if value is not None)
    count = len(methods(comparison))
    text = (
        f"{f'{count} methods' if count > 1 else 'One method'} made the MLP blocks in {layer_label(layers(comparison))} "
    )
    text += f"of {model_name(comparison)}{f' ({facts})' if facts else ''} smaller, to "
    text += f"{join(map(width_label, widths(comparison)))} of their neurons."
    seen, held = number(inputs.get("calibration_tokens")), number(inputs.get("held_out_tokens"))
    if seen is None or held is None:
        return text
    source = inputs.get("text", "the text")
    return (
        f"{text} Every error is measured on {held} tokens (text: {source}) from sentences that no method saw; {seen} "
        "tokens of other sentences were there for methods that look at text."
    )


def _environment(comparison: Comparison) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in comparison.environment.items() if value is not None)
    return f"Run with {facts or 'unknown versions'}; {comparison.seconds:.1f} seconds in all."


def _figure(name: str, figure: Figure | bytes) -> str:
    caption = next((text for start, text in _CAPTIONS.items() if name.startswith(start)), name)
    return html_figure(name.replace("_", " "), figure, caption)


def _experts(comparison: Comparison) -> list[str]:
    """What became of experts and routing, if the model has any."""
    if not comparison.routing:
        return []
    tables = (_table(EXPERT_HEADER, expert_cells(comparison, width), width) for width in widths(comparison))
    return ["<h2>The experts</h2>", f'<p class="soft">{escape(EXPERTS_NOTE)}</p>', *tables]


def _table(header: Sequence[str], rows: Sequence[list[Cell]], width: float) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join(f"<tr>{_row(cells)}</tr>" for cells in rows)
    caption = f"<caption>Width {escape(width_label(width))}</caption>"
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _row(cells: list[Cell]) -> str:
    name, *values = cells
    marks = ("".join((' class="best"' if cell.best else "", ">", escape(cell.text))) for cell in values)
    return f'<th scope="row">{escape(name.text)}</th>' + "".join(f"<td{mark}</td>" for mark in marks)


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
