"""How far the full [N, M, o, o] kernel of one block is from another's, without ever having either.

A full kernel is a sum of coefficients [n, k] times cores. Inner products of two kernels are sums over pairs of their
terms, and ⟨B1, B2⟩ = tr(B1ᵀB2) of two cores needs no o×o matrix, only Gram matrices of small things:

* ``⟨I, C⟩ = tr C``,
* neurons: ``⟨Σ_i c_i v_i v'_iᵀ, Σ_j e_j w_j w'_jᵀ⟩ = Σ_ij c_i e_j (v_i·w_j)(v'_i·w'_j)``,
* one matrix P for all pairs against neurons: ``Σ_i c_i v_iᵀ P v'_i``; against S Tᵀ: ``Σ_j s_jᵀ P t_j``,
* ``⟨S Tᵀ, Σ_i c_i v_i v'_iᵀ⟩ = Σ_i c_i Σ_j (v_i·s_j)(v'_i·t_j)`` and ``⟨S Tᵀ, Q Rᵀ⟩ = Σ_jl (s_j·q_l)(t_j·r_l)``.

All but the second are matrix products over examples; the second goes row by row of the first argument.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.program import PRODUCT_BLOCKS, block_terms
from ntkfusion.kernels.block.terms import Identity, Neurons, Product, Signals
from ntkfusion.kernels.distance.kernel_distance import facts
from ntkfusion.kernels.kinds import Kind, check_inputs, check_kind
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock

#: Examples per tile: a tile's cost is in its pairs, a row's in the neurons of both blocks.
TILE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class LowRankCore:
    """``C = S(x) T(z)ᵀ`` with its factors in memory."""

    left: Float[Array, "n o p"]
    right: Float[Array, "k o p"]


Piece: TypeAlias = Identity | Product | Neurons | LowRankCore

#: A full kernel: cores and their coefficients [n, k].
Form: TypeAlias = list[tuple[Piece, Float[Array, "_ _"]]]

#: The order of two cores in `_core_inner`.
_ORDER = (Identity, Product, Neurons, LowRankCore)


@dataclasses.dataclass(frozen=True)
class FullKernelDistance:
    """Distances of a full kernel, all pairs of outputs, from a reference kernel on the same examples.

    Attributes:
        relative_frobenius: ‖new − reference‖_F / ‖reference‖_F.
        cosine: ⟨reference, new⟩ / (‖reference‖ ‖new‖); 1 is equal up to scale.
        alignment: the same after both kernels are centred over x and over z, for every pair of outputs: ``(H ⊗ I) K``.
        reference_norm: ‖reference‖_F.
        new_norm: ‖new‖_F.
    """

    relative_frobenius: float
    cosine: float
    alignment: float
    reference_norm: float
    new_norm: float

    def __str__(self) -> str:
        """One fact per line."""
        return facts(self)


def full_kernel_inner(
    block1: Block, block2: Block, x: Float[Array, "N d"], z: Float[Array, "M d"] | None = None, *, kind: Kind = "sgd"
) -> float:
    """⟨K1, K2⟩_F = Σ_nmkl K1[n, m, k, l] K2[n, m, k, l] of the full kernels of two blocks, which never exist.

    Args:
        block1: a dense, factorised or gated block.
        block2: another, of the same input and output widths; its hidden width and its kind may differ.
        x: evaluated inputs.
        z: training inputs; by default `x`.
        kind: "sgd" or "sign".

    Returns:
        The inner product. About 2·N·M·m1·m2 operations; memory as of a tile of 128 examples.

    Raises:
        InputError: for blocks that do not fit each other or the inputs, and for mixtures of experts.
    """
    _check(block1, block2, x, z, kind)
    with jax.default_matmul_precision("highest"):
        other = x if z is None else z
        tiles = ((xs, zs) for zs in _tiles(other, block1, block2) for xs in _tiles(x, block1, block2))
        return math.fsum(float(_inner_of_tile(block1, block2, xs, zs, kind)) for xs, zs in tiles)


def full_kernel_distance(
    reference: Block, new: Block, x: Float[Array, "N d"], z: Float[Array, "M d"] | None = None, *, kind: Kind = "sgd"
) -> FullKernelDistance:
    """Compare the full kernels of two blocks on the same examples.

    The difference is formed from inner products, ``‖new‖² − 2⟨new, reference⟩ + ‖reference‖²``: with inputs in float32
    relative errors below about 1e-3 drown in rounding. Give blocks and inputs in float64 where that matters.

    Args:
        reference: the original: a dense, factorised or gated block.
        new: the block to compare; its hidden width and its kind may differ.
        x: evaluated inputs.
        z: training inputs; by default `x`.
        kind: "sgd" or "sign".

    Returns:
        The `FullKernelDistance`.

    Raises:
        InputError: for blocks that do not fit each other or the inputs, and for mixtures of experts.
    """
    _check(reference, new, x, z, kind)
    z = x if z is None else z
    with jax.default_matmul_precision("highest"):
        products, columns, total = _pass(reference, new, x, z, kind, flipped=False)
        _, rows, _ = _pass(reference, new, z, x, kind, flipped=True)
    n, m = x.shape[0], z.shape[0]
    centred = products - columns / n - rows / m + total / (n * m)
    # what centring leaves of a constant kernel by rounding alone is nothing
    centred = np.where(np.abs(centred) > 64 * float(jnp.finfo(x.dtype).eps) * np.abs(products), centred, 0)
    (rr, rn, nn) = products.tolist()
    squared = max(rr - 2 * rn + nn, 0.0)
    return FullKernelDistance(
        relative_frobenius=math.sqrt(squared / rr) if rr > 0 else math.inf if nn > 0 else 0.0,
        cosine=_cosine(*products.tolist()),
        alignment=_cosine(*centred.tolist()),
        reference_norm=math.sqrt(rr),
        new_norm=math.sqrt(nn),
    )


def _cosine(first: float, crossed: float, second: float) -> float:
    return crossed / math.sqrt(first * second) if first > 0 and second > 0 else 0.0


def _check(first: Block, second: Block, x: Array, z: Array | None, kind: Kind) -> None:
    check_kind(kind)
    for block in (first, second):
        if not isinstance(block, PRODUCT_BLOCKS):
            known = ", ".join(form.__name__ for form in PRODUCT_BLOCKS)
            raise InputError(f"full kernels are compared for {known}; got a {type(block).__name__}")
        check_inputs(block, x, z)
    if first.output_width != second.output_width:
        raise InputError(f"full kernels of {first.output_width} and {second.output_width} outputs cannot be compared")


def _tiles(x: Float[Array, "N d"], *blocks: Block) -> Iterator[Float[Array, "n d"]]:
    """Rows of x, few enough that the signals of factorised blocks, [n, m, p] at most, stay near 256 MiB."""
    ranks = [block.right1.shape[0] for block in blocks if isinstance(block, FactorizedBlock)]
    widest = max(max(block.hidden_width, block.output_width) for block in blocks)
    tile = max(1, min(TILE, 2**26 // (widest * max(ranks)))) if ranks else TILE
    return (x[start : start + tile] for start in range(0, x.shape[0], tile))


@partial(jax.jit, static_argnames="kind")
def _inner_of_tile(
    first: Block, second: Block, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind
) -> Float[Array, ""]:
    return _inner(_full_form(first, x, z, kind), _full_form(second, x, z, kind))


def _pass(
    first: Block, second: Block, x: Float[Array, "N d"], z: Float[Array, "M d"], kind: Kind, *, flipped: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inner products 11, 12, 22 of the kernels, of their sums over x for every z, and of their sums over both.

    If `flipped`, z is the evaluated side and x the training side, and the first result is left at 0.
    """
    products, columns = np.zeros(3), np.zeros(3)
    totals = 0
    for zs in _tiles(z, first, second):
        sums = None
        for xs in _tiles(x, first, second):
            found, tile_sums = _sums_of_tile(first, second, xs, zs, kind, flipped)
            products += np.asarray(found, np.float64)
            sums = tile_sums if sums is None else jax.tree.map(jnp.add, sums, tile_sums)
        found, tile_totals = _columns_of_tile(first, second, zs, sums, kind, flipped)
        columns += np.asarray(found, np.float64)
        totals = totals + np.asarray(tile_totals, np.float64)
    one, two = totals  # pyright: ignore[reportGeneralTypeIssues]
    return products, columns, np.array([np.sum(one * one), np.sum(one * two), np.sum(two * two)])


