"""What ``ntkfusion verify`` prints and writes: a table, and a report with figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ntkfusion.commands.protocol import print_lines
from ntkfusion.commands.verify.figures import curve_figure, has_scatter, has_tightness, scatter_figure, tightness_figure
from ntkfusion.commands.verify.run import Finding, Verification
from ntkfusion.reporting.html import html_document, html_figure
from ntkfusion.reporting.plots import save_png
from ntkfusion.utils.files import Json
from ntkfusion.verification.outcome import CheckRow

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
    console.print(verification_table(result))
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
