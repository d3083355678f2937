"""The traced block kernel against neural-tangents, and of many tokens."""

from __future__ import annotations

import numpy as np

from experiments.benchmarks.kernels.options import KernelsOptions
from experiments.benchmarks.kernels.outcome import Entrant, Limits, RaceOutcome, peak, seconds, took, verdict
from experiments.benchmarks.kernels.race import race
from experiments.common.tables import ResultTable, Section
from ntkfusion.utils.memory import parse_size, show_size

IMPLEMENTATIONS = ("structured-derivatives", "ntk-vector-products", "jacobian-contraction")
#: Targets: times faster, part of the memory, bytes for many tokens.
FASTER, PART, MANY = 100, 0.1, 4 * 2**30

#: Calls per turn of ours, which take milliseconds.
CALLS = 5


def against_neural_tangents(options: KernelsOptions) -> Section:
    """Table 1: find neural-tangents' best configuration, then race it against the closed form."""
    sizes = options.block
    problem = sizes.problem(sizes.n, options.seed)
    limits = Limits(parse_size(options.memory_limit), options.time_limit)
    tried = _try_all(options, limits, problem)
    finished = [(outcome.median, entry) for entry, outcome in tried if outcome.ok]
    ours = Entrant("ntkfusion", {"contestant": "block", "kind": "sgd", **problem}, calls=CALLS)
    best = min(finished, key=lambda pair: pair[0])[1] if finished else None
    raced = race([ours, *([best] if best else [])], options.repeats, limits, results=True)
    title = f"Traced block kernel, d={sizes.d}, m={sizes.m}, o={sizes.o}, GELU, N={sizes.n}, float32, SGD"
    search = ResultTable(
        f"{title}: neural-tangents, every configuration once",
        ("configuration", "first call s", "second call s", "peak RSS"),
        [[o.label, seconds(o.first) if o.ok else "–", took(o), peak(o)] for _, o in tried],
    )
    record = {"search": [o.record() for _, o in tried], "race": [o.record() for o in raced]}
    return Section("block", (search, _raced(title, raced, options.repeats)), record)


def _try_all(options: KernelsOptions, limits: Limits, problem: dict[str, int]) -> list[tuple[Entrant, RaceOutcome]]:
    """Every configuration, first and second call; who is three times slower than the best so far is not waited for."""
    tried: list[tuple[Entrant, RaceOutcome]] = []
    for implementation in IMPLEMENTATIONS:
        for size in options.block.batch_sizes:
            if size and problem["n"] % size:
                continue
            how = {"implementation": implementation, "batch_size": size or None}
            label = f"{implementation}, {f'batches of {size}' if size else 'all at once'}"
            entry = Entrant(label, {"contestant": "block-reference", **how, **problem})
            best = min((o.median for _, o in tried if o.ok), default=limits.seconds)
            # the first call compiles, too: half a minute for that
            patience = Limits(limits.memory, min(limits.seconds, 30 + 3 * best))
            tried += [(entry, race([entry], 1, patience)[0])]
    return tried


def _raced(title: str, raced: list[RaceOutcome], repeats: int) -> ResultTable:
    columns = ("", "first call s", "seconds", "peak RSS above baseline", "peak RSS")
    rows = [[o.label, seconds(o.first), took(o), show_size(max(o.above, 0)) if o.ok else "–", peak(o)] for o in raced]
    notes = [f"Medians of {repeats} interleaved runs after the first call. Baseline: libraries, weights and inputs."]
    if len(raced) == 2 and all(o.ok for o in raced):
        notes += _ratios(*raced)
    else:
        notes.append("No configuration of neural-tangents finished within memory and time.")
    return ResultTable(f"{title}: ours against the best of them", columns, rows, tuple(notes))


def _ratios(ours: RaceOutcome, theirs: RaceOutcome) -> list[str]:
    assert ours.result is not None
    assert theirs.result is not None
    faster, part = theirs.median / ours.median, ours.above / max(theirs.above, 1)
    difference = float(np.linalg.norm(ours.result - theirs.result) / np.linalg.norm(theirs.result))
    return [
        f"Time: {faster:.0f} times faster (target ≥ {FASTER}: {'yes' if faster >= FASTER else 'NO'}).",
        f"Memory above the baseline (libraries, weights, inputs): {verdict(part, PART)} of theirs, what the first call "
        f"takes to compile included; whole processes: {ours.peak / theirs.peak:.2f}.",
        f"Relative difference of the kernels: {difference:.1e}.",
    ]


def many_tokens(options: KernelsOptions) -> Section:
    """Table 2: the kernel of many tokens, SGD and sign."""
    sizes = options.block
    problem = sizes.problem(sizes.tokens, options.seed)
    limits = Limits(parse_size(options.memory_limit), options.time_limit)
    entries = [Entrant(kind, {"contestant": "block", "kind": kind, **problem}) for kind in ("sgd", "sign")]
    raced = race(entries, options.repeats, limits)
    rows = [
        [o.label, seconds(o.first), took(o), verdict(o.peak / 2**30, MANY / 2**30) if o.ok else peak(o)] for o in raced
    ]
    table = ResultTable(
        f"Traced block kernel of N={sizes.tokens} tokens, d={sizes.d}, m={sizes.m}, o={sizes.o}, GELU, float32",
        ("kind", "first call s", "seconds", "peak RSS of the process, GiB"),
        rows,
        (f"Medians of {options.repeats} interleaved runs after the first call.",),
    )
    return Section("tokens", (table,), {"race": [o.record() for o in raced]})
