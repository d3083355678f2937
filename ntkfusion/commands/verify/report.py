"""What ``ntkfusion verify`` prints and writes: a table, and a report with figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from ntkfusion.commands.protocol import print_lines
from ntkfusion.commands.verify.run import Finding, Verification
from ntkfusion.reporting.page import html_document, html_figure
from ntkfusion.reporting.plots import RC, save_png
from ntkfusion.reporting.summary import width_label
from ntkfusion.utils.console_tables import print_table
from ntkfusion.utils.files import Json
from ntkfusion.verification.outcome import CheckCurve, CheckOutcome, CheckRow

#: At most so many points of one form are drawn, spread over its order.
MOST_POINTS = 4000

#: Of the smallest measured numbers this share, where differences happen to cancel, is outside the picture.
OUTSIDE = 0.005

_DASHES = ("-", "--", ":", "-.")

_MARKERS = ("o", "s", "^", "D", "v", "P")

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B5468B", "#7A6A00", "#444444", "#56B4E9", "#E69F00")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def form_of(row: CheckRow) -> str:
    """What is compared: the end of a row's name that is no layer, width or residual, such as the form of a bound."""
    parts = [part for part in row.case.split(", ") if not re.search(r"\b(layer|width|residual) [\d.e-]+$", part)]
    return parts[-1] if parts else row.case


def has_scatter(outcome: CheckOutcome) -> bool:
    """Whether some comparison has several numbers, with a bound that is not just a tolerance."""
    return bool(_clouds(outcome))


def has_tightness(outcome: CheckOutcome) -> bool:
    """Whether some comparison belongs to a layer and has a ratio."""
    return any(row.layer is not None and row.ratio == row.ratio for row in outcome.rows)