def _form(block: Block, x: Array, z: Array, kind: Kind, flipped: bool) -> Form:
    return _transposed(_full_form(block, z, x, kind)) if flipped else _full_form(block, x, z, kind)


@partial(jax.jit, static_argnames=("kind", "flipped"))
def _sums_of_tile(
    first: Block, second: Block, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind, flipped: bool
) -> tuple[Float[Array, "3"], list[list[Array]]]:
    one, two = (_form(block, x, z, kind, flipped) for block in (first, second))
    pairs = () if flipped else ((one, one), (one, two), (two, two))
    found = jnp.stack([_inner(*pair) for pair in pairs]) if pairs else jnp.zeros(3, x.dtype)
    return found, [_summed(one), _summed(two)]


@partial(jax.jit, static_argnames=("kind", "flipped"))
def _columns_of_tile(
    first: Block, second: Block, z: Float[Array, "k d"], sums: list[list[Array]] | None, kind: Kind, flipped: bool
) -> tuple[Float[Array, "3"], Float[Array, "2 o o"]]:
    """Products of Σ_n K[n, k], one k at a time, and those matrices summed over k."""
    forms = [_form(block, z[:1], z, kind, flipped) for block in (first, second)]

    def add(carry: tuple[Array, Array], rows: list[list[list[Array]]]) -> tuple[tuple[Array, Array], None]:
        one, two = (_marginal(form, *row) for form, row in zip(forms, rows, strict=True))
        found = jnp.stack([jnp.sum(one * one), jnp.sum(one * two), jnp.sum(two * two)])
        return (carry[0] + found, carry[1] + jnp.stack([one, two])), None

    o = first.output_width
    start = (jnp.zeros(3, z.dtype), jnp.zeros((2, o, o), z.dtype))
    rows = [[row, _right_factors(form)] for row, form in zip(sums or [], forms, strict=True)]
    return jax.lax.scan(add, start, rows)[0]


