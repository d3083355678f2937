"""Where a function uses its parameters as factors: reads its jaxpr, computes nothing.

The gradient of a weight matrix is a product of what goes in and what comes back, ``y = a W`` gives ``aᵀ ∂F/∂y``, and a
row look-up gives the same with one-hot rows. `find_taps` reads a function's jaxpr and finds those uses; what their
factors are for an example is computed in `tap_factors`. Parameters that are used in any other way
(biases, scales, convolutions, loops) are differentiated directly. Nothing here is specific to a network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, PyTree

#: Which equation: its number, behind those of the equations that call the jaxpr it is in.
Path: TypeAlias = tuple[int, ...]

#: What variables of a jaxpr stand for: arrays, and numbers that are none.
Values: TypeAlias = list[Any]

#: Equations that only call another jaxpr, and the name of the parameter that holds it.
_CALLS = {"jit": "jaxpr", "remat2": "jaxpr", "closed_call": "call_jaxpr", "call": "call_jaxpr"}


@dataclasses.dataclass(frozen=True)
class Dense:
    """How one ``dot_general`` uses a parameter; gradient = rowsᵀ cols, summed over the positions of the input.

    Attributes:
        operand: which operand of the equation is the other factor, the input.
        contracted: axes of the input that are summed over, in the order of the parameter's axes.
        positions: axes of the output that come from the input.
        features: axes of the output that come from the parameter, in the order of the parameter's axes.
        rows_are_input: whether the leading axes of the parameter are the summed ones.
    """

    operand: int
    contracted: tuple[int, ...]
    positions: tuple[int, ...]
    features: tuple[int, ...]
    rows_are_input: bool


@dataclasses.dataclass(frozen=True)
class Lookup:
    """How one ``gather`` uses a parameter: whole rows by index. `mode` is what happens to indices out of range."""

    mode: str


@dataclasses.dataclass(frozen=True)
class Taps:
    """The uses of a function's parameters.

    Attributes:
        closed: the function as a jaxpr of flat parameters, then flat inputs.
        uses: equation (its path through nested jaxprs) → which parameter it uses, and how.
        direct: parameters that are differentiated directly.
        num_params: how many flat parameters there are.
    """

    closed: ClosedJaxpr
    uses: Mapping[Path, tuple[int, Dense | Lookup]]
    direct: frozenset[int]
    num_params: int

    def of(self, parameter: int) -> list[tuple[Path, Dense | Lookup]]:
        """The uses of one parameter, in the order of the program."""
        return [(path, use) for path, (used, use) in sorted(self.uses.items()) if used == parameter]


@dataclasses.dataclass(frozen=True)
class _View:
    """A variable that is a parameter with its axes exchanged; `axes[i]` is the parameter's axis (None: of length 1)."""

    parameter: int
    axes: tuple[int | None, ...]


def find_taps(
    f: Callable[[list[Array], PyTree], Array],
    params: Sequence[Array | jax.ShapeDtypeStruct],
    example: PyTree,
    differentiated: frozenset[int],
) -> Taps:
    """Analyse ``f(params, example)`` for flat `params`.

    Args:
        f: the function, of a list of arrays and one example.
        params: arrays or shapes.
        example: one example, or its shapes.
        differentiated: indices of the parameters of interest; the others are constants.

    Returns:
        The taps.
    """
    closed = jax.make_jaxpr(f)(params, example)
    views = {
        variable: _View(parameter, tuple(range(len(_shape(variable)))))
        for parameter, variable in enumerate(closed.jaxpr.invars[: len(params)])
        if parameter in differentiated
    }
    search = _Search()
    returned = search.walk(closed.jaxpr, dict(views), ())
    search.direct |= {view.parameter for view in returned if view}
    used = {parameter for parameter, _ in search.uses.values()}
    # two uses of one matrix must agree on what its rows are; else it is differentiated directly
    for parameter in used:
        search.direct |= {parameter} if len(search.row_counts[parameter]) > 1 else set()
    uses = {path: found for path, found in search.uses.items() if found[0] not in search.direct}
    touched = {parameter for parameter, _ in uses.values()}
    return Taps(closed, uses, frozenset(differentiated - touched), len(params))


