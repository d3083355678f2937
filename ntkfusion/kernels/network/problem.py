"""A network kernel as a checked request: the function with flat parameters, where it uses them, and the shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
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
from ntkfusion.utils.parameter_paths import ALL, Select, group_parameters, parameter_paths

#: A function of the parameters and one example without batch axis, with C outputs.
NetworkFunction = Callable[[Any, Any], Float[Array, " C"]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A checked request.

    Attributes:
        taps: where the function uses its parameters.
        leaf_shapes: shapes of the flat parameters.
        group_of: selected parameter → its group.
        group_names: the groups.
        shape: of the kernel, (N, M, C, C).
        dtype: of the kernel.
        example: shapes of one example.
    """

    taps: Taps
    leaf_shapes: list[jax.ShapeDtypeStruct]
    group_of: dict[int, str]
    group_names: tuple[str, ...]
    shape: tuple[int, int, int, int]
    dtype: Any
    example: Any

    @classmethod
    def of(
        cls,
        f: NetworkFunction,
        params: Any,
        x: Any,
        z: Any,
        select: Select | None,
        groups: Mapping[str, Select] | None,
    ) -> Problem:
        """Check the arguments of `network_kernel` and analyse its function.

        Raises:
            InputError: as `network_kernel`, memory apart.
        """
        leaves, treedef = jax.tree.flatten(jax.tree.map(_shape, params))
        paths = parameter_paths(params)
        group_of = group_parameters(paths, select, groups)
        _check_differentiable({paths[leaf]: leaves[leaf].dtype for leaf in group_of})
        example, n = _one_example(x)
        other, m = (example, n) if z is None else _one_example(z)
        structures = [(jax.tree.structure(one), jax.tree.leaves(one)) for one in (example, other)]
        if structures[0] != structures[1]:
            raise InputError(f"examples of z differ from those of x: {other} against {example}")

        def flat(values: list[Array], one: Any) -> Any:
            return f(jax.tree.unflatten(treedef, values), one)

        out = jax.eval_shape(flat, leaves, example)
        vector = isinstance(out, jax.ShapeDtypeStruct) and len(out.shape) == 1 and out.shape[0]
        if not vector or not jnp.issubdtype(out.dtype, jnp.floating):
            raise InputError(f"f must return a vector [C] of floating point numbers for one example, got {out}")
        taps = find_taps(flat, leaves, example, frozenset(group_of))
        names = tuple(groups) if groups is not None else (ALL,)
        outputs = out.shape[0]
        return cls(taps, leaves, group_of, names, (n, m, outputs, outputs), out.dtype, example)

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
        return jax.eval_shape(self.factors_of, self.leaf_shapes, self.example)

    def num_rows(self, leaf: int) -> int:
        """Rows of a parameter as its rule sees it."""
        shape = self.leaf_shapes[leaf].shape
        uses = [use for _, use in self.taps.of(leaf)]
        dense = next((use for use in uses if isinstance(use, Dense)), None)
        if dense is None:
            return shape[0] if shape else 1
        summed, kept = len(dense.contracted), len(dense.features)
        return math.prod(shape[: summed if dense.rows_are_input else kept])

    def factors_of(self, leaves: list[Array], example: Any) -> dict[int, tuple[Factors, ...]]:
        """The factors of every selected parameter for one example (no batch axis)."""
        inputs, cotangents, gradients = factors(self.taps, leaves, example)
        found: dict[int, tuple[Factors, ...]] = {}
        for leaf in self.group_of:
            if leaf in gradients:
                gradient = gradients[leaf]
                found[leaf] = (DirectFactors(gradient.reshape(gradient.shape[0], math.prod(gradient.shape[1:]))),)
                continue
            found[leaf] = tuple(
                self._use(leaf, use, inputs[path], cotangents[path]) for path, use in self.taps.of(leaf)
            )
        return found

    def _use(self, leaf: int, use: Dense | Lookup, given: Array, cotangent: Array) -> Factors:
        if isinstance(use, Lookup):
            return LookupFactors(*as_rows(use, given, cotangent, self.leaf_shapes[leaf].shape[0]))
        a, d = as_matrices(use, given, cotangent)
        return DenseFactors(a, d, use.rows_are_input)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _check_differentiable(dtypes: Mapping[str, Any]) -> None:
    """Refuse selected parameters that have no gradient."""
    if wrong := {path: dtype for path, dtype in dtypes.items() if not jnp.issubdtype(dtype, jnp.floating)}:
        path, dtype = next(iter(wrong.items()))
        raise InputError(
            f"parameter {path!r} is of type {dtype} and has no gradient: leave it out by `select`, or keep it inside f"
        )


def _one_example(examples: Any) -> tuple[Any, int]:
    """The shapes of one example, and the number of examples."""
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(examples)}
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise InputError(
            "examples must share a first axis of length at least 1; found shapes "
            f"{', '.join(map(str, sorted(shapes))) or 'none'}"
        )
    # of the types that JAX makes of them
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.result_type(leaf)), examples)
    return one, counts.pop()