def _full_form(block: Block, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind) -> Form:
    """A block's full kernel as cores with coefficients; parameters that share a core are added up."""
    pieces, sums = {}, {}
    for term in block_terms(block, x, z, kind).values():
        product = jnp.ones((x.shape[0], z.shape[0]), x.dtype)
        for left, right in term.grams:
            product = product * (left @ right.T)
        key = id(term.core)
        pieces[key] = LowRankCore(*term.core.factors()) if isinstance(term.core, Signals) else term.core
        sums[key] = sums[key] + product if key in sums else product
    return [(pieces[key], sums[key]) for key in pieces]


def _transposed(form: Form) -> Form:
    """The kernel with its arguments, and the two output indices, exchanged."""

    def flip(piece: Piece) -> Piece:
        if isinstance(piece, Neurons):
            return Neurons(piece.right, piece.left, piece.v_right, piece.v)
        return piece if isinstance(piece, Identity) else type(piece)(piece.right, piece.left)  # pyright: ignore

    return [(flip(piece), weights.T) for piece, weights in form]


def _inner(first: Form, second: Form) -> Float[Array, ""]:
    """Σ_nk ⟨K1[n, k], K2[n, k]⟩."""
    total = _neurons_inner(first, second)
    for piece, weights in first:
        for other, other_weights in second:
            if not (isinstance(piece, Neurons) and isinstance(other, Neurons)):
                ordered = sorted((piece, other), key=lambda core: _ORDER.index(type(core)))
                total = total + jnp.sum(weights * other_weights * _core_inner(*ordered))
    return total