class _Search:
    """Follows parameters through a jaxpr and notes who uses them."""

    def __init__(self) -> None:
        self.uses: dict[Path, tuple[int, Dense | Lookup]] = {}
        self.direct: set[int] = set()
        self.row_counts: dict[int, set[int]] = {}

    def walk(self, jaxpr: Jaxpr, views: dict[Var, _View], path: Path) -> list[_View | None]:
        """Search one jaxpr, given the views among its inputs; returns the views among its outputs."""
        for index, eqn in enumerate(jaxpr.eqns):
            found = [None if isinstance(v, Literal) else views.get(v) for v in eqn.invars]
            if any(found):
                views |= self._visit(eqn, found, (*path, index))
        return [None if isinstance(v, Literal) else views.get(v) for v in jaxpr.outvars]

    def _visit(self, eqn: JaxprEqn, found: list[_View | None], path: Path) -> dict[Var, _View]:
        name, seen = eqn.primitive.name, [view for view in found if view]
        if name in _CALLS:
            inner = inner_jaxpr(eqn)
            inside = {v: view for v, view in zip(inner.invars, found, strict=True) if view}
            outputs = self.walk(inner, inside, path)
            return {v: view for v, view in zip(eqn.outvars, outputs, strict=True) if view}
        view = found[0]
        if len(seen) == 1 and view is not None and len(found) == 1:
            moved = _moved(eqn, view)
            if moved is not None:
                return {eqn.outvars[0]: moved}
        use = None
        if len(seen) == 1 and name == "dot_general":
            use = self._dense(eqn, found)
        elif len(seen) == 1 and name == "gather" and view is not None:
            use = self._lookup(eqn, view)
        if use is None:
            self.direct |= {view.parameter for view in seen}
        else:
            self.uses[path] = (seen[0].parameter, use)
        return {}

    def _dense(self, eqn: JaxprEqn, found: list[_View | None]) -> Dense | None:
        """The use by a product; None if it is not one of a whole matrix, such as a batch of products."""
        side = 0 if found[0] else 1
        summed_of, batched_of = eqn.params["dimension_numbers"]
        view, summed, summed_of_input = found[side], summed_of[side], summed_of[1 - side]
        axes = [axis for axis in view.axes if axis is not None] if view else []
        if view is None or any(batched_of) or len(axes) < len(view.axes):
            return None
        contracted, contracted_places = _by_axis(axes, summed)
        kept, kept_places = _by_axis(axes, [dim for dim in range(len(axes)) if dim not in summed])
        rows_are_input = _lead(contracted)
        if not rows_are_input and not _lead(kept):
            return None
        lengths = dict(zip(axes, _shape(eqn.invars[side]), strict=True))
        self._note_rows(view, math.prod(lengths[axis] for axis in (contracted if rows_are_input else kept)))
        # the output has the axes that are kept of the left operand, then those of the right one
        rank = len(_shape(eqn.outvars[0]))
        first = 0 if side == 0 else rank - len(kept)
        features = tuple(first + place for place in kept_places)
        return Dense(
            operand=1 - side,
            contracted=tuple(summed_of_input[place] for place in contracted_places),
            positions=tuple(dim for dim in range(rank) if dim not in features),
            features=features,
            rows_are_input=rows_are_input,
        )

    def _lookup(self, eqn: JaxprEqn, view: _View) -> Lookup | None:
        numbers, shape = eqn.params["dimension_numbers"], _shape(eqn.invars[0])
        rank, out_rank = len(shape), len(_shape(eqn.outvars[0]))
        plain = (
            view.axes == tuple(range(rank))
            and rank >= 2
            and tuple(numbers.collapsed_slice_dims) == (0,)
            and tuple(numbers.start_index_map) == (0,)
            and not numbers.operand_batching_dims
            and tuple(eqn.params["slice_sizes"]) == (1, *shape[1:])
            and tuple(numbers.offset_dims) == tuple(range(out_rank - rank + 1, out_rank))
        )
        if not plain:
            return None
        self._note_rows(view, shape[0])
        return Lookup(str(eqn.params["mode"]).rsplit(".", maxsplit=1)[-1].lower())

    def _note_rows(self, view: _View, count: int) -> None:
        self.row_counts.setdefault(view.parameter, set()).add(count)


def _by_axis(axes: Sequence[int], dims: Sequence[int]) -> tuple[list[int], list[int]]:
    """The parameter's axes that some dimensions of it are, ascending, and the place of each among the dimensions."""
    pairs = sorted((axes[dim], place) for place, dim in enumerate(dims))
    return [axis for axis, _ in pairs], [place for _, place in pairs]


def _lead(axes: list[int]) -> bool:
    """Whether these are the first axes of a parameter."""
    return axes == list(range(len(axes)))


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    return variable.aval.shape  # pyright: ignore[reportAttributeAccessIssue]


def inner_jaxpr(eqn: JaxprEqn) -> Jaxpr:
    """The jaxpr that an equation calls."""
    inner = eqn.params[_CALLS[eqn.primitive.name]]
    return inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner


def inner_consts(eqn: JaxprEqn) -> Values:
    """The constants of the jaxpr that an equation calls."""
    inner = eqn.params[_CALLS[eqn.primitive.name]]
    return list(inner.consts) if isinstance(inner, ClosedJaxpr) else []


def _moved(eqn: JaxprEqn, view: _View) -> _View | None:
    """The view behind an equation that only exchanges axes, or adds and removes axes of length 1."""
    name, shape = eqn.primitive.name, _shape(eqn.invars[0])
    if name == "transpose":
        return _View(view.parameter, tuple(view.axes[dim] for dim in eqn.params["permutation"]))
    if name in ("reshape", "squeeze", "expand_dims"):
        long = [axis for axis, length in zip(view.axes, shape, strict=True) if length != 1]
        new = _shape(eqn.outvars[0])
        if [length for length in shape if length != 1] != [length for length in new if length != 1]:
            return None
        rest = iter(long)
        return _View(view.parameter, tuple(None if length == 1 else next(rest) for length in new))
    return _View(view.parameter, view.axes) if name in ("copy", "copy_p") else None
