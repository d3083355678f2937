"""What the closed forms of all blocks are made of.

The kernel of one parameter is, for a pair of examples, a product of scalars times an o×o matrix, its *core*:
``K(x, z) = Π_g (l_g(x)·r_g(z)) · C(x, z)``. There are a few kinds of core, and each knows its trace (mean over
outputs), its diagonal and the whole matrix without the detour through a larger one.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

#: What is kept of the o×o matrix of a pair: the mean of its diagonal, its diagonal, or all of it.
Outputs = Literal["trace", "diagonal", "full"]

#: Name of a parameter → its kernel, or its part of one.
Parts: TypeAlias = dict[str, Array]


def outputs_shape(outputs: Outputs, output_width: int) -> tuple[int, ...]:
    """The axes that stand behind those of the two examples.

    >>> outputs_shape("trace", 3), outputs_shape("diagonal", 3), outputs_shape("full", 3)
    ((), (3,), (3, 3))
    """
    return (output_width,) * {"trace": 0, "diagonal": 1, "full": 2}[outputs]


@dataclasses.dataclass(frozen=True, eq=False)
class Identity:
    """``C = I``: what reaches output k moves output k alone."""

    width: int
    dtype: jnp.dtype

    def evaluate(self, outputs: Outputs) -> Float[Array, "1 1 *outputs"]:
        """The core of every pair; one for all of them."""
        if outputs == "full":
            return jnp.eye(self.width, dtype=self.dtype)[None, None]
        return jnp.ones((1, 1) if outputs == "trace" else (1, 1, self.width), self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """``C = leftᵀ right``, the same for every pair."""

    left: Float[Array, "l o"]
    right: Float[Array, "l o"]

    def evaluate(self, outputs: Outputs) -> Float[Array, "1 1 *outputs"]:
        """The core of every pair; one for all of them."""
        if outputs == "full":
            return (self.left.T @ self.right)[None, None]
        products = self.left * self.right
        return (jnp.sum(products) / products.shape[1] if outputs == "trace" else jnp.sum(products, 0))[None, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Outer:
    """``C = y(x) y'(z)ᵀ``, rank one."""

    left: Float[Array, "n o"]
    right: Float[Array, "k o"]

    def evaluate(self, outputs: Outputs) -> Float[Array, "n k *outputs"]:
        """The core of every pair."""
        if outputs == "full":
            return self.left[:, None, :, None] * self.right[None, :, None, :]
        if outputs == "diagonal":
            return self.left[:, None, :] * self.right[None, :, :]
        return (self.left @ self.right.T) / self.left.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Neurons:
    """``C = Σ_i g_i(x) g'_i(z) v_i v'_iᵀ``: what reaches the outputs through the neurons.

    If `sign`, ``g'_i v'_ik`` is replaced by its computed sign: 0 where the product underflows, so it does not factor.
    """

    left: Float[Array, "n m"]
    right: Float[Array, "k m"]
    v: Float[Array, "m o"]
    v_right: Float[Array, "m o"]
    sign: bool = False

    def evaluate(self, outputs: Outputs) -> Float[Array, "n k *outputs"]:
        """The core of every pair."""
        if self.sign:
            return self._signed(outputs)
        if outputs == "full":
            slopes = self.left[:, None, :] * self.right[None, :, :]
            return jnp.einsum("nki,ip,iq->nkpq", slopes, self.v, self.v_right)
        products = self.v * self.v_right
        if outputs == "trace":
            return self.weighted(jnp.mean(products, axis=1))
        return per_output(self.left, self.right, products)

    def _signed(self, outputs: Outputs) -> Float[Array, "n k *outputs"]:
        if outputs == "full":
            return jnp.einsum("ni,ip,kiq->nkpq", self.left, self.v, self.signs())

        def one(columns: tuple[Float[Array, " m"], Float[Array, " m"]]) -> Float[Array, "n k"]:
            return (self.left * columns[0][None, :]) @ jnp.sign(self.right * columns[1][None, :]).T

        columns = (self.v.T, self.v_right.T)
        if outputs == "diagonal":
            return jnp.moveaxis(jax.lax.map(one, columns), 0, -1)
        zeros = jnp.zeros((self.left.shape[0], self.right.shape[0]), self.left.dtype)
        # one output at a time: their signs together would be the largest array by far
        total, _ = jax.lax.scan(lambda total, pair: (total + one(pair), None), zeros, columns)
        return total / self.v.shape[1]

    def signs(self) -> Float[Array, "k m o"]:
        """sgn(g'_i v'_ik), as computed."""
        return jnp.sign(self.right[:, :, None] * self.v_right[None, :, :])

    def weighted(self, weights: Float[Array, " m"]) -> Float[Array, "n k"]:
        """Σ_i weights_i g_i g'_i."""
        return weighted_gram(self.left, self.right, weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Diagonal:
    """``C[k, k] = Σ_i w_ik a_i(x) a'_i(z)`` and 0 elsewhere: output weights, of which some are missing."""

    left: Float[Array, "n m"]
    right: Float[Array, "k m"]
    weights: Float[Array, "m o"]

    def evaluate(self, outputs: Outputs) -> Float[Array, "n k *outputs"]:
        """The core of every pair."""
        if outputs == "trace":
            return weighted_gram(self.left, self.right, jnp.mean(self.weights, axis=1))
        diagonal = per_output(self.left, self.right, self.weights)
        if outputs == "diagonal":
            return diagonal
        return diagonal[..., None] * jnp.eye(self.weights.shape[1], dtype=diagonal.dtype)[None, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Connections:
    """``C = Σ_ji M_ji x_j x'_j g_i g'_i v_i v'_iᵀ``: input weights, of which some are missing."""

    x: Float[Array, "n d"]
    x_right: Float[Array, "k d"]
    mask: Float[Array, "d m"]
    neurons: Neurons

    def evaluate(self, outputs: Outputs) -> Float[Array, "n k *outputs"]:
        """The core of every pair."""
        if self.neurons.sign:
            return self._signed(outputs)
        if outputs == "trace":
            return self._trace()
        v, v_right = self.neurons.v, self.neurons.v_right

        def row(left: tuple[Float[Array, " d"], Float[Array, " m"]]) -> Float[Array, "k *outputs"]:
            x, g = left
            slopes = ((self.x_right * x[None, :]) @ self.mask) * self.neurons.right * g[None, :]
            return slopes @ (v * v_right) if outputs == "diagonal" else jnp.einsum("ki,ip,iq->kpq", slopes, v, v_right)

        # one x at a time: [n, k, m] would be the largest array by far
        return jax.lax.map(row, (self.x, self.neurons.left))

    def _signed(self, outputs: Outputs) -> Float[Array, "n k *outputs"]:
        """With computed signs of what comes back, one x at a time."""
        v, v_right, right = self.neurons.v, self.neurons.v_right, self.neurons.right

        def row(left: tuple[Float[Array, " d"], Float[Array, " m"]]) -> Float[Array, "k *outputs"]:
            x, g = left
            slopes = ((self.x_right * x[None, :]) @ self.mask) * g[None, :]
            if outputs == "full":
                return jnp.einsum("ki,ip,kiq->kpq", slopes, v, self.neurons.signs())

            def one(columns: tuple[Float[Array, " m"], Float[Array, " m"]]) -> Float[Array, " k"]:
                return jnp.sum(slopes * columns[0][None, :] * jnp.sign(right * columns[1][None, :]), axis=1)

            each = jax.lax.map(one, (v.T, v_right.T)).T
            return each if outputs == "diagonal" else jnp.mean(each, axis=1)

        return jax.lax.map(row, (self.x, self.neurons.left))

    def _trace(self) -> Float[Array, "n k"]:
        """Σ_j x_j x'_j Σ_i (M_ji D_i) g_i g'_i, one j at a time: no array has d·m columns."""
        weights = jnp.mean(self.neurons.v * self.neurons.v_right, axis=1)

        def add(j: Int[Array, ""], total: Float[Array, "n k"]) -> Float[Array, "n k"]:
            products = self.x[:, j, None] * self.x_right[None, :, j]
            return total + products * self.neurons.weighted(weights * self.mask[j])

        zeros = jnp.zeros((self.x.shape[0], self.x_right.shape[0]), self.x.dtype)
        return jax.lax.fori_loop(0, self.mask.shape[0], add, zeros)


def weighted_gram(
    left: Float[Array, "n m"], right: Float[Array, "k m"], weights: Float[Array, " m"]
) -> Float[Array, "n k"]:
    """Σ_i weights_i l_i(x) r_i(z)."""
    return (left * weights[None, :]) @ right.T


def per_output(
    left: Float[Array, "n m"], right: Float[Array, "k m"], weights: Float[Array, "m o"]
) -> Float[Array, "n k o"]:
    """`weighted_gram` with the weights of every output, one at a time: [n, m, o] would be the largest array by far."""
    return jnp.moveaxis(jax.lax.map(lambda column: weighted_gram(left, right, column), weights.T), 0, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Signals:
    """``C[k, l] = s_k(x)·s'_l(z)`` with s_k = B (g ∘ V[:, k]): what reaches a layer of width p below the neurons.

    The right-hand signals are replaced by their signs as a whole if `sign`; g and V are never signs here.
    """

    left: Float[Array, "n m"]
    right: Float[Array, "k m"]
    v: Float[Array, "m o"]
    back: Float[Array, "p m"]
    sign: bool

    def signal(self, g: Float[Array, "n m"], index: int | Int[Array, ""]) -> Float[Array, "n o"]:
        """Component `index` of s_k for every example and output k."""
        return (g * self.back[index][None, :]) @ self.v

    def factors(self) -> tuple[Float[Array, "n o p"], Float[Array, "k o p"]]:
        """S and T of ``C = S(x) T(z)ᵀ``, in full."""
        s, t = (jnp.einsum("ni,pi,io->nop", g, self.back, self.v) for g in (self.left, self.right))
        return s, jnp.sign(t) if self.sign else t

    def evaluate(self, outputs: Outputs) -> Float[Array, "n k *outputs"]:
        """The core of every pair."""
        if outputs == "full":
            return jnp.einsum("nop,kqp->nkoq", *self.factors())
        if outputs == "trace" and not self.sign:
            mixing = (self.back.T @ self.back) * (self.v @ self.v.T) / self.v.shape[1]
            return (self.left @ mixing) @ self.right.T

        def add(index: Int[Array, ""], total: Float[Array, "n k *o"]) -> Float[Array, "n k *o"]:
            s = self.signal(self.left, index)
            t = s if self.right is self.left else self.signal(self.right, index)
            return total + Outer(s, jnp.sign(t) if self.sign else t).evaluate(outputs)

        # one component at a time: s itself would be the largest array by far
        width = () if outputs == "trace" else (self.v.shape[1],)
        zeros = jnp.zeros((self.left.shape[0], self.right.shape[0], *width), self.left.dtype)
        return jax.lax.fori_loop(0, self.back.shape[0], add, zeros)


Core: TypeAlias = Identity | Product | Outer | Neurons | Diagonal | Connections | Signals


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """The kernel of one parameter: its core and the pairs (l, r) whose Gram matrices ``l rᵀ`` multiply it."""

    core: Core
    grams: tuple[tuple[Float[Array, "n _"], Float[Array, "k _"]], ...] = ()

    def times(self, left: Float[Array, "n _"], right: Float[Array, "k _"]) -> Term:
        """The term with one more Gram matrix."""
        return Term(self.core, (*self.grams, (left, right)))


Terms: TypeAlias = dict[str, Term]


def evaluate(terms: Terms, outputs: Outputs, pairs: tuple[int, int]) -> Parts:
    """The kernel of every parameter, [n, k] with [o] or [o, o] behind it; a core that several share is formed once."""
    cores = {id(term.core): term.core for term in terms.values()}
    values = {key: core.evaluate(outputs) for key, core in cores.items()}
    parts = {}
    for name, term in terms.items():
        value = values[id(term.core)]
        for left, right in term.grams:
            value = value * (left @ right.T).reshape(*pairs, *(1,) * (value.ndim - 2))
        parts[name] = jnp.broadcast_to(value, pairs + value.shape[2:])
    return parts