def _core_inner(first: Piece, second: Piece) -> Float[Array, "n k"]:
    """⟨C1, C2⟩ of every pair ([1, 1] if it is the same for all); the kinds are in the order of `_ORDER`."""
    if isinstance(first, Identity):
        if isinstance(second, LowRankCore):
            return _gram(second.left, second.right)
        return second.evaluate("trace") * first.width
    if isinstance(first, Product):
        matrix = first.evaluate("full")[0, 0]
        if isinstance(second, Product):
            return jnp.sum(matrix * second.evaluate("full")[0, 0])[None, None]
        if isinstance(second, Neurons):
            return second.weighted(jnp.sum((second.v @ matrix) * second.v_right, axis=1))
        assert isinstance(second, LowRankCore)
        return _gram(jnp.einsum("noj,op->npj", second.left, matrix), second.right)
    assert isinstance(second, LowRankCore)
    if isinstance(first, Neurons):
        left = jnp.einsum("ni,io,noj->nij", first.left, first.v, second.left)
        return _gram(left, jnp.einsum("ki,io,koj->kij", first.right, first.v_right, second.right))
    assert isinstance(first, LowRankCore)
    crossed = "noj,nol->njl"
    return _gram(jnp.einsum(crossed, first.left, second.left), jnp.einsum(crossed, first.right, second.right))


def _gram(left: Float[Array, "n *p"], right: Float[Array, "k *p"]) -> Float[Array, "n k"]:
    return left.reshape(left.shape[0], -1) @ right.reshape(right.shape[0], -1).T


def _neurons_inner(first: Form, second: Form) -> Float[Array, ""]:
    """Σ_ij c_i e_j (v_i·w_j)(v'_i·w'_j) for every pair; a block's neurons share v, so their c are added first."""
    sides = [[(piece, weights) for piece, weights in form if isinstance(piece, Neurons)] for form in (first, second)]
    (one, _), (other, _) = sides[0][0], sides[1][0]
    mixing = (one.v @ other.v.T) * (one.v_right @ other.v_right.T)

    def coefficients(rows: list[tuple[Array, Array]], pieces: list[tuple[Neurons, Array]]) -> Float[Array, "k m"]:
        """The coefficients c[k, i] of one row n."""
        return sum(  # pyright: ignore[reportReturnType]
            slopes[None, :] * piece.right * weights[:, None]
            for (slopes, weights), (piece, _) in zip(rows, pieces, strict=True)
        )

    def row(rows: list[list[tuple[Array, Array]]]) -> Float[Array, ""]:
        c, e = (coefficients(row, side) for row, side in zip(rows, sides, strict=True))
        return jnp.sum((c @ mixing) * e)

    return jnp.sum(jax.lax.map(row, [[(piece.left, weights) for piece, weights in side] for side in sides]))


def _summed(form: Form) -> list[Array]:
    """What Σ_n K[n, k] needs of the left-hand side, one array [k, ...] per core; additive over tiles of examples."""

    def reduce(piece: Piece, weights: Float[Array, "n k"]) -> Array:
        if isinstance(piece, Neurons):
            return weights.T @ piece.left
        return (
            jnp.einsum("nk,noj->koj", weights, piece.left)
            if isinstance(piece, LowRankCore)
            else jnp.sum(weights, axis=0)
        )

    return [reduce(piece, weights) for piece, weights in form]


def _marginal(form: Form, row: list[Array], rights: list[Array]) -> Float[Array, "o o"]:
    """Σ_n K[n, k] of one k, from `_summed`'s and `_right_factors`' entries for that k."""
    total = 0
    for (piece, _), left, right in zip(form, row, rights, strict=True):
        if isinstance(piece, Neurons):
            total += (piece.v * (left * right)[:, None]).T @ piece.v_right
        else:
            total += left @ right.T if isinstance(piece, LowRankCore) else left * piece.evaluate("full")[0, 0]
    return total  # pyright: ignore[reportReturnType]


def _right_factors(form: Form) -> list[Array]:
    """The right-hand side of every core, [k, ...]; zeros where it has none."""
    return [
        piece.right if isinstance(piece, (Neurons, LowRankCore)) else jnp.zeros(weights.shape[1], weights.dtype)
        for piece, weights in form
    ]
