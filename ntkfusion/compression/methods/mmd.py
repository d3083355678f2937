"""Points that have the distribution of the neurons: minimise the maximum mean discrepancy (a baseline of MLP Fusion).

With neurons Θ [m, D] and free points Q [c, D], gradient descent on the biased estimate, diagonals included,

    MMD²(Θ, Q) = mean K_ΘΘ + mean K_QQ − 2 mean K_ΘQ,    K(θ, q) = Σ_{r=0..4} exp(−‖θ − q‖ / (β 2^r)).

The distances are not squared, as in the published implementation. β is a quarter of the mean distance between two
neurons of Θ; it stays fixed, so that the objective is one function and K_ΘΘ is computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.neurons import block_of_neurons, neuron_vectors
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.utils.pytrees import pytree

#: Decoupled weight decay of AdamW, PyTorch's default.
WEIGHT_DECAY = 1e-2

#: Steps between two reports of progress.
STEPS_AT_ONCE = 10

#: Rows of the distances among all neurons that are held at a time.
ROWS_AT_ONCE = 512


@pytree
class Descent:
    """Where AdamW is, and the points with the lowest objective on its way."""

    points: Float[Array, "c D"]
    memory: Any
    best: Float[Array, "c D"]
    lowest: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class MMDPoints(LayerwiseMethod):
    """c free points with the distribution of the m neurons, times √(m/c).

    The points start at c random neurons and are moved by AdamW; those with the lowest objective on the way are taken
    (the kernel has a peak where a point lies on a neuron, so that the first steps can lead up). All their weights are
    then multiplied by √(m/c), which for ReLU is the m/c that c neurons lack in a sum over m. The output bias is added
    once and stays as it is.

    Attributes:
        keep_ratio: the kept share of the hidden width; at 1 the block is returned as it is.
        steps: steps of AdamW.
        learning_rate: of AdamW.
        scale_b2: multiply the output bias by √(m/c) too (at a quarter of the width: double it), as the published
            implementation does. It shifts every output.
    """

    steps: int = 100
    learning_rate: float = 1e-2
    scale_b2: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a value out of range.
        """
        super().__post_init__()
        if self.steps < 0:
            raise InputError(f"steps must be at least 0; got {self.steps}")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate must be a number above 0; got {self.learning_rate}")

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Move the points and scale them."""
        m, count = block.hidden_width, self.kept_neurons(block.hidden_width)
        if count == m:
            return block, {"mmd_start": 0.0, "mmd": 0.0}
        name = ("mmd", index, count, self.steps, self.learning_rate)
        points, start, end = workspace.reuse(name, lambda: self._points(block, count, index, workspace))
        root = (m / count) ** 0.5
        small = block_of_neurons(points * root, block)
        if self.scale_b2 and small.b2 is not None:
            small = small.replace(b2=small.b2 * root)
        # the root of an estimate that rounding can leave just below 0
        return small, {"mmd_start": max(start, 0.0) ** 0.5, "mmd": max(end, 0.0) ** 0.5}

    def _points(
        self, block: MLPBlock, count: int, index: int, workspace: Workspace
    ) -> tuple[Float[Array, "c D"], float, float]:
        """The points, and MMD² before and after."""
        neurons = neuron_vectors(block)
        bandwidth, constant = bandwidth_and_mean(neurons)
        start = neurons[jax.random.permutation(workspace.key("mmd", index), len(neurons))[:count]]
        before = objective(start, neurons, bandwidth)
        state = Descent(start, _optimizer(self.learning_rate).init(start), start, before)
        for done in range(0, self.steps, STEPS_AT_ONCE):
            workspace.progress("moving MMD points", done / self.steps)
            number = min(STEPS_AT_ONCE, self.steps - done)
            state = _move(state, neurons, bandwidth, number, learning_rate=self.learning_rate)
            jax.block_until_ready(state.points)  # or progress would run ahead of the work
        state = _keep_lowest(state, objective(state.points, neurons, bandwidth))
        return state.best, float(constant + before), float(constant + state.lowest)


@jax.jit
def objective(
    points: Float[Array, "c D"], neurons: Float[Array, "m D"], bandwidth: Float[Array, ""]
) -> Float[Array, ""]:
    """Mean K_QQ − 2 mean K_ΘQ: MMD² without its constant, mean K_ΘΘ."""
    # kernels do not feel a shift, but squared distances as differences of squares lose fewer digits near the origin
    centre = jnp.mean(neurons, axis=0, keepdims=True)
    points, neurons = points - centre, neurons - centre
    own = jnp.mean(_kernel(_distances(points, points, same=True), bandwidth))
    return own - 2 * jnp.mean(_kernel(_distances(neurons, points), bandwidth))


@jax.jit
def bandwidth_and_mean(neurons: Float[Array, "m D"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """β, a quarter of the mean distance between two different neurons (1 if they all coincide), and mean K_ΘΘ."""
    m = neurons.shape[0]
    centred = neurons - jnp.mean(neurons, axis=0, keepdims=True)

    def over_rows(of_row: Any) -> Float[Array, ""]:
        return jnp.sum(jax.lax.map(of_row, centred, batch_size=min(m, ROWS_AT_ONCE)))

    mean = over_rows(lambda row: jnp.sum(_distances(row[None], centred))) / (m * max(m - 1, 1))
    bandwidth = jnp.where(mean > 0, mean / 4, 1)
    return bandwidth, over_rows(lambda row: jnp.sum(_kernel(_distances(row[None], centred), bandwidth))) / m**2


def _kernel(distances: Float[Array, "a b"], bandwidth: Float[Array, ""]) -> Float[Array, "a b"]:
    """Σ_{r=0..4} exp(−distance / (β 2^r)): the widest one, squared four times."""
    power = jnp.exp(-distances / (16 * bandwidth))
    total = power
    for _ in range(4):
        power = power * power
        total = total + power
    return total


def _distances(first: Float[Array, "a D"], second: Float[Array, "b D"], *, same: bool = False) -> Float[Array, "a b"]:
    """‖first_i − second_j‖ by the Gram matrix; with gradient 0 where points coincide to rounding (`same`: i = j)."""
    with jax.default_matmul_precision("highest"):
        gram = first @ second.T
    squares = jnp.sum(first**2, axis=1)[:, None] + jnp.sum(second**2, axis=1)[None, :]
    squared = squares - 2 * gram
    apart = squared > 16 * jnp.finfo(gram.dtype).eps * squares
    if same:
        apart &= ~jnp.eye(len(first), dtype=bool)
    # the root's own gradient at 0 is infinite, and 0 times it is not a number: so no root is taken there
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1)), 0)


def _optimizer(learning_rate: float) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, weight_decay=WEIGHT_DECAY)


@partial(jax.jit, static_argnames="learning_rate")
def _move(
    state: Descent,
    neurons: Float[Array, "m D"],
    bandwidth: Float[Array, ""],
    steps: int | Array,
    *,
    learning_rate: float,
) -> Descent:
    """So many steps of AdamW."""
    optimizer = _optimizer(learning_rate)

    def step(_: Any, state: Descent) -> Descent:
        value, gradient = jax.value_and_grad(objective)(state.points, neurons, bandwidth)
        # optax mixes counts and floats
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimizer.update(gradient, state.memory, state.points)
        kept = _keep_lowest(state, value)
        points = state.points + updates  # pyright: ignore[reportOperatorIssue]
        return Descent(points, memory, kept.best, kept.lowest)

    return jax.lax.fori_loop(0, steps, step, state)


def _keep_lowest(state: Descent, value: Float[Array, ""]) -> Descent:
    """The state after its points turned out to have this objective."""
    lower = value < state.lowest
    best = jnp.where(lower, state.points, state.best)
    return Descent(state.points, state.memory, best, jnp.minimum(value, state.lowest))
