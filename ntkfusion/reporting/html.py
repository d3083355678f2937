"""Self-contained web pages: no scripts, no requests, pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

from matplotlib.figure import Figure

from ntkfusion.reporting.plots import DPI, save_png

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