def scatter_figure(outcome: CheckOutcome) -> Figure:
    """Every comparison's numbers against their bounds, a colour per form, on logarithmic axes with the diagonal."""
    clouds = _clouds(outcome)
    with matplotlib.rc_context(RC):
        figure = _figure(9.0, 6.0)
        axes = figure.subplots()
        for number, (form, (measured, bound)) in enumerate(clouds.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            axes.scatter(measured, bound, s=4, alpha=0.35, linewidths=0, color=colour, label=form, rasterized=True)
        everything = np.concatenate([measured for measured, _ in clouds.values()])
        low, high = np.quantile(everything, OUTSIDE) / 2, 2 * everything.max()
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(bottom=low)
        axes.plot([low, high], [low, high], color="black", linewidth=1, label="bound = measured")
        axes.set_xlabel("measured")
        axes.set_ylabel("bound")
        _legend(figure, axes)
        return figure


def _clouds(outcome: CheckOutcome) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By form, the measured numbers above 0 with their bounds."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for row in outcome.rows:
        positive = (row.measured > 0) & (row.bound > 0) & np.isfinite(row.bound)
        if not (row.exact or row.at_least) and row.count > 1 and positive.any():
            found.setdefault(form_of(row), []).append((row.measured[positive], row.bound[positive]))
    clouds = {}
    for form, parts in found.items():
        measured, bound = (np.concatenate(side) for side in zip(*parts, strict=True))
        step = max(1, measured.size // MOST_POINTS)
        clouds[form] = (measured[::step], bound[::step])
    return clouds


def tightness_figure(outcome: CheckOutcome) -> Figure:
    """Median of bound / measured by layer: a panel per model, a colour per form, a line style per width."""
    models: dict[str, list[CheckRow]] = {}
    for row in outcome.rows:
        if row.layer is not None and row.ratio == row.ratio:
            models.setdefault(row.case.split(", ", 1)[0], []).append(row)
    names = list(dict.fromkeys(_line_of(row) for rows in models.values() for row in rows))
    widths = sorted({row.width for rows in models.values() for row in rows if row.width is not None})
    with matplotlib.rc_context(RC):
        figure = _figure(max(7.0, 4.5 * len(models) + 2), 5.0)
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(panels, models.items(), strict=True):
            _tightness_panel(axes, rows, names, widths)
            axes.set_title(name)
        panels[0].set_ylabel("bound / measured (median)")
        handles = [Line2D([], [], label=name, **_style(number)) for number, name in enumerate(names)]
        if len(widths) > 1:
            lines = zip(_DASHES, widths, strict=False)
            handles += [
                Line2D([], [], color="black", ls=ls, label=f"width {width_label(width)}") for ls, width in lines
            ]
        figure.legend(handles=handles, loc="outside right upper", fontsize=9, handlelength=3)
        return figure


def _line_of(row: CheckRow) -> str:
    """A row's name without the model in front, layer and width."""
    parts = [part for part in row.case.split(", ")[1:] if not re.search(r"\b(layer|width) [\d.e-]+$", part)]
    return ", ".join(parts)


def _style(number: int) -> dict[str, Any]:
    return {"marker": _MARKERS[number % len(_MARKERS)], "color": _COLOURS[number % len(_COLOURS)]}


def _tightness_panel(axes: Axes, rows: list[CheckRow], names: list[str], widths: list[float]) -> None:
    for number, name in enumerate(names):
        for place, width in enumerate(widths or [None]):
            line = sorted((row.layer or 0, row.ratio) for row in rows if (_line_of(row), row.width) == (name, width))
            if line:
                axes.plot(*zip(*line, strict=True), ls=_DASHES[place % len(_DASHES)], **_style(number))
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.1)
    axes.set_xlabel("layer")


def curve_figure(curve: CheckCurve) -> Figure:
    """Lines on top of each other, later ones dashed so that earlier ones show through."""
    with matplotlib.rc_context(RC):
        figure = _figure(9.0, 5.0)
        axes = figure.subplots()
        for number, (name, (x, y)) in enumerate(curve.lines.items()):
            style: dict[str, Any] = {"linewidth": 2.8 - 0.3 * min(number, 5), "color": _COLOURS[number % len(_COLOURS)]}
            axes.plot(x, y, _DASHES[number % 4], label=name, **style)
        if curve.log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_title(curve.title)
        axes.set_xlabel(curve.x)
        axes.set_ylabel(curve.y)
        _legend(figure, axes)
        return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """To the right of the panels, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right upper", fontsize=9, handlelength=3)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
            if isinstance(handle, PathCollection):
                handle.set_sizes([25])
    for text in legend.get_texts():
        text.set_parse_math(False)


_HEADER = ("check", "numbers", "rows", "controls that fail", "bound / measured", "seconds", "")


def finding_cells(finding: Finding) -> list[str]:
    """One line of the table."""
    outcome = finding.outcome
    failing = sum(control.failed for control in outcome.controls)
    ratios = sorted(row.ratio for row in outcome.rows if row.ratio == row.ratio)
    middle = f"{ratios[len(ratios) // 2]:.3g}" if ratios else "–"
    return [
        finding.check.name,
        f"{sum(row.count for row in outcome.rows):,}",
        str(len(outcome.rows)),
        f"{failing} of {len(outcome.controls)}",
        middle,
        f"{finding.seconds:.1f}",
        "PASS" if outcome.passed else "FAIL",
    ]


def verification_table(verification: Verification) -> Table:
    """One line per check."""
    table = Table(title="Theory checks", title_justify="left")
    for name in _HEADER:
        table.add_column(name, justify="left" if name in ("check", "") else "right")
    for finding in verification.findings:
        table.add_row(*finding_cells(finding))
    return table


def show(result: Verification, console: Console) -> None:
    """Print the table, everything that went wrong and where the report is."""
    print_table(console, verification_table(result))
    failures = (f"{found.check.name}: {failure}" for found in result.findings for failure in found.outcome.failures)
    print_lines(console, *failures, f"Report: {result.plan.output.folder / 'index.html'}")


def write(result: Verification, folder: Path) -> None:
    """Write ``results.json``, ``report.md``, the figures as PNG and ``index.html`` into an existing folder."""
    figures = dict(_figures(result))
    for name, (figure, _) in figures.items():
        save_png(figure, folder / f"{name}.png")
    (folder / "results.json").write_text(json.dumps(_numbers(result), indent=1), encoding="utf-8")
    (folder / "report.md").write_text(_markdown(result, figures), encoding="utf-8")
    (folder / "index.html").write_text(_page(result, figures, folder), encoding="utf-8")


def _figures(verification: Verification) -> Iterator[tuple[str, tuple[Figure, str]]]:
    """File name → figure and caption."""
    for finding in verification.findings:
        name, outcome = finding.check.name, finding.outcome
        if has_tightness(outcome):
            caption = f"{name}: how loose the bounds are, by layer and width."
            yield f"{name}-tightness", (tightness_figure(outcome), caption)
        if has_scatter(outcome):
            caption = f"{name}: measured against bound. Nothing may lie below the diagonal."
            yield f"{name}-scatter", (scatter_figure(outcome), caption)
        for number, curve in enumerate(outcome.curves):
            yield f"{name}-curve{number}", (curve_figure(curve), f"{name}: {curve.title}")


def _numbers(verification: Verification) -> Json:
    return {"conditions": verification.conditions, "checks": [_finding_numbers(each) for each in verification.findings]}


def _finding_numbers(finding: Finding) -> Json:
    rows = [
        {
            "case": row.case,
            "layer": row.layer,
            "width": row.width,
            "compared": row.count,
            "of": row.of,
            "relation": "at least" if row.at_least else "at most",
            "measured": None if row.worst is None else float(row.measured[row.worst]),
            "bound": None if row.worst is None else float(row.bound[row.worst]),
            "median_ratio": None if row.ratio != row.ratio else row.ratio,
            "violations": row.violations,
        }
        for row in finding.outcome.rows
    ]
    return {
        "check": finding.check.name,
        "statement": finding.check.statement,
        "passed": finding.outcome.passed,
        "seconds": finding.seconds,
        "rows": rows,
        "controls": [{"name": control.name, "failed": control.failed} for control in finding.outcome.controls],
        "facts": finding.outcome.facts,
    }


def _row_cells(finding: Finding) -> list[list[str]]:
    cells = []
    for row in finding.outcome.rows:
        at = row.worst
        measured, bound = ("–" if at is None else f"{values[at]:.3e}" for values in (row.measured, row.bound))
        ratio = "–" if row.ratio != row.ratio else f"{row.ratio:.3g}"
        relation = "≥" if row.at_least else "≤"
        cells.append([row.case, measured, f"{relation} {bound}", ratio, f"{row.count} {row.of}", _word(row)])
    return cells


def _word(row: CheckRow) -> str:
    return "holds" if row.holds else f"FAILS ({row.violations})"


_ROW_HEADER = ("case", "largest measured", "its bound", "median bound / measured", "compared", "")


def _markdown_table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def _markdown(verification: Verification, figures: dict[str, tuple[Figure, str]]) -> str:
    cells = [finding_cells(finding) for finding in verification.findings]
    parts = ["# Theory checks", _conditions(verification), _markdown_table(_HEADER, cells)]
    for finding in verification.findings:
        parts += [
            f"## {finding.check.name}",
            finding.check.statement,
            _markdown_table(_ROW_HEADER, _row_cells(finding)),
        ]
        parts += ["\n".join(f"- {line}" for line in _lines(finding))]
        parts += [f"![{caption}]({name}.png)" for name, (_, caption) in figures.items() if _belongs(name, finding)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _belongs(figure: str, finding: Finding) -> bool:
    return figure.rsplit("-", 1)[0] == finding.check.name


def _lines(finding: Finding) -> list[str]:
    """Facts, controls and failures in words."""
    outcome = finding.outcome
    facts = [f"{name}: {text}" for name, text in outcome.facts.items()]
    controls = [
        f"control {'fails, as it must' if control.failed else 'PASSES, which it must not'}: {control.name}"
        for control in outcome.controls
    ]
    return facts + controls + [f"FAIL: {failure}" for failure in outcome.failures]


def _conditions(verification: Verification) -> str:
    facts = verification.conditions
    models = ", ".join(facts["models"]) or "no real model"
    environment = facts["environment"]
    return (
        f"`{facts['command']}` · {models} · seed {facts['seed']} · {environment['precision']} · "
        f"ntkfusion {environment['ntkfusion']}, JAX {environment['jax']}, Python {environment['python']}"
    )


def _page(verification: Verification, figures: dict[str, tuple[Figure, str]], folder: Path) -> str:
    failed = [finding.check.name for finding in verification.findings if not finding.outcome.passed]
    verdict = f"FAIL: {', '.join(failed)}" if failed else "Every statement holds, and every control fails as it must."
    cells = [finding_cells(finding) for finding in verification.findings]
    sections = ["<h1>Theory checks</h1>", f'<p class="answer">{escape(verdict)}</p>', _html_table(_HEADER, cells)]
    for finding in verification.findings:
        sections += [f"<h2>{escape(finding.check.name)}</h2>", f"<p>{escape(finding.check.statement)}</p>"]
        sections += [_html_table(_ROW_HEADER, _row_cells(finding))]
        sections += ["<ul>" + "".join(f"<li>{escape(line)}</li>" for line in _lines(finding)) + "</ul>"]
        for name, (_, caption) in figures.items():
            if _belongs(name, finding):
                sections.append(html_figure(name, (folder / f"{name}.png").read_bytes(), caption))
    sections += ["<h2>Conditions</h2>", f"<p>{escape(_conditions(verification))}</p>"]
    return html_document("Theory checks", sections)


def _html_table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join(
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for tag, cell in _tagged(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _tagged(row: list[str]) -> Iterator[tuple[str, str]]:
    """The first cell of a line names it."""
    for index, cell in enumerate(row):
        yield ("td" if index else "th"), cell
