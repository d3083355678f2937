"""How a network kernel is computed: how many examples at a time, and the programs for that many.

The programs are compiled before anything runs, so their memory is known (`Estimate`) and a request that cannot fit is
refused at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Compiled
from jaxtyping import Array, Float, PyTree

from ntkfusion.kernels.estimate import Estimate, check_result, even_part, largest_that_fits, output_bytes, program_bytes
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.network.parameter_kernels import parameter_kernel
from ntkfusion.kernels.network.problem import AnalysedRequest
from ntkfusion.kernels.network.tap_factors import Factors
from ntkfusion.utils.devices import EVERYWHERE, by_rows, gathered, num_shares, on_each, shape_of

#: The factors of every parameter, for some examples.
AllFactors: TypeAlias = dict[int, tuple[Factors, ...]]


@dataclasses.dataclass(frozen=True)
class NetworkPlan:
    """A request with its programs.

    Attributes:
        problem: what is computed.
        mesh: devices, or None for the default one.
        mirrored: whether z = x and the kernel is symmetric, so that every pair of chunks is needed once.
        chunk: examples of each device that are taken at a time.
        estimate: the memory this takes.
        factor_program: parameters, examples → factors.
        parameter_programs: (parameter, whether both sides are the same chunk) → the program of its kernel.
    """

    problem: AnalysedRequest
    mesh: Mesh | None
    mirrored: bool
    chunk: int
    estimate: Estimate
    factor_program: Compiled
    parameter_programs: dict[tuple[int, bool], Compiled]

    def tiles(self, left: AllFactors, right: AllFactors) -> dict[str, Float[Array, "n m C C"]]:
        """The kernels of all groups between two chunks."""
        found: dict[str, Array] = {}
        same = left is right
        for parameter, group in self.problem.group_of.items():
            sides = (left[parameter],) if same else (left[parameter], right[parameter])
            # finished before the next one begins: side by side they would share cores and add up in memory
            part = jax.block_until_ready(self.parameter_programs[parameter, same](*sides))
            found[group] = found[group] + part if group in found else part
        return found


def make_plan(problem: AnalysedRequest, kind: Kind, mesh: Mesh | None, *, z_is_x: bool, limit: int) -> NetworkPlan:
    """The plan with the largest chunk, among few that are tried, that fits into the limit.

    Args:
        problem: what is computed.
        kind: "sgd" or "sign".
        mesh: devices, or None.
        z_is_x: whether the training examples are the evaluated ones.
        limit: bytes for each device.

    Returns:
        The plan.

    Raises:
        InputError: if not even one example at a time fits; it says what would.
    """
    devices = num_shares(mesh)
    result = problem.result_bytes // devices
    check_result(
        result, limit, math.isqrt(limit * devices // (2 * problem.pair_bytes)), "examples", ", or fewer groups"
    )
    most = -(-max(problem.shape[:2]) // devices)
    plans: dict[int, NetworkPlan] = {}

    def needs(chunk: int) -> int:
        plans[chunk] = _compiled(problem, kind, mesh, chunk, result, limit, z_is_x=z_is_x)
        return plans[chunk].estimate.peak

    advice = "raise memory_limit, shorten the examples, take fewer of them or select fewer parameters"
    chunk, _ = largest_that_fits(needs, even_part(most, _first_guess(problem, most, limit - result)), limit, advice)
    return plans[chunk]


#: The plans of the last calls. Only a few: a function may hold the weights of a network.
_PLANS: dict[tuple[Any, ...], NetworkPlan] = {}

_MOST_PLANS = 4


def remembered(key: tuple[Any, ...], make: Callable[[], NetworkPlan], limit: int) -> NetworkPlan:
    """The plan of an earlier call with the same key, if it still fits into the limit of a device; else a new one."""
    try:
        plan = _PLANS.pop(key, None)
    except TypeError:  # a function that cannot be a key is not remembered
        return make()
    _PLANS[key] = plan = make() if plan is None or plan.estimate.peak > limit else plan
    while len(_PLANS) > _MOST_PLANS:
        del _PLANS[next(iter(_PLANS))]
    return plan


def _first_guess(problem: AnalysedRequest, most: int, room: int) -> int:
    """Examples whose factors take less than half of the room."""
    per_example = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(problem.factor_shapes))
    return max(1, min(most, room // max(1, 2 * per_example)))


def _compiled(
    problem: AnalysedRequest, kind: Kind, mesh: Mesh | None, chunk: int, result: int, limit: int, *, z_is_x: bool
) -> NetworkPlan:
    with jax.default_matmul_precision("highest"):
        factor_program = _factor_program(problem, mesh, chunk)
        alone = z_is_x and chunk * num_shares(mesh) >= problem.shape[0]
        programs = {} if alone else _parameter_programs(problem, kind, mesh, chunk, same=False)
        if z_is_x:
            programs |= _parameter_programs(problem, kind, mesh, chunk, same=True)
    factors = output_bytes(factor_program)
    sides = 1 if alone else 2
    while_factors = (sides - 1) * factors + program_bytes(factor_program)
    while_kernels = sides * factors + max(program_bytes(program) for program in programs.values())
    tiles = 2 * chunk**2 * num_shares(mesh) * problem.pair_bytes
    peak = 2 * result + tiles + max(while_factors, while_kernels)
    mirrored = z_is_x and kind == "sgd"
    return NetworkPlan(problem, mesh, mirrored, chunk, Estimate(peak, result, chunk, limit), factor_program, programs)


def _factor_program(problem: AnalysedRequest, mesh: Mesh | None, chunk: int) -> Compiled:
    """The compiled program that computes the factors of `chunk` examples on each device."""

    def batched(params: list[Array], examples: PyTree) -> AllFactors:
        return jax.vmap(problem.factors_of, (None, 0))(params, examples)

    spec, rows = by_rows(mesh), chunk * num_shares(mesh)
    params = [shape_of(shape, mesh, EVERYWHERE) for shape in problem.parameter_shapes]
    examples = jax.tree.map(lambda array: shape_of(array, mesh, spec, rows), problem.example)
    return jax.jit(on_each(batched, mesh, (EVERYWHERE, spec), spec)).lower(params, examples).compile()


def _parameter_programs(
    problem: AnalysedRequest, kind: Kind, mesh: Mesh | None, chunk: int, *, same: bool
) -> dict[tuple[int, bool], Compiled]:
    """The compiled kernels of all parameters; those of one shape share a program."""
    spec, rows = by_rows(mesh), chunk * num_shares(mesh)
    programs: dict[tuple[object, ...], Compiled] = {}
    found = {}
    for parameter in problem.group_of:
        side = jax.tree.map(lambda array: shape_of(array, mesh, spec, rows), problem.factor_shapes[parameter])
        num_rows = problem.num_rows(parameter)
        key = (tuple(jax.tree.leaves(side)), jax.tree.structure(side), num_rows)
        if key not in programs:
            programs[key] = _parameter_program(side, num_rows, kind, mesh, problem.dtype, same=same)
        found[parameter, same] = programs[key]
    return found


def _parameter_program(
    side: tuple[Factors, ...], num_rows: int, kind: Kind, mesh: Mesh | None, dtype: jnp.dtype, *, same: bool
) -> Compiled:
    spec = by_rows(mesh)

    def of_same(left: tuple[Factors, ...]) -> Float[Array, "n m C C"]:
        return parameter_kernel(left, gathered(left, mesh), num_rows, kind).astype(dtype)

    def of_pair(left: tuple[Factors, ...], right: tuple[Factors, ...]) -> Float[Array, "n m C C"]:
        return parameter_kernel(left, gathered(right, mesh), num_rows, kind).astype(dtype)

    function, sides = (of_same, (side,)) if same else (of_pair, (side, side))
    return jax.jit(on_each(function, mesh, (spec,) * len(sides), spec)).lower(*sides).compile()
