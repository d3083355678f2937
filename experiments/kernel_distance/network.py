"""Section `network`: does closeness per block become closeness of the whole network's kernel?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array

from experiments.common.correlations import spearman
from experiments.common.store import Job, Result, number
from experiments.common.tables import ResultTable, Section, mark_best
from experiments.kernel_distance.bench import ERRORS, Bench, mean_errors
from experiments.kernel_distance.options import describe, known
from ntkfusion.commands.kernel.problem import NetworkOnText
from ntkfusion.compression.registry import build_method
from ntkfusion.kernels.distance.kernel_distance import relative_error
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.models.model import Model
from ntkfusion.reporting.summary import format_error, width_label
from ntkfusion.utils.memory import memory_limit

#: Group of parameters → pattern of their paths, tried in this order.
GROUPS = {"mlp": "*/mlp/*", "rest": "*"}
#: What is compared with the original: kernels by kind and parameters, and the outputs of the readouts.
NETWORK_ERRORS = ("readouts", *(f"{kind}_{which}" for kind in KINDS for which in ("mlp", "all")))
#: Error of the blocks → the errors of the network that it may foretell.
PAIRS = (
    ("output_error", "readouts"),
    ("output_error", "sgd_mlp"),
    ("output_error", "sgd_all"),
    ("sgd_kernel_error", "sgd_mlp"),
    ("sgd_kernel_error", "sgd_all"),
    ("output_error", "sign_mlp"),
    ("output_error", "sign_all"),
    ("sign_kernel_error", "sign_mlp"),
    ("sign_kernel_error", "sign_all"),
)


def network_section(bench: Bench) -> Section:
    """Measure what is missing, then tables."""
    names = known(bench.options.network_methods, bench.notes)
    jobs = {name: _job(bench, name) for name in names}
    name_of = {job.name: name for name, job in jobs.items()}
    original = _Original(bench)
    done = bench.run("network", list(jobs.values()), lambda job: original.measure(name_of[job.name]))
    results = {name: done[job.name] for name, job in jobs.items() if job.name in done}
    values = {name: _numbers(result) for name, result in results.items()}
    tables = (_table(bench, values), _correlations(values))
    return Section("network", tables, {"methods": results}, {})


def _job(bench: Bench, name: str) -> Job:
    options = bench.options
    settings = bench.settings(
        seed=options.seeds[0],
        method=name,
        options=describe(name, options.network_width),
        tokens=options.tokens,
        calibration_tokens=options.calibration_tokens,
        sentences=options.network_sentences,
        length=options.network_length,
        readouts=options.readouts,
    )
    return Job("network", f"seed{options.seeds[0]}_width{options.network_width:g}_{name}", settings)


class _Original:
    """The original network on some sentences, measured when the first method asks for it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.options = bench, bench.options
        self.seed = bench.options.seeds[0]
        self._found: dict[str, Array] | None = None

    def measure(self, name: str) -> Result:
        """Compress all layers; errors of the blocks, of the readouts and of the network's kernels."""
        lab, method = self.bench.lab(self.seed), build_method(name, self.options.network_width)
        method.check(lab.blocks)
        blocks = method.compress(lab.blocks, lab.workspace).blocks
        pairs = zip(lab.references[""], blocks, strict=True)
        errors = mean_errors([reference.errors(block) for reference, block in pairs])
        if self._found is None:
            self._found = self._of(lab.model)
        new = self._of(lab.model.replace_mlp_blocks(dict(zip(lab.layers, blocks, strict=True))))
        return errors | {which: relative_error(new[which], self._found[which]) for which in NETWORK_ERRORS}

    def _of(self, model: Model) -> dict[str, Array]:
        """The outputs of a network, and its kernels with respect to its own parameters."""
        options = self.options
        problem = NetworkOnText.of(
            model,
            "network",
            self.bench.lab(self.seed).split.held_out[: options.network_sentences],
            max_length=options.network_length,
            readouts=options.readouts,
            seed=self.seed,
        )
        problem = dataclasses.replace(problem, patterns=GROUPS)
        outputs = jax.jit(jax.vmap(problem.f, in_axes=(None, 0)))(problem.params, problem.examples)
        found = {"readouts": outputs}
        for kind in KINDS:
            groups = problem.groups(kind, memory_limit(None))
            found |= {f"{kind}_mlp": groups["mlp"], f"{kind}_all": groups["mlp"] + groups["rest"]}
        return found


def _numbers(result: Result) -> dict[str, float]:
    return {key: number(result[key]) for key in (*ERRORS, *NETWORK_ERRORS)}


def _table(bench: Bench, values: Mapping[str, Mapping[str, float]]) -> ResultTable:
    options, keys = bench.options, (*ERRORS, *NETWORK_ERRORS)
    rows = [[name, *(format_error(numbers[key]) for key in keys)] for name, numbers in values.items()]
    for place, key in enumerate(keys, start=1):
        mark_best(rows, place, [numbers[key] for numbers in values.values()])
    columns = ("method", "blocks: output", "SGD", "sign", "network: readouts", "SGD, MLP", "SGD, all", "sign, MLP")
    note = (
        f"Relative Frobenius errors. Blocks: means over layers, traced kernels on {options.tokens} held-out tokens. "
        f"Network: {options.network_sentences} held-out sentences, {options.readouts} random readouts of the first "
        "token; kernels with respect to each network's own parameters, those of its MLP blocks or all. "
        f"{bench.text.name}; seed {options.seeds[0]}."
    )
    title = f"Networks with {len(bench.layers)} blocks at width {width_label(options.network_width)}"
    return ResultTable(title, (*columns, "sign, all"), rows, (note,))


def _correlations(values: Mapping[str, Mapping[str, float]]) -> ResultTable:
    words = {"output_error": "output of the blocks", "readouts": "readouts of the network"}
    words |= {f"{kind}_kernel_error": f"{kind} kernel of the blocks" for kind in KINDS}
    words |= {
        f"{kind}_{which}": f"{kind} kernel of the network, {which} parameters"
        for kind in KINDS
        for which in ("mlp", "all")
    }
    rows = []
    for block, network in PAIRS:
        pairs = [(numbers[block], numbers[network]) for numbers in values.values()]
        pairs = [pair for pair in pairs if np.isfinite(pair).all()]
        rows.append([words[block], words[network], f"{spearman(pairs):.2f}", str(len(pairs))])
    note = "Spearman's rank correlation over methods; with so few, only large ones say something."
    return ResultTable(
        "Does a close block make a close network?", ("error of", "against error of", "ρ", "n"), rows, (note,)
    )
