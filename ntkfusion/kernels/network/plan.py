"""A network kernel as it is asked for, as a checked problem, and as a plan: the programs, and their chunks.

The problem says where the function uses its parameters, and which shapes there are. The programs are compiled before
anything runs, so their memory is known (`Estimate`) and a request that cannot fit is refused at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled
from jaxtyping import Array, Float, PyTree

from ntkfusion.errors import InputError
from ntkfusion.kernels.estimate import Estimate, check_result, even_part, largest_that_fits, output_bytes, program_bytes
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.network.parameter_kernels import parameter_kernel
from ntkfusion.kernels.network.tap_factors import (
    DenseFactors,
    DirectFactors,
    Factors,
    LookupFactors,
    as_matrices,
    as_rows,
    factors,
)
from ntkfusion.kernels.network.taps import Dense, Lookup, Taps, find_taps
from ntkfusion.utils.devices import EVERYWHERE, by_rows, gathered, num_shares, on_each, shape_of
from ntkfusion.utils.parameter_paths import ALL, Select, group_parameters, hashable, parameter_paths

#: A function of the parameters and one example without batch axis, with C outputs.
NetworkFunction: TypeAlias = Callable[[PyTree, PyTree], Float[Array, " C"]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NetworkRequest:
    """The arguments of `network_kernel` or `estimate_network_kernel`, as they were given.

    Attributes:
        f: see `network_kernel`.
        params: see there; arrays or shapes.
        x: see there; arrays or shapes.
        z: see there; arrays or shapes.
        kind: see there.
        select: see there.
        groups: see there.
        memory_limit: see there.
        mesh: see there.
    """

    f: NetworkFunction
    params: PyTree
    x: PyTree
    z: PyTree
    kind: Kind
    select: Select | None
    groups: Mapping[str, Select] | None
    memory_limit: int | str | None
    mesh: Mesh | None

    def key(self) -> tuple[Any, ...]:
        """All that the programs of this request depend on."""
        arrays, structure = jax.tree.flatten((self.params, self.x, self.z))
        shapes = tuple(_kind_of_array(array) for array in arrays)
        groups = self.groups
        grouped = None if groups is None else tuple((name, hashable(group)) for name, group in groups.items())
        settings = tuple(getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_device"))
        chosen = (self.kind, hashable(self.select), grouped, self.memory_limit, self.mesh)
        return self.f, structure, shapes, *chosen, settings


def _kind_of_array(array: PyTree) -> tuple[tuple[int, ...], jnp.dtype, bool]:
    """All of an array that a program depends on."""
    weak = getattr(array, "weak_type", isinstance(array, (int, float)))
    return jnp.shape(array), jnp.result_type(array), weak


@dataclasses.dataclass(frozen=True)
class AnalysedRequest:
    """A request that was checked and analysed.

    Attributes:
        taps: where the function uses its parameters.
        parameter_shapes: shapes of the flat parameters.
        group_of: selected parameter → its group.
        group_names: the groups.
        shape: of the kernel, (N, M, C, C).
        dtype: of the kernel.
        example: shapes of one example.
    """

    taps: Taps
    parameter_shapes: list[jax.ShapeDtypeStruct]
    group_of: dict[int, str]
    group_names: tuple[str, ...]
    shape: tuple[int, int, int, int]
    dtype: jnp.dtype
    example: PyTree

    @classmethod
    def of(cls, request: NetworkRequest) -> AnalysedRequest:
        """Check a request and analyse its function.

        Raises:
            InputError: as `network_kernel`, memory apart.
        """
        shapes, structure = jax.tree.flatten(jax.tree.map(_shape, request.params))
        paths = parameter_paths(request.params)
        group_of = group_parameters(paths, request.select, request.groups)
        _check_differentiable({paths[parameter]: shapes[parameter].dtype for parameter in group_of})
        example, n = _one_example(request.x)
        other, m = (example, n) if request.z is None else _one_example(request.z)
        forms = [(jax.tree.structure(one), jax.tree.leaves(one)) for one in (example, other)]
        if forms[0] != forms[1]:
            raise InputError(f"examples of z differ from those of x: {other} against {example}")

        f = request.f  # not the request, whose arrays a plan would keep alive

        def flat(params: list[Array], one: PyTree) -> Array:
            return f(jax.tree.unflatten(structure, params), one)

        out = jax.eval_shape(flat, shapes, example)
        vector = isinstance(out, jax.ShapeDtypeStruct) and len(out.shape) == 1 and out.shape[0]
        if not vector or not jnp.issubdtype(out.dtype, jnp.floating):
            raise InputError(f"f must return a vector [C] of floating point numbers for one example, got {out}")
        return cls(
            taps=find_taps(flat, shapes, example, frozenset(group_of)),
            parameter_shapes=shapes,
            group_of=group_of,
            group_names=(ALL,) if request.groups is None else tuple(request.groups),
            shape=(n, m, *2 * out.shape),
            dtype=out.dtype,
            example=example,
        )

    @property
    def result_bytes(self) -> int:
        """Bytes of the kernels of all groups."""
        return self.shape[0] * self.shape[1] * self.pair_bytes

    @property
    def pair_bytes(self) -> int:
        """Bytes of one pair of examples in the kernels of all groups."""
        return self.shape[2] * self.shape[3] * self.dtype.itemsize * len(self.group_names)

    @cached_property
    def factor_shapes(self) -> dict[int, tuple[Factors, ...]]:
        """What `factors_of` gives, with shapes for arrays: kept, since tracing a network takes seconds."""
        return jax.eval_shape(self.factors_of, self.parameter_shapes, self.example)

    def num_rows(self, parameter: int) -> int:
        """Rows of a parameter as its rule sees it."""
        shape = self.parameter_shapes[parameter].shape
        uses = [use for _, use in self.taps.of(parameter)]
        dense = next((use for use in uses if isinstance(use, Dense)), None)
        if dense is None:
            return shape[0] if shape else 1
        summed, kept = len(dense.contracted), len(dense.features)
        return math.prod(shape[: summed if dense.rows_are_input else kept])

    def factors_of(self, params: list[Array], example: PyTree) -> dict[int, tuple[Factors, ...]]:
        """The factors of every selected parameter for one example (no batch axis)."""
        inputs, cotangents, gradients = factors(self.taps, params, example)
        found: dict[int, tuple[Factors, ...]] = {}
        for parameter in self.group_of:
            if parameter in gradients:
                gradient = gradients[parameter]
                found[parameter] = (DirectFactors(gradient.reshape(gradient.shape[0], math.prod(gradient.shape[1:]))),)
                continue
            found[parameter] = tuple(
                self._use(parameter, use, inputs[path], cotangents[path]) for path, use in self.taps.of(parameter)
            )
        return found

    def _use(self, parameter: int, use: Dense | Lookup, given: Array, cotangent: Array) -> Factors:
        if isinstance(use, Lookup):
            return LookupFactors(*as_rows(use, given, cotangent, self.parameter_shapes[parameter].shape[0]))
        a, d = as_matrices(use, given, cotangent)
        return DenseFactors(a, d, use.rows_are_input)


def _shape(array: PyTree) -> jax.ShapeDtypeStruct:
    return array if isinstance(array, jax.ShapeDtypeStruct) else jax.eval_shape(lambda: array)


def _check_differentiable(dtypes: Mapping[str, jnp.dtype]) -> None:
    """Refuse selected parameters that have no gradient."""
    if wrong := {path: dtype for path, dtype in dtypes.items() if not jnp.issubdtype(dtype, jnp.floating)}:
        path, dtype = next(iter(wrong.items()))
        raise InputError(
            f"parameter {path!r} is of type {dtype} and has no gradient: leave it out by `select`, or keep it inside f"
        )


def _one_example(examples: PyTree) -> tuple[PyTree, int]:
    """The shapes of one example, and the number of examples."""
    shapes = {np.shape(array) for array in jax.tree.leaves(examples)}
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise InputError(
            "examples must share a first axis of length at least 1; found shapes "
            f"{', '.join(map(str, sorted(shapes))) or 'none'}"
        )
    # of the types that JAX makes of them
    one = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], jnp.result_type(array)), examples)
    return one, counts.pop()


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
