"""How many floating-point operations the exact kernel of a network takes at least, and the time they would take."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class CountedSizes:
    """A BERT with a classification head, and the examples.

    Attributes:
        layers: encoder layers.
        d: model width.
        m: hidden width of the MLP blocks.
        outputs: C, logits.
        n: examples.
        t: tokens per example.
    """

    layers: int
    d: int
    m: int
    outputs: int
    n: int
    t: int

    def matrices(self) -> list[tuple[int, int, int, int]]:
        """(how many, inputs i, outputs o, positions T) of all weight matrices; look-ups are not products."""
        d, m = self.d, self.m
        encoder = [(4 * self.layers, d, d, self.t), (self.layers, d, m, self.t), (self.layers, m, d, self.t)]
        return [*encoder, (1, d, d, 1), (1, d, self.outputs, 1)]


@dataclasses.dataclass(frozen=True)
class Operations:
    """Multiplications and additions of matrix products, by part of the method."""

    forward: int
    backward: int
    contraction: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.backward + self.contraction


def network_operations(sizes: CountedSizes, kind: str) -> Operations:
    """The operations of: one forward pass, C backward passes to all activations, a contraction matrix by matrix.

    Forward, N examples: 2·T·i·o for every matrix, and 4·T²·d per layer for attention (scores and mixing). Backward, per
    output: the same for matrices (only activations are needed), twice that for attention, whose products have two
    activations as factors. Contraction: see `contraction_operations`. A lower bound: activation functions, softmax,
    LayerNorm, biases and look-ups are not counted (about one per cent), the products of all positions are, as the
    network is written (the logits do not need them all in the last layer).

    Args:
        sizes: the network and its examples.
        kind: "sgd" or "sign".

    Returns:
        The operations.
    """
    products = sum(2 * sizes.n * count * t * i * o for count, i, o, t in sizes.matrices())
    attention = 4 * sizes.n * sizes.layers * sizes.t**2 * sizes.d
    contraction = sum(
        count * contraction_operations(sizes.n, sizes.outputs, t, i, o, kind) for count, i, o, t in sizes.matrices()
    )
    return Operations(products + attention, sizes.outputs * (products + 2 * attention), contraction)


def contraction_operations(n: int, outputs: int, t: int, i: int, o: int, kind: str) -> int:
    """What the kernel of one [i, o] matrix takes, given inputs a [N, T, i] and cotangents d [N, C, T, o].

    The cheapest of three ways. Forming the gradients aᵀd of every example and output, 2·N·C·T·i·o, and multiplying
    them, 2·(NC)²·i·o. Σ_ts (a_t·a'_s)(d_t·d'_s) for every pair of examples, 2·T²·(i + C²·o). The same with the sum over
    s first, 2·(T²·i + T²·C·o + T·C²·o). The SGD kernel is symmetric: pairs once. Signs of several positions need the
    gradients.

    Args:
        n: N, examples.
        outputs: C.
        t: T, positions.
        i: inputs of the matrix.
        o: outputs of the matrix.
        kind: "sgd" or "sign".

    Returns:
        Operations.
    """
    rows = n * outputs
    entries, pairs = (rows * (rows + 1) // 2, n * (n + 1) // 2) if kind == "sgd" else (rows**2, n**2)
    by_gradient = 2 * rows * t * i * o + 2 * entries * i * o
    if kind == "sign" and t > 1:
        return by_gradient
    per_pair = min(t**2 * (i + outputs**2 * o), t**2 * (i + outputs * o) + t * outputs**2 * o)
    return min(by_gradient, 2 * pairs * per_pair)
