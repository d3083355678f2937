"""Inner products of full [n, k, o, o] kernels, pair by pair of their terms, from Gram matrices of small things.

A full kernel is a sum of coefficients [n, k] times cores. ⟨B1, B2⟩ = tr(B1ᵀB2) of two cores needs no o×o matrix:

* ``⟨I, C⟩ = tr C``,
* neurons: ``⟨Σ_i c_i v_i v'_iᵀ, Σ_j e_j w_j w'_jᵀ⟩ = Σ_ij c_i e_j (v_i·w_j)(v'_i·w'_j)``,
* a fixed matrix P against neurons: ``Σ_i c_i v_iᵀ P v'_i``; against S Tᵀ: ``Σ_j s_jᵀ P t_j``,
* ``⟨S Tᵀ, Σ_i c_i v_i v'_iᵀ⟩ = Σ_i c_i Σ_j (v_i·s_j)(v'_i·t_j)`` and ``⟨S Tᵀ, Q Rᵀ⟩ = Σ_jl (s_j·q_l)(t_j·r_l)``.

All but the second are matrix products over examples; the second goes row by row of the first argument.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.block_program import block_terms
from ntkfusion.kernels.dense import Kind
from ntkfusion.kernels.terms import Identity, Neurons, Product, Signals
from ntkfusion.models.mlp import Block


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """``C = S(x) T(z)ᵀ`` with its factors in memory."""

    left: Float[Array, "n o p"]
    right: Float[Array, "k o p"]


Piece: TypeAlias = Identity | Product | Neurons | LowRank
#: A full kernel: cores and their coefficients [n, k].
Form: TypeAlias = list[tuple[Piece, Float[Array, "_ _"]]]

_ORDER = (Identity, Product, Neurons, LowRank)


def full_form(block: Block, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind) -> Form:
    """A block's full kernel as cores with coefficients; parameters that share a core are added up."""
    pieces, sums = {}, {}
    for term in block_terms(block, x, z, kind).values():
        product = jnp.ones((x.shape[0], z.shape[0]), x.dtype)
        for left, right in term.grams:
            product = product * (left @ right.T)
        key = id(term.core)
        pieces[key] = LowRank(*term.core.factors()) if isinstance(term.core, Signals) else term.core
        sums[key] = sums[key] + product if key in sums else product
    return [(pieces[key], sums[key]) for key in pieces]


def transposed(form: Form) -> Form:
    """The kernel with its arguments, and the two output indices, exchanged."""

    def flip(piece: Piece) -> Piece:
        if isinstance(piece, Neurons):
            return Neurons(piece.right, piece.left, piece.v_right, piece.v)
        return piece if isinstance(piece, Identity) else type(piece)(piece.right, piece.left)  # pyright: ignore

    return [(flip(piece), weights.T) for piece, weights in form]


def inner(first: Form, second: Form) -> Float[Array, ""]:
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
        if isinstance(second, LowRank):
            return _gram(second.left, second.right)
        return second.evaluate("trace") * first.width
    if isinstance(first, Product):
        matrix = first.evaluate("full")[0, 0]
        if isinstance(second, Product):
            return jnp.sum(matrix * second.evaluate("full")[0, 0])[None, None]
        if isinstance(second, Neurons):
            return second.weighted(jnp.sum((second.v @ matrix) * second.v_right, axis=1))
        assert isinstance(second, LowRank)
        return _gram(jnp.einsum("noj,op->npj", second.left, matrix), second.right)
    assert isinstance(second, LowRank)
    if isinstance(first, Neurons):
        left = jnp.einsum("ni,io,noj->nij", first.left, first.v, second.left)
        return _gram(left, jnp.einsum("ki,io,koj->kij", first.right, first.v_right, second.right))
    assert isinstance(first, LowRank)
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
        """C[k, i] of one row n."""
        return sum(  # pyright: ignore[reportReturnType]
            slopes[None, :] * piece.right * weights[:, None]
            for (slopes, weights), (piece, _) in zip(rows, pieces, strict=True)
        )

    def row(rows: list[list[tuple[Array, Array]]]) -> Float[Array, ""]:
        c, e = (coefficients(row, side) for row, side in zip(rows, sides, strict=True))
        return jnp.sum((c @ mixing) * e)

    return jnp.sum(jax.lax.map(row, [[(piece.left, weights) for piece, weights in side] for side in sides]))


def summed(form: Form) -> list[Array]:
    """What Σ_n K[n, k] needs of the left-hand side, one array [k, ...] per core; additive over tiles of examples."""

    def reduce(piece: Piece, weights: Float[Array, "n k"]) -> Array:
        if isinstance(piece, Neurons):
            return weights.T @ piece.left
        return (
            jnp.einsum("nk,noj->koj", weights, piece.left) if isinstance(piece, LowRank) else jnp.sum(weights, axis=0)
        )

    return [reduce(piece, weights) for piece, weights in form]


def marginal(form: Form, row: list[Array], rights: list[Array]) -> Float[Array, "o o"]:
    """Σ_n K[n, k] of one k, from `summed`'s and `right_factors`' entries for that k."""
    total = 0
    for (piece, _), left, right in zip(form, row, rights, strict=True):
        if isinstance(piece, Neurons):
            total += (piece.v * (left * right)[:, None]).T @ piece.v_right
        else:
            total += left @ right.T if isinstance(piece, LowRank) else left * piece.evaluate("full")[0, 0]
    return total  # pyright: ignore[reportReturnType]


def right_factors(form: Form) -> list[Array]:
    """The right-hand side of every core, [k, ...]; zeros where it has none."""
    return [
        piece.right if isinstance(piece, (Neurons, LowRank)) else jnp.zeros(weights.shape[1], weights.dtype)
        for piece, weights in form
    ]
