"""What one parameter adds to a network kernel, from the factors of its gradients (`tap_factors`).

Every rule is exact. A matrix used as ``y = a W`` has the gradient aᵀ d with cotangents d, and the kernel either as the
sum over positions ``Σ_ts (a_t·a'_s)(d_t·d'_s)`` or through the gradients themselves, whichever is cheaper; of the
gradients no more than a few tiles exist at a time. A table of which rows are looked up has a gradient in those rows
only. The sign kernel replaces the right-hand gradient by its sign; the sign of a sum over positions does not factor, so
several positions need the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.estimate import even_part
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.network.tap_factors import DenseFactors, DirectFactors, Factors, LookupFactors

#: How many more operations the sum over positions may take: its products are larger and faster (measured on CPU).
POSITION_SPEED = 1.1

#: The same where symmetry saves almost half of them.
SYMMETRIC_SPEED = 1.7

#: A symmetric kernel is computed in so many blocks of rows, left of its diagonal only.
SYMMETRIC_BLOCKS = 8

#: Fewer examples are not worth so many programs.
SYMMETRIC_FROM = 16

#: Numbers of gradients that are formed at a time, over all examples and outputs.
GRADIENT_CHUNK = 12 * 2**20

#: Numbers of one gradient in a tile, at least: smaller products are slow.
SMALLEST_TILE = 2**13

#: Tiles that are worked on side by side. The product of a few long rows with themselves runs on one core; XLA spreads
#: products over the cores if there are more than about ten of them (measured on CPU: 2.3 times faster on two cores).
SIDE_BY_SIDE = 16

#: From so many gradients on one product alone is large enough for all cores.
MANY_GRADIENTS = 1024


def parameter_kernel(x: Sequence[Factors], z: Sequence[Factors], num_rows: int, kind: Kind) -> Float[Array, "n m C C"]:
    """The kernel of one parameter with all its uses, for n evaluated and m training examples.

    Args:
        x: the uses, for the evaluated examples.
        z: the same uses, for the training examples.
        num_rows: rows of the parameter (leading axes of a matrix, entries of a table).
        kind: "sgd" or "sign".

    Returns:
        ⟨∂f_c(x), ∂f_d(z)⟩, or with the sign of the latter, [n, m, C, C].
    """
    with jax.default_matmul_precision("highest"):
        # None, not a second argument: the same examples on both sides are worth knowing
        return _parameter_kernel(tuple(x), None if x is z else tuple(z), num_rows, kind)


@partial(jax.jit, static_argnames=("num_rows", "kind"))
def _parameter_kernel(
    x: tuple[Factors, ...], z: tuple[Factors, ...] | None, num_rows: int, kind: Kind
) -> Float[Array, "n m C C"]:
    symmetric = z is None and kind == "sgd" and x[0].num_examples >= SYMMETRIC_FROM
    kept = [place for place, use in enumerate(x) if all(array.size for array in jax.tree.leaves(use))]
    if not kept:  # of an empty parameter, or of no positions
        (n, outputs), m = _sizes_of(x), _sizes_of(x if z is None else z)[0]
        return jnp.zeros((n, m, outputs, outputs), jax.tree.leaves(x)[-1].dtype)
    x, others = tuple(x[place] for place in kept), z
    z = x if others is None else tuple(others[place] for place in kept)
    first, other = x[0], z[0]
    if isinstance(first, DirectFactors) and isinstance(other, DirectFactors):
        return _direct_kernel(first.gradient, other.gradient, kind)
    if all(isinstance(use, LookupFactors) for use in x):
        left, right = _joined(x), _joined(z)
        if _rows_are_cheaper(left, right, num_rows):
            return _lookup_kernel(left, right, kind)
        return _gradient_kernel((left,), (left,) if z is x else (right,), num_rows, kind)
    speed = SYMMETRIC_SPEED if symmetric else POSITION_SPEED
    if len(x) > 1 or not (isinstance(first, DenseFactors) and isinstance(other, DenseFactors)):
        return _gradient_kernel(x, z, num_rows, kind)
    if _positions_are_cheaper(first, other, kind, speed):
        return _symmetric_position_kernel(first) if symmetric else _position_kernel(first, other, kind)
    return _gradient_kernel(x, z, num_rows, kind)


def _direct_kernel(x: Float[Array, "n C p"], z: Float[Array, "m C p"], kind: Kind) -> Float[Array, "n m C C"]:
    return jnp.einsum("ncp,mdp->nmcd", x, jnp.sign(z) if kind == "sign" else z)


def _positions_are_cheaper(x: DenseFactors, z: DenseFactors, kind: Kind, speed: float) -> bool:
    """Compare the operations of both forms; for signs of more than one position there is only one."""
    (n, positions, i), (m, others, _) = x.a.shape, z.a.shape
    outputs, o = x.d.shape[1], x.d.shape[3]
    if kind == "sign" and others > 1:
        return False
    by_position = n * m * positions * others * (i + outputs**2 * o)
    by_gradient = (n * positions + m * others) * outputs * i * o + n * m * outputs**2 * i * o
    return by_position <= speed * by_gradient


def _rows_are_cheaper(x: LookupFactors, z: LookupFactors, num_rows: int) -> bool:
    """Whether to compare looked-up rows rather than to form gradients: for all but small tables."""
    (n, outputs, positions, _), (m, _, others, _) = x.d.shape, z.d.shape
    by_rows = n * m * positions * others * outputs**2
    return by_rows <= ((n * positions + m * others) * outputs + n * m * outputs**2) * num_rows


def _position_kernel(x: DenseFactors, z: DenseFactors, kind: Kind) -> Float[Array, "n m C C"]:
    """Σ_ts (a_t·a'_s)(d_t·d'_s), one evaluated example at a time."""
    right_a, right_d = (jnp.sign(z.a), jnp.sign(z.d)) if kind == "sign" else (z.a, z.d)

    def row(factors: tuple[Array, Array]) -> Float[Array, "m C C"]:
        a, d = factors
        inputs = jnp.einsum("ti,msi->mts", a, right_a)
        cotangents = jnp.einsum("cto,mdso->mcdts", d, right_d)
        return jnp.sum(cotangents * inputs[:, None, None], axis=(-2, -1))

    return jax.lax.map(row, (x.a, x.d))


def _symmetric_position_kernel(x: DenseFactors) -> Float[Array, "n n C C"]:
    """The same for equal examples: blocks on and below the diagonal, the others by symmetry."""
    count = x.a.shape[0]
    size = -(-count // SYMMETRIC_BLOCKS)
    blocks = [slice(start, min(count, start + size)) for start in range(0, count, size)]
    parts = [DenseFactors(x.a[block], x.d[block], x.rows_are_input) for block in blocks]
    kernel = jnp.zeros((count, count, x.d.shape[1], x.d.shape[1]), x.d.dtype)
    for i, rows in enumerate(blocks):
        for j, columns in enumerate(blocks[: i + 1]):
            tile = _position_kernel(parts[i], parts[j], "sgd")
            kernel = kernel.at[rows, columns].set(tile).at[columns, rows].set(tile.transpose(1, 0, 3, 2))
    return kernel


def _joined(uses: Sequence[Factors]) -> LookupFactors:
    tables = [use for use in uses if isinstance(use, LookupFactors)]
    rows, cotangents = jnp.concatenate([t.rows for t in tables], 1), jnp.concatenate([t.d for t in tables], 2)
    return LookupFactors(rows, cotangents)


def _row_gradients(use: LookupFactors) -> LookupFactors:
    """The gradient row of every looked-up row, at its first position; −1 at its later ones."""
    same = (use.rows[:, :, None] == use.rows[:, None, :]) & (use.rows >= 0)[:, :, None]
    earlier = jnp.any(jnp.tril(same, -1), axis=2)
    summed = jnp.einsum("nts,ncso->ncto", same.astype(use.d.dtype), use.d)
    return LookupFactors(jnp.where(earlier, -1, use.rows), summed)


def _lookup_kernel(x: LookupFactors, z: LookupFactors, kind: Kind) -> Float[Array, "n m C C"]:
    """Only rows that both examples look up meet; no gradient of the size of the table is formed."""
    left, right = _row_gradients(x), _row_gradients(z)
    gradients = jnp.sign(right.d) if kind == "sign" else right.d

    def row(factors: tuple[Array, Array]) -> Float[Array, "m C C"]:
        rows, d = factors
        meet = (rows[None, :, None] == right.rows[:, None, :]) & (rows >= 0)[None, :, None]
        products = jnp.einsum("cto,mdso->mcdts", d, gradients)
        return jnp.sum(jnp.where(meet[:, None, None], products, 0), axis=(-2, -1))

    return jax.lax.map(row, (left.rows, left.d))


#: For both sides, a factor of every use, in tiles or one tile of it.
Tiles: TypeAlias = list[list[Array]]


def _gradient_kernel(
    x: tuple[Factors, ...], z: tuple[Factors, ...], num_rows: int, kind: Kind
) -> Float[Array, "n m C C"]:
    """Form a few tiles of the gradients of all examples, contract them, go on to the next."""
    (n, outputs), m = _sizes_of(x), _sizes_of(z)[0]
    count, rows, columns = _tile_shape(max(n, m) * outputs, num_rows, _num_columns(x[0]))
    same = all(left is right for left, right in zip(x, z, strict=True))
    sides = (x,) if same else (x, z)
    row_tiles = [[_row_tiles(use, count, rows, num_rows) for use in uses] for uses in sides]
    column_tiles = [[_column_tiles(use, columns) for use in uses] for uses in sides]

    def product(down: Tiles, across: Tiles) -> Float[Array, "nC mC"]:
        gradients = [_gradient_tile(*parts, rows) for parts in zip(sides, down, across, strict=True)]
        left, right = gradients[0], gradients[-1]
        return left @ (jnp.sign(right) if kind == "sign" else right).T

    def some_columns(total: Float[Array, "nC mC"], across: Tiles) -> tuple[Float[Array, "nC mC"], None]:
        def some_rows(total: Float[Array, "nC mC"], down: Tiles) -> tuple[Float[Array, "nC mC"], None]:
            each = [jax.tree.map(lambda tiles, i=i: tiles[i], down) for i in range(count)]
            return total + sum(product(tiles, across) for tiles in each), None

        return jax.lax.scan(some_rows, total, row_tiles)[0], None

    zeros = jnp.zeros((n * outputs, m * outputs), x[0].d.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    total, _ = jax.lax.scan(some_columns, zeros, column_tiles)
    return total.reshape(n, outputs, m, outputs).transpose(0, 2, 1, 3)


def _tile_shape(gradients: int, num_rows: int, num_columns: int) -> tuple[int, int, int]:
    """How many tiles side by side, and their rows and columns (1 : 12 is the fastest shape on CPU)."""
    small = gradients * num_rows * num_columns < GRADIENT_CHUNK // 4
    count = 1 if small else max(1, min(SIDE_BY_SIDE, MANY_GRADIENTS // gradients, num_rows))
    area = max(GRADIENT_CHUNK // (gradients * count), SMALLEST_TILE)
    columns = even_part(num_columns, math.isqrt(12 * area))
    return count, even_part(-(-num_rows // count), area // columns), columns


def _sizes_of(uses: tuple[Factors, ...]) -> tuple[int, int]:
    """Numbers of examples and of outputs."""
    first = uses[0]
    shape = first.gradient.shape if isinstance(first, DirectFactors) else first.d.shape
    return shape[0], shape[1]


def _num_columns(use: Factors) -> int:
    if isinstance(use, DirectFactors):
        return use.gradient.shape[2]
    return use.a.shape[2] if isinstance(use, DenseFactors) and not use.rows_are_input else use.d.shape[3]


def _row_tiles(use: Factors, count: int, size: int, num_rows: int) -> Array:
    """The factor that varies along the rows, [steps, count, n, 1 or C, T, size]; of look-ups, the tiles' first rows."""
    if isinstance(use, LookupFactors):
        steps = -(-num_rows // (count * size))
        return (jnp.arange(steps * count, dtype=use.rows.dtype) * size).reshape(steps, count)
    if isinstance(use, DirectFactors):
        raise TypeError("direct gradients have no rows")
    tiles = _tiles(use.a[:, None] if use.rows_are_input else use.d, count * size)
    return jnp.moveaxis(tiles.reshape(*tiles.shape[:4], count, size), 4, 1)


def _column_tiles(use: Factors, size: int) -> Float[Array, "tiles n _ T size"]:
    """The factor that varies along the columns, in tiles."""
    if isinstance(use, DirectFactors):
        raise TypeError("direct gradients have no columns")
    if isinstance(use, DenseFactors) and not use.rows_are_input:
        return _tiles(use.a[:, None], size)
    return _tiles(use.d, size)


def _tiles(factor: Float[Array, "n _ T w"], size: int) -> Float[Array, "tiles n _ T size"]:
    missing = -factor.shape[3] % size
    padded = jnp.pad(factor, [(0, 0)] * 3 + [(0, missing)]) if missing else factor
    return jnp.moveaxis(padded.reshape(*factor.shape[:3], -1, size), 3, 0)


def _gradient_tile(
    uses: tuple[Factors, ...], row_tiles: Sequence[Array], column_tiles: Sequence[Array], size: int
) -> Float[Array, "nC numbers"]:
    """Some rows and columns of the gradients of all examples, summed over the uses; beyond the ends they are zero."""
    total = 0
    for use, rows, columns in zip(uses, row_tiles, column_tiles, strict=True):
        if isinstance(use, LookupFactors):
            hot = use.rows[:, None, :, None] == (rows + jnp.arange(size, dtype=rows.dtype))[None, None, None, :]
            rows = hot.astype(use.d.dtype)
        shape = use.d.shape[:3]  # pyright: ignore[reportAttributeAccessIssue]
        # spread over outputs first: the product then comes out in the order it is needed in
        rows, columns = (jnp.broadcast_to(part, (*shape, part.shape[3])) for part in (rows, columns))
        total += jnp.einsum("nctr,nctq->ncrq", rows, columns)
    return total.reshape(total.shape[0] * total.shape[1], -1)  # pyright: ignore[reportAttributeAccessIssue]
