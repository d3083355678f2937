"""A network kernel as it is asked for, and as a checked problem: where the function uses its parameters, and shapes."""

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
from jaxtyping import Array, Float, PyTree

from ntkfusion.errors import InputError
from ntkfusion.kernels.kinds import Kind
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
