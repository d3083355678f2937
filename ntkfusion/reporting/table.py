"""A comparison as tables, experts of mixtures included: Markdown, rich for the terminal, and cells for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from ntkfusion.reporting.results import Comparison
from ntkfusion.reporting.summary import (
    ERRORS,
    Cell,
    answer,
    averaged,
    error_cells,
    error_grid,
    layer_label,
    layers,
    mean_errors,
    methods,
    width_label,
    widths,
)

#: Columns of `expert_cells`.
EXPERT_HEADER = (
    "method",
    "same expert",
    "flipped mass",
    *(f"{label}, {which}" for label in ERRORS.values() for which in ("median expert", "worst")),
)

EXPERTS_NOTE = (
    "Same expert: the share of (held-out token, mixture) pairs whose router chooses the same expert when all compared "
    "layers are compressed at once. Flipped mass: of the probability that the original routers give to the experts "
    "they choose, the share that is with the other pairs. Errors are those of each expert by itself, on the tokens "
    "that are routed to it; experts with fewer than two tokens have none."
)


def expert_cells(comparison: Comparison, width: float) -> list[list[Cell]]:
    """The experts at one width: one row per method, columns as in `EXPERT_HEADER`.

    Args:
        comparison: the results of a model with mixtures of experts.
        width: one of its widths.

    Returns:
        Rows of cells.
    """
    columns = [*_routing(comparison, width), *_errors(comparison, width)]
    names = methods(comparison)
    return [[Cell(name), *(column[i] for column in columns)] for i, name in enumerate(names)]


def _routing(comparison: Comparison, width: float) -> list[list[Cell]]:
    found = {change.method: change for change in comparison.routing if change.width == width}
    changes = [found.get(name) for name in methods(comparison)]
    flipped = np.array([np.nan if change is None else 1 - change.agreement for change in changes])
    mass = np.array([np.nan if change is None else change.flipped_mass for change in changes])
    agreement = [
        Cell(f"{100 * (1 - share):.1f} %" if np.isfinite(share) else "n/a", cell.best)
        for share, cell in zip(flipped, error_cells(flipped), strict=True)
    ]
    return [agreement, error_cells(mass)]


def _errors(comparison: Comparison, width: float) -> list[list[Cell]]:
    columns = []
    for error in ERRORS:
        values = [_of_experts(comparison, width, name, error) for name in methods(comparison)]
        for statistic in (np.median, np.max):
            columns.append(error_cells(np.array([statistic(v) if v.size else np.nan for v in values])))
    return columns


def _of_experts(comparison: Comparison, width: float, method: str, error: str) -> np.ndarray:
    """The errors of all experts of all layers that have one."""
    rows = [row for row in comparison.rows if (row.width, row.method) == (width, method)]
    values = [getattr(expert, error) for row in rows for expert in row.experts or ()]
    return np.array([value for value in values if value is not None], float)


#: Columns of the table with one row per method.
HEADER = ("method", *ERRORS.values(), "parameters kept", "seconds")


def method_cells(comparison: Comparison, width: float) -> list[list[Cell]]:
    """The table of one width: one row per method, means over layers, columns as in `HEADER`.

    Args:
        comparison: the results.
        width: one of its widths.

    Returns:
        Rows of cells.
    """
    errors = [error_cells(values) for values in mean_errors(comparison, width).values()]
    names = methods(comparison)
    return [[Cell(name), *(e[i] for e in errors), *_costs(comparison, width, name)] for i, name in enumerate(names)]


def method_table(comparison: Comparison, width: float) -> str:
    """`method_cells` in Markdown, the best of every error in bold.

    Args:
        comparison: the results.
        width: one of its widths.

    Returns:
        A Markdown table, without a line break at its end.
    """
    return _markdown(HEADER, method_cells(comparison, width))


def layer_table(comparison: Comparison, width: float) -> str:
    """Methods × layers, one Markdown table per kind of error, the best of every layer in bold.

    Args:
        comparison: the results.
        width: one of its widths.

    Returns:
        Three Markdown tables, each under a line that names its error.
    """
    header = ("method", *(f"layer {layer}" for layer in layers(comparison)))
    tables = []
    for error, label in ERRORS.items():
        columns = [error_cells(column) for column in error_grid(comparison, width, error).T]
        rows = [[Cell(name), *(c[i] for c in columns)] for i, name in enumerate(methods(comparison))]
        tables.append(f"{label[0].upper()}{label[1:]} by layer\n\n{_markdown(header, rows)}")
    return "\n\n".join(tables)


def conditions(comparison: Comparison) -> str:
    """The conditions under which the numbers hold, in one line; what is not known is left out.

    Args:
        comparison: the results.

    Returns:
        Plain text, parts separated by a middle dot.
    """
    inputs, environment = comparison.inputs, comparison.environment
    sources = (
        ("{}", model_name(comparison)),
        ("{}", layer_label(layers(comparison))),
        ("text: {}", inputs.get("text")),
        ("{} calibration tokens", number(inputs.get("calibration_tokens"))),
        ("{} held-out tokens", number(inputs.get("held_out_tokens"))),
        ("{} left out that begin like calibration text", number(inputs.get("held_out_tokens_dropped") or None)),
        ("{}", {True: "special tokens included", False: "words only"}.get(inputs.get("special_tokens", ""))),
        ("seed {}", comparison.settings.get("seed")),
        ("{}", environment.get("precision")),
    )
    known = [pattern.format(value) for pattern, value in sources if value is not None and value != ""]
    return " · ".join([*known, "errors: relative Frobenius norms on held-out tokens, kernels traced over outputs"])


def markdown_report(comparison: Comparison, descriptions: Mapping[str, str]) -> str:
    """The text of ``table.md``: the answer, the conditions, a table per width and the layers behind it.

    Args:
        comparison: the results.
        descriptions: method → what it is, in one line.

    Returns:
        Markdown.
    """
    parts = [
        f"# {_plain(model_name(comparison))}: compressed MLP blocks and their kernels",
        _plain(answer(comparison, descriptions)),
        _plain(conditions(comparison)),
    ]
    for width in widths(comparison):
        parts += [f"## Width {width_label(width)}, {averaged(comparison)}", method_table(comparison, width)]
    for width in widths(comparison):
        parts += [f"## Width {width_label(width)}, layer by layer", layer_table(comparison, width)]
    parts += _expert_parts(comparison)
    known = [f"- `{name}`: {_plain(descriptions[name])}" for name in methods(comparison) if name in descriptions]
    if known:
        parts += ["## Methods", "\n".join(known)]
    parts += ["## Repeat it", "\n".join(f"    {line}" for line in comparison.command.splitlines())]
    return "\n\n".join(parts) + "\n"


def _expert_parts(comparison: Comparison) -> list[str]:
    """What became of experts and routing, if the model has any."""
    if not comparison.routing:
        return []
    parts = ["## Experts", EXPERTS_NOTE]
    for width in widths(comparison):
        parts += [f"Width {width_label(width)}", _markdown(EXPERT_HEADER, expert_cells(comparison, width))]
    return parts


def console_table(comparison: Comparison) -> Table:
    """The comparison for the terminal: methods grouped by width, means over layers, the best of each width in bold.

    Args:
        comparison: the results.

    Returns:
        A table for ``rich.print``.
    """
    # narrow enough for 80 columns, which is what a pipe gets: names must not be cut
    table = Table("width", box=HORIZONTALS, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for title in ("output\nerror", "SGD kernel\nerror", "sign kernel\nerror", "params\nkept", "seconds"):
        table.add_column(title, justify="right", vertical="bottom")
    for width in widths(comparison):
        for i, row in enumerate(method_cells(comparison, width)):
            cells = [Text(cell.text, style="bold green" if cell.best else "") for cell in row]
            table.add_row("" if i else width_label(width), *cells)
        table.add_section()
    return table


def model_name(comparison: Comparison) -> str:
    """What to call the model of a comparison."""
    return str(comparison.model.get("name") or comparison.model.get("source") or "model")


def number(value: Any) -> str | None:
    """A count with separators between thousands; anything else as it prints; None stays None."""
    return f"{value:,}" if isinstance(value, int) else None if value is None else str(value)


def _costs(comparison: Comparison, width: float, method: str) -> list[Cell]:
    rows = [row for row in comparison.rows if row.width == width and row.method == method]
    original = sum(row.original_parameters for row in rows)
    kept = sum(row.parameters for row in rows) / original if original else np.nan
    seconds = sum(row.seconds for row in rows) if rows else np.nan
    return [
        Cell(f"{100 * kept:.1f} %" if np.isfinite(kept) else "n/a"),
        Cell(f"{seconds:.2f}" if np.isfinite(seconds) else "n/a"),
    ]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [[f"**{cell.text}**" if cell.best else _plain(cell.text) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
