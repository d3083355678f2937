"""Small pairs of blocks of every degenerate kind, for bounds to be checked on."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import ntkfusion as nf


@dataclass(frozen=True)
class PairShape:
    """Sizes of a case; one compiled program each."""

    d: int
    m: int
    c: int
    o: int
    N: int
    M: int
    bias: bool = True


SHAPES = {
    "one of each": PairShape(1, 1, 1, 1, 1, 1, bias=False),
    "one token": PairShape(4, 7, 3, 2, 1, 1),
    "small": PairShape(3, 6, 3, 2, 4, 3),
    "as many centres as neurons": PairShape(2, 4, 4, 3, 3, 2, bias=False),
    "wide": PairShape(5, 16, 5, 3, 6, 6),
}


@dataclass(frozen=True)
class PairRecipe:
    """How a case is made. Exponents are of 10.

    Attributes:
        w: scale of input weights.
        v: scale of output weights.
        x: scale of inputs.
        spread: size of residuals relative to the weights; None for neurons that coincide.
        centres: "mean", "near" (means moved by a spread) or "far" (anything).
        constants: "none", "v1", "v4" or "any" of both signs.
        zeros: what is set to 0: "", "w", "v", "x", "centre".
        seed: of everything else.
        original: constants of the original, "none" or "any".
    """

    w: float
    v: float
    x: float
    spread: float | None
    centres: str
    constants: str
    zeros: str
    seed: int
    original: str = "none"


CENTRES, CONSTANTS, ZEROS = ("mean", "near", "far"), ("none", "v1", "v4", "any"), ("", "", "w", "v", "x", "centre")


@dataclass(frozen=True)
class BlockPair:
    """Two blocks, the clusters, and inputs."""

    original: nf.MLPBlock
    fused: nf.MLPBlock
    labels: jnp.ndarray
    x: jnp.ndarray
    z: jnp.ndarray


def build_pair(shape: PairShape, activation: str, recipe: PairRecipe) -> BlockPair:
    """The case of a recipe."""
    rng = np.random.default_rng(recipe.seed)
    labels = np.concatenate([np.arange(shape.c), rng.integers(0, shape.c, shape.m - shape.c)])
    e, (d, c, o) = shape.d + shape.bias, (shape.d, shape.c, shape.o)
    sizes = np.concatenate([np.full(e, 10**recipe.w), np.full(o, 10**recipe.v)])
    spread = 0.0 if recipe.spread is None else 10**recipe.spread
    neurons = rng.normal(size=(c, e + o))[labels] * sizes
    neurons = neurons + spread * sizes * rng.normal(size=(shape.m, e + o))
    inputs = 10**recipe.x * rng.normal(size=(shape.N + shape.M, d))
    _put_zeros(recipe.zeros, neurons, inputs, e, rng)
    counts = np.bincount(labels, minlength=c).astype(float)
    centres = np.stack([neurons[labels == j].mean(0) for j in range(c)])
    if recipe.centres != "mean":
        moved = (spread if recipe.centres == "near" else 1.0) * sizes * rng.normal(size=centres.shape)
        centres = moved if recipe.centres == "far" else centres + moved
    if recipe.zeros == "centre":
        centres[0] = 0
    q, r = _constants(recipe.constants, counts, rng)
    own = _constants(recipe.original, np.ones(shape.m), rng)
    original = _block(neurons, *own, shape, activation, rng)
    fused = _block(centres, q, r, shape, activation, rng, counts)
    if original.b2 is not None and recipe.centres != "far":
        fused = fused.replace(b2=original.b2)
    return BlockPair(
        original, fused, jnp.asarray(labels), jnp.asarray(inputs[: shape.N]), jnp.asarray(inputs[shape.N :])
    )


def _put_zeros(zeros: str, neurons: np.ndarray, inputs: np.ndarray, e: int, rng: np.random.Generator) -> None:
    rows = rng.random(len(neurons)) < 0.5
    if zeros == "w":
        neurons[rows, :e] = 0
    if zeros == "v":
        neurons[rows, e:] = 0
    if zeros == "x":
        inputs[rng.random(len(inputs)) < 0.5] = 0


def _constants(kind: str, n: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Arrays also where all are 1: absent ones would be another program to compile."""
    if kind == "none":
        return np.ones_like(n), np.ones_like(n)
    if kind == "v1":
        return n, np.ones_like(n)
    if kind == "v4":
        return np.sqrt(n), 1 / np.sqrt(n)
    # powers of ten with either sign, for q; r in front of the activation likewise
    return tuple(10 ** rng.uniform(-1, 1, n.size) * rng.choice([-1.0, 1.0], n.size) for _ in range(2))  # pyright: ignore


def _block(
    rows: np.ndarray,
    q: np.ndarray | None,
    r: np.ndarray | None,
    shape: PairShape,
    activation: str,
    rng: np.random.Generator,
    counts: np.ndarray | None = None,
) -> nf.MLPBlock:
    """Neurons [w, b, v] as a block; with counts, n v as its output weights, constants divided out."""
    d, e = shape.d, shape.d + shape.bias
    q_, r_ = (np.ones(len(rows)) if constant is None else constant for constant in (q, r))
    total = np.ones(len(rows)) if counts is None else counts
    w, v = rows[:, :e] / r_[:, None], rows[:, e:] * (total / q_)[:, None]
    b2 = jnp.asarray(rng.normal(size=shape.o)) if shape.bias else None
    arrays = (jnp.asarray(w[:, :d].T), jnp.asarray(w[:, d]) if shape.bias else None, jnp.asarray(v), b2)
    constants = [None if constant is None else jnp.asarray(constant) for constant in (q, r)]
    return nf.MLPBlock(*arrays, *constants, activation=activation)
