"""The exact kernel of a BERT-base-sized network: against the machine's matmul rate, jacrev and neural-tangents."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import ntkfusion as nf
from experiments.benchmarks.kernels.operations import CountedSizes, network_operations
from experiments.benchmarks.kernels.options import KernelsOptions, NetworkSizes
from experiments.benchmarks.kernels.outcome import Entrant, Limits, RaceOutcome, peak, seconds, took, verdict
from experiments.benchmarks.kernels.race import race
from experiments.common.tables import ResultTable, Section
from ntkfusion.models.model import abstract_params
from ntkfusion.utils.memory import parse_size, show_size

#: Targets: time over floor, and bytes.
FLOORS, BYTES = {"sgd": 2.5, "sign": 4.0}, 8 * 2**30
#: Side of the square product.
SQUARE = 2048
#: Products per turn; the best of all turns counts.
CALLS = 5


def network_section(options: KernelsOptions) -> Section:
    """Table 3."""
    sizes = options.network
    limits = Limits(parse_size(sizes.memory), options.time_limit)
    ours, products = _race_ours(sizes, options, limits)
    rates = {o.label: _rate(o, shape) for o, shape in zip(products, _shapes(sizes), strict=True) if o.ok}
    peers = list(_peers(sizes, options, limits))
    counted = xla_count(sizes)
    record = {
        "ours": [o.record() for o in ours],
        "operations": {o.label: vars(network_operations(_counted(sizes), o.label)) for o in ours},
        "xla_forward_backward": counted,
        "rates": rates,
        "peers": [o.record() for o in peers],
    }
    title = (
        f"Network kernel: {sizes.layers} layers, d={sizes.d}, m={sizes.m}, C={sizes.outputs}, N={sizes.n}, T={sizes.t}"
    )
    tables = (_ours_table(title, ours, rates, counted, sizes, options), _peer_table(title, ours[0], peers, sizes))
    return Section("network", tables, record)


def _race_ours(
    sizes: NetworkSizes, options: KernelsOptions, limits: Limits
) -> tuple[list[RaceOutcome], list[RaceOutcome]]:
    told, problem = parse_size(sizes.told), sizes.problem(options.seed)
    entries = [
        Entrant(kind, {"contestant": "network", "kind": kind, "memory_limit": told, **problem}) for kind in FLOORS
    ]
    for shape in _shapes(sizes):
        entries.append(Entrant("×".join(map(str, shape)), {"contestant": "matmul", "shape": shape}, calls=CALLS))
    outcomes = race(entries, options.repeats, limits, results=True)
    return outcomes[: len(FLOORS)], outcomes[len(FLOORS) :]


def _shapes(sizes: NetworkSizes) -> list[tuple[int, int, int]]:
    return [(SQUARE, SQUARE, SQUARE), (sizes.n * sizes.t, sizes.d, sizes.m)]


def _rate(outcome: RaceOutcome, shape: tuple[int, int, int]) -> float:
    return 2 * float(np.prod(np.array(shape, float))) / min([outcome.first, *outcome.seconds])


def _counted(sizes: NetworkSizes) -> CountedSizes:
    return CountedSizes(sizes.layers, sizes.d, sizes.m, sizes.outputs, sizes.n, sizes.t)


def xla_count(sizes: NetworkSizes) -> float | None:
    """XLA's own count for one forward pass and C backward passes to the word embeddings; it runs nothing."""
    config = nf.BertConfig(**sizes.problem(0)["config"])
    params = abstract_params(config)
    model = nf.Model(config, params)

    def both(params: PyTree, embedded: Array) -> tuple[Array, PyTree]:
        ids = jnp.zeros(embedded.shape[:2], jnp.int32)

        def logits_of(states: Array) -> Array:
            logits = model.apply(params, inputs_embeds=states, attention_mask=ids + 1).logits
            assert logits is not None
            return logits

        logits, pullback = jax.vjp(logits_of, embedded)
        units = jnp.broadcast_to(jnp.eye(sizes.outputs)[:, None], (sizes.outputs, *logits.shape))
        return logits, jax.vmap(pullback)(units)

    embedded = jax.ShapeDtypeStruct((sizes.n, sizes.t, sizes.d), jnp.float32)
    analysis = jax.jit(both).lower(params, embedded).cost_analysis()
    return None if analysis is None else float(analysis["flops"])


