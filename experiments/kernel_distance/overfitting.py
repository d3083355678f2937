"""Section `tokens`: errors on calibration tokens and on held-out ones, against the number of calibration tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.common.figures import hue
from experiments.common.lab import SentenceLab, first, shuffled
from experiments.common.store import Job, Result, number
from experiments.common.tables import ResultTable, Section
from experiments.kernel_distance.bench import ERRORS, Bench, mean_errors
from experiments.kernel_distance.options import describe, known
from ntkfusion.compression.block_errors import Reference
from ntkfusion.compression.registry import METHODS, build_method
from ntkfusion.data.block_inputs import BlockInputs
from ntkfusion.errors import InputError
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.models.blocks.block import Block
from ntkfusion.reporting.plots import RC
from ntkfusion.reporting.summary import format_error, width_label

#: Where errors are measured.
PLACES = ("calibration", "held-out")


def variants(name: str) -> dict[str, str]:
    """Kind of kernel → the method of this family whose constants are matched to it."""
    if f"{name}-sign" in METHODS:
        return {"sgd": name, "sign": f"{name}-sign"}
    return {kind: f"{name}+{kind}" for kind in KINDS}


def tokens_section(bench: Bench) -> Section:
    """Measure what is missing, then table and figure."""
    options = bench.options
    kept = known(tuple(method for name in options.overfitting for method in variants(name).values()), bench.notes)
    families = [name for name in options.overfitting if set(variants(name).values()) <= set(kept)]
    jobs = {(name, count): _job(bench, name, count) for name in families for count in options.counts}
    pair_of = {job.name: pair for pair, job in jobs.items()}
    samples = _Samples(bench)
    done = bench.run("tokens", list(jobs.values()), lambda job: samples.measure(*pair_of[job.name]))
    results = {pair: done[job.name] for pair, job in jobs.items() if job.name in done}
    curves = {name: {count: result for (n, count), result in results.items() if n == name} for name in families}
    curves = {name: curve for name, curve in curves.items() if curve}
    record = {name: {str(count): result for count, result in curve.items()} for name, curve in curves.items()}
    figures = {"calibration_tokens": overfitting_figure(curves)} if curves else {}
    return Section("tokens", (_table(bench, curves),), {"families": record}, figures)


def _job(bench: Bench, name: str, count: int) -> Job:
    options = bench.options
    settings = bench.settings(
        seed=options.seeds[0],
        methods=[describe(method, options.overfitting_width) for method in variants(name).values()],
        tokens=options.tokens,
        count=count,
        of=max(options.counts),
    )
    return Job("tokens", f"seed{options.seeds[0]}_width{options.overfitting_width:g}_{name}_{count}", settings)


class _Samples:
    """Nested samples of the calibration tokens: the first so many of all of them, in random order."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.options = bench, bench.options
        self._lab: SentenceLab | None = None
        self._tokens: BlockInputs | None = None

    def _prepare(self) -> tuple[SentenceLab, BlockInputs]:
        if self._lab is None or self._tokens is None:
            bench, options, seed = self.bench, self.options, self.options.seeds[0]
            self._lab = SentenceLab(bench.model, bench.text, seed, bench.layers, options.tokens, max(options.counts))
            self._tokens = shuffled(self._lab.calibration, seed)
        return self._lab, self._tokens

    def measure(self, name: str, count: int) -> Result:
        """Errors of both variants, where each is matched, on calibration and held-out tokens."""
        lab, tokens = self._prepare()
        sample = first(tokens, count)
        if len(sample.tokens) < count:
            # not an error of the method, but a number that would be wrong
            raise InputError(f"the text has only {len(sample.tokens)} calibration tokens")
        references = {"calibration": lab.references_on(first(sample, self.options.tokens))}
        references["held-out"] = lab.references[""]
        workspace, errors = lab.workspace_on(sample), {}
        for kind, method in variants(name).items():
            blocks = build_method(method, self.options.overfitting_width).compress(lab.blocks, workspace).blocks
            for place in PLACES:
                found = _mean(references[place], blocks)
                errors.setdefault(place, {})[f"{kind}_kernel_error"] = found[f"{kind}_kernel_error"]
                errors[place].setdefault("output_error", found["output_error"])
        return errors


def _mean(references: list[Reference], blocks: Sequence[Block]) -> dict[str, float]:
    return mean_errors([reference.errors(block) for reference, block in zip(references, blocks, strict=True)])


def _table(bench: Bench, curves: Mapping[str, Mapping[int, Result]]) -> ResultTable:
    options = bench.options
    rows = [
        [name, f"{count:,}", *(format_error(number(result[place][error])) for error in ERRORS for place in PLACES)]
        for name, curve in curves.items()
        for count, result in curve.items()
    ]
    columns = tuple(f"{error}, {place}" for error in ("output", "SGD", "sign") for place in PLACES)
    note = (
        f"Relative Frobenius errors on up to {options.tokens} tokens that the method saw, and on {options.tokens} "
        f"held-out ones, means over {len(bench.layers)} layers; constants matched to the SGD kernel, and in a second "
        f"block to the sign kernel. {bench.text.name}; seed {options.seeds[0]}."
    )
    title = f"Overfitting to calibration tokens, width {width_label(options.overfitting_width)}"
    return ResultTable(title, ("method", "tokens", *columns), rows, (note,))


def overfitting_figure(curves: Mapping[str, Mapping[int, Result]]) -> Figure:
    """Errors on calibration tokens (dashed) and held-out ones against the number of calibration tokens.

    Args:
        curves: method → number of tokens → where → error → value.

    Returns:
        A figure of three panels.
    """
    panels = {
        "output_error": "output error",
        "sgd_kernel_error": "SGD kernel error",
        "sign_kernel_error": "sign kernel error",
    }
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12, 4.6))
        axes = list(figure.subplots(1, 3, sharey=True))
        for axis, (error, title) in zip(axes, panels.items(), strict=True):
            for (name, curve), marker in zip(curves.items(), "osD^vP", strict=False):
                for place, style in (("held-out", "-"), ("calibration", "--")):
                    values = [number(result[place][error]) for result in curve.values()]
                    look = {"linestyle": style, "marker": marker, "color": hue(name)}
                    axis.plot(list(curve), values, label=f"{name}, {place}", **look)
            axis.set(title=title, xlabel="calibration tokens", xscale="log")
            counts = sorted({count for curve in curves.values() for count in curve})
            axis.xaxis.set_major_locator(FixedLocator(counts))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1024:g}k" if v >= 1024 else f"{v:g}"))
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel("relative error, mean over layers")
        figure.legend(handles=axes[0].lines, loc="outside lower center", ncols=2, handlelength=3.2)
    return figure
