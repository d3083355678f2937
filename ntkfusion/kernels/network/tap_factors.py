"""The two factors of every large parameter's gradient, for one example: never the gradient itself.

`factors` runs a function once forward and once backward per output and returns, for every use that
`taps` found, what went in and what comes back. It adds a zero to the output of the use and
differentiates with respect to that zero. `as_matrices` and `as_rows` bring them into the form of a matrix or a table;
`DenseFactors`, `LookupFactors` and `DirectFactors` hold them for many examples, which come first in every array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, Float, Int, PyTree

from ntkfusion.kernels.network.taps import Dense, Lookup, Path, Taps, Values, inner_consts, inner_jaxpr
from ntkfusion.utils.pytrees import pytree, static


@pytree
class DenseFactors:
    """A use as a matrix: inputs a and cotangents d of n examples, with C outputs and T positions.

    Attributes:
        a: what goes into the matrix, [n, T, i].
        d: what comes back to the product, [n, C, T, o].
        rows_are_input: whether the parameter's rows are a's features (else d's).
    """

    a: Float[Array, "*n T i"]
    d: Float[Array, "*n C T o"]
    rows_are_input: bool = static(default=True)

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return self.a.shape[0]


@pytree
class LookupFactors:
    """A use as a table: row numbers (−1: none) and cotangents d of n examples."""

    rows: Int[Array, "*n T"]
    d: Float[Array, "*n C T o"]

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return self.rows.shape[0]


@pytree
class DirectFactors:
    """No factors: the gradients themselves, [n, C, p]."""

    gradient: Float[Array, "*n C p"]

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return self.gradient.shape[0]


#: What is kept of one use of a parameter.
Factors: TypeAlias = DenseFactors | LookupFactors | DirectFactors


def factors(
    taps: Taps, params: list[Array], example: PyTree
) -> tuple[dict[Path, Array], dict[Path, Float[Array, "C ..."]], dict[int, Float[Array, "C ..."]]]:
    """The gradient factors of one example, for every output C of the function.

    Args:
        taps: from `find_taps`.
        params: the flat parameters.
        example: the example.

    Returns:
        Inputs of the tapped equations (for look-ups, the indices); what comes back to their outputs, [C, ...]; and the
        gradients of the parameters that are differentiated directly, [C, ...].
    """
    jaxpr, flat = taps.closed.jaxpr, jax.tree.leaves(example)

    def run(zeros: Mapping[Path, Array], direct: Mapping[int, Array]) -> tuple[Float[Array, " C"], dict[Path, Array]]:
        recorder = _Recorder(taps, zeros, {})
        arguments = [direct.get(parameter, value) for parameter, value in enumerate(params)]
        (out,) = recorder.run(jaxpr, list(taps.closed.consts), [*arguments, *flat], ())
        return out, recorder.inputs

    zeros = {path: jnp.zeros(output.shape, output.dtype) for path, output in _outputs(taps).items()}
    direct = {parameter: params[parameter] for parameter in sorted(taps.direct)}
    out, pullback, inputs = jax.vjp(run, zeros, direct, has_aux=True)
    cotangents, gradients = jax.vmap(pullback)(jnp.eye(out.shape[0], dtype=out.dtype))
    return inputs, cotangents, gradients


def as_matrices(
    use: Dense, given: Float[Array, "..."], cotangent: Float[Array, "C ..."]
) -> tuple[Float[Array, "T i"], Float[Array, "C T o"]]:
    """Input and cotangent of one example as matrices over positions T; the gradient per output is inputᵀ cotangent."""
    positions = [axis for axis in range(given.ndim) if axis not in use.contracted]
    num_positions, num_inputs = (math.prod(given.shape[axis] for axis in axes) for axes in (positions, use.contracted))
    inputs = jnp.transpose(given, (*positions, *use.contracted)).reshape(num_positions, num_inputs)
    # the axes of the product stand behind the function's outputs C, so each one place further back
    positions, features = ([1 + axis for axis in axes] for axes in (use.positions, use.features))
    num_features = math.prod(cotangent.shape[axis] for axis in features)
    moved = jnp.transpose(cotangent, (0, *positions, *features))
    return inputs, moved.reshape(cotangent.shape[0], num_positions, num_features)


def as_rows(
    use: Lookup, indices: Array, cotangent: Float[Array, "C ..."], num_rows: int
) -> tuple[Int[Array, " T"], Float[Array, "C T o"]]:
    """Row numbers [T] and cotangents [C, T, o] of one example; −1 marks positions that look nothing up."""
    rows = indices.reshape(-1).astype(jnp.int32)
    if "clip" in use.mode:
        rows = jnp.clip(rows, 0, num_rows - 1)
    else:
        rows = jnp.where((rows >= 0) & (rows < num_rows), rows, -1)
    width = math.prod(cotangent.shape[1 + indices.ndim - 1 :])
    return rows, cotangent.reshape(cotangent.shape[0], rows.shape[0], width)


@dataclasses.dataclass(frozen=True)
class _Recorder:
    """Evaluates a jaxpr, adds `zeros` to the outputs of the tapped equations and records the other factor."""

    taps: Taps
    zeros: Mapping[Path, Array]
    inputs: dict[Path, Array]

    def run(self, jaxpr: Jaxpr, consts: Values, arguments: Values, path: Path) -> Values:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
        for index, eqn in enumerate(jaxpr.eqns):
            values = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
            env |= zip(eqn.outvars, self._results(eqn, values, (*path, index)), strict=True)
        return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]

    def _results(self, eqn: JaxprEqn, values: Values, path: Path) -> Values:
        inside = any(use[: len(path)] == path and use != path for use in self.taps.uses)
        if inside:
            return self.run(inner_jaxpr(eqn), inner_consts(eqn), values, path)
        result = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
        results = list(result) if eqn.primitive.multiple_results else [result]
        if path in self.taps.uses:
            _, use = self.taps.uses[path]
            self.inputs[path] = values[use.operand] if isinstance(use, Dense) else values[1]
            results = [results[0] + self.zeros[path]]
        return results


def _outputs(taps: Taps) -> dict[Path, jax.ShapeDtypeStruct]:
    """The shapes of the tapped equations' outputs."""
    avals = {path: _equation(taps.closed.jaxpr, path).outvars[0].aval for path in taps.uses}
    return {path: jax.ShapeDtypeStruct(aval.shape, aval.dtype) for path, aval in avals.items()}  # pyright: ignore


def _equation(jaxpr: Jaxpr, path: Path) -> JaxprEqn:
    eqn = jaxpr.eqns[path[0]]
    return eqn if len(path) == 1 else _equation(inner_jaxpr(eqn), path[1:])
