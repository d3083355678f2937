"""Section `tradeoff`: one set of constants for both kernels, from one end of the curve to the other."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from experiments.common.figures import hue, show_logarithmic
from experiments.common.store import Job, Result, number, stored_repr
from experiments.common.tables import ResultTable, Section
from experiments.kernel_distance.bench import Bench, mean_errors
from ntkfusion.compression.matching.constants import match_both
from ntkfusion.compression.methods.ntk_fusion import NTKFusion, some_inputs
from ntkfusion.reporting.plots import RC
from ntkfusion.reporting.summary import format_error, width_label

#: Weights of the SGD kernel's squared relative error; the sign kernel has the rest.
SHARES = (1.0, 0.99, 0.97, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.03, 0.01, 0.0)


def tradeoff_section(bench: Bench) -> Section:
    """Measure the curve of `ntk-fusion`, then table and figure."""
    options, width = bench.options, bench.options.overfitting_width
    settings = bench.settings(
        seed=options.seeds[0],
        options=stored_repr(NTKFusion(width)),
        shares=SHARES,
        tokens=options.tokens,
        calibration_tokens=options.calibration_tokens,
    )
    job = Job("tradeoff", f"seed{options.seeds[0]}_width{width:g}_ntk-fusion", settings)
    result = bench.run("tradeoff", [job], lambda _: _measure(bench, NTKFusion(width)))[job.name]
    return Section("tradeoff", (_table(bench, result),), result, {"tradeoff": tradeoff_figure(result["curve"])})


def _measure(bench: Bench, method: NTKFusion) -> Result:
    """Errors on held-out tokens for every share, means over layers; the student of a layer is made once."""
    lab = bench.lab(bench.options.seeds[0])
    students = method.compress(lab.blocks, lab.workspace).blocks
    rows: dict[float, list[dict[str, float]]] = {share: [] for share in SHARES}
    for place, (student, original) in enumerate(zip(students, lab.blocks, strict=True)):
        tokens = some_inputs(lab.workspace.inputs(place), method.matching_tokens, lab.workspace.key("matching", place))
        curve = match_both(student, original, tokens, sgd_shares=SHARES)
        for share, matched in zip(SHARES, curve, strict=True):
            rows[share].append(lab.references[""][place].errors(matched.block))
    return {"curve": [{"sgd_share": share, **mean_errors(found)} for share, found in rows.items()]}


def _table(bench: Bench, result: Result) -> ResultTable:
    options = bench.options
    rows = [
        [f"{point['sgd_share']:g}", *(format_error(number(point[f"{kind}_kernel_error"])) for kind in ("sgd", "sign"))]
        for point in result["curve"]
    ]
    output = format_error(number(result["curve"][0]["output_error"]))
    note = (
        f"ntk-fusion at width {width_label(options.overfitting_width)}; the function is the same in all rows, so is "
        f"the output error, {output}. Relative errors on {options.tokens} held-out tokens, means over "
        f"{len(bench.layers)} layers, seed {options.seeds[0]}. {bench.text.name}."
    )
    return ResultTable("One set of constants for both kernels", ("ω", "SGD kernel", "sign kernel"), rows, (note,))


def tradeoff_figure(curve: Sequence[Result]) -> Figure:
    """SGD kernel error against sign kernel error along the curve, both logarithmic, each point with its ω.

    Args:
        curve: points with "sgd_share", "sgd_kernel_error" and "sign_kernel_error".

    Returns:
        A figure of one panel.
    """
    points = [(number(point["sgd_kernel_error"]), number(point["sign_kernel_error"])) for point in curve]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6.5, 4.2))
        axis = figure.subplots()
        axis.plot(*zip(*points, strict=True), marker="o", color=hue("ntk-fusion"))
        for point, place in zip(curve, points, strict=True):
            if 0.95 < point["sgd_share"] < 1:  # too close to ω = 1 for a label
                continue
            label = f"ω = {point['sgd_share']:g}"
            axis.annotate(label, place, xytext=(6, 4), textcoords="offset points", fontsize=8)
        axis.set(xlabel="SGD kernel error", ylabel="sign kernel error")
        show_logarithmic(axis)
        axis.set_title("One set of constants for both kernels")
    return figure