def _ours_table(
    title: str,
    ours: list[RaceOutcome],
    rates: dict[str, float],
    counted: float | None,
    sizes: NetworkSizes,
    options: KernelsOptions,
) -> ResultTable:
    rate = max(rates.values(), default=float("nan"))
    rows = [_ours_row(outcome, network_operations(_counted(sizes), outcome.label).total, rate) for outcome in ours]
    measured = ", ".join(f"{label}: {value / 1e9:.1f} GFLOP/s" for label, value in rates.items())
    return ResultTable(
        f"{title}, all parameters, float32",
        ("kind", "first call s", "seconds", "compiling apart", "GFLOP", "floor s", "seconds / floor", "peak RSS"),
        rows,
        (
            f"Medians of {options.repeats} runs after the first call, in turn with products at full precision "
            f"({measured}; best of all). Floor: operations / the faster rate. Ratio: of all seconds, then without what "
            f"these calls compile. Memory limit {sizes.told} for the kernel, {sizes.memory} for the process (target: "
            f"under {show_size(BYTES)}).",
            _cross_check(sizes, counted),
        ),
    )


def _ours_row(outcome: RaceOutcome, operations: int, rate: float) -> list[str]:
    if not outcome.ok:
        return [outcome.label, "–", outcome.reason, "–", "–", "–", "–", peak(outcome)]
    floor = operations / rate
    ratios = f"{outcome.median / floor:.2f}; {verdict(outcome.running / floor, FLOORS[outcome.label])}"
    times = [seconds(value) for value in (outcome.first, outcome.median, outcome.running)]
    memory = f"{peak(outcome)} {'' if outcome.peak < BYTES else '(over target)'}"
    return [outcome.label, *times, f"{operations / 1e9:.4g}", seconds(floor), ratios, memory.strip()]


def _cross_check(sizes: NetworkSizes, counted: float | None) -> str:
    parts = network_operations(_counted(sizes), "sgd")
    sums = ", ".join(f"{name} {value / 1e9:.4g}" for name, value in vars(parts).items())
    if counted is None:
        return f"GFLOP (SGD): {sums}."
    both = (parts.forward + parts.backward) / 1e9
    return (
        f"GFLOP (SGD): {sums}. Cross-check: XLA counts {counted / 1e9:.4g} for forward and backward, element-wise "
        f"operations included; ours {both:.4g}."
    )


def _peers(sizes: NetworkSizes, options: KernelsOptions, limits: Limits) -> Iterator[RaceOutcome]:
    """Dense Jacobians in two ways and neural-tangents in three, each with the largest pieces that fit."""
    problem = sizes.problem(options.seed)
    for by in ("parameters", "examples"):
        budgets = [limits.memory // part for part in (2, 4, 8)]
        yield _largest_that_fits(
            [
                Entrant(
                    f"jacrev by {by}, {show_size(budget)} at a time",
                    {"contestant": "network-jacrev", "by": by, "budget": budget, **problem},
                )
                for budget in budgets
            ],
            limits,
        )
    for implementation in sizes.implementations:
        how = {"contestant": "network-reference", "implementation": implementation}
        yield _largest_that_fits(
            [
                Entrant(f"neural-tangents, {implementation}, batches of {size}", {**how, "batch_size": size, **problem})
                for size in sizes.batch_sizes
                if sizes.n % size == 0
            ],
            limits,
        )


def _largest_that_fits(entries: list[Entrant], limits: Limits) -> RaceOutcome:
    """The first contestant that is not stopped for its memory: first call, and a second one."""
    outcome = RaceOutcome("nothing to run", "error", "no batch size divides the examples")
    for entry in entries:
        outcome = race([entry], 1, limits, results=True)[0]
        if outcome.status != "memory":
            break
    return outcome


def _peer_table(title: str, ours: RaceOutcome, peers: list[RaceOutcome], sizes: NetworkSizes) -> ResultTable:
    rows = [[ours.label + ", ntkfusion", took(ours), "1", peak(ours), "–"]]
    for outcome in peers:
        ratio, difference = "–", "–"
        if outcome.ok and ours.ok and ours.result is not None and outcome.result is not None:
            ratio = f"{outcome.median / ours.median:.1f}"
            error = np.linalg.norm(outcome.result - ours.result) / np.linalg.norm(outcome.result)
            difference = f"{float(error):.1e}"
        rows.append([outcome.label, took(outcome), ratio, peak(outcome), difference])
    return ResultTable(
        f"{title}: the SGD kernel by other means, within {sizes.memory}",
        ("", "seconds", "times ours", "peak RSS", "relative difference"),
        rows,
        ("Each with the largest pieces that fit, its second call; one after the other, not in turn with ours.",),
    )
