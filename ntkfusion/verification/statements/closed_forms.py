"""The closed forms of block kernels against dense Jacobians by automatic differentiation.

SGD kernel ⟨∇f(x), ∇f(z)⟩ and sign kernel ⟨∇f(x), sgn ∇f(z)⟩ of every kind of block, parameter by parameter and with the
full o×o matrix of every pair of inputs: dense with constants, factorised, gated, masked, mixture of experts.
Controls: the Jacobians of a block with another activation, without a constant or mask, or with a weight moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntkfusion as nf
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.oracles.dense_jacobian import block_function, jacobian
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.verification.bounds import FAST
from ntkfusion.verification.cases import ACTIVATIONS, normal, random_block
from ntkfusion.verification.check import Check, Scope
from ntkfusion.verification.outcome import CheckOutcome, CheckRow, Control

INPUTS = 6
D, M, OUT, RANK, EXPERTS = 5, 9, 3, 2, 3
#: Largest difference relative to the largest entry.
EXACT = 1e-12
KINDS: tuple[Kind, ...] = ("sgd", "sign")
OTHER = {"relu": "gelu", "gelu": "gelu_tanh", "gelu_tanh": "gelu", "silu": "gelu"}
#: The activation of each kind of block in quick mode.
QUICK = {
    "dense": ("relu", "gelu"),
    "factorised": ("gelu_tanh",),
    "gated": ("silu",),
    "masked": ("gelu",),
    "mixture": ("relu",),
}


def numbers(seed: int, *shape: int) -> jax.Array:
    """Normal numbers as a JAX array."""
    return jnp.asarray(normal(seed, *shape))


def dense(activation: str, seed: int) -> MLPBlock:
    """A dense block with constants away from 1."""
    block = random_block(activation, seed, M, D, OUT)
    return block.replace(q=jnp.exp(0.5 * numbers(seed + 1, M)), r=jnp.exp(numbers(seed + 2, M)))


def factorised(activation: str, seed: int) -> FactorizedBlock:
    """Two factors for each matrix, and constants."""
    like = dense(activation, seed)
    left1, right1 = numbers(seed + 3, D, RANK), numbers(seed + 4, RANK, M)
    left2, right2 = numbers(seed + 5, M, RANK), numbers(seed + 6, RANK, OUT)
    return FactorizedBlock(left1, right1, like.b1, left2, right2, like.b2, like.q, like.r, activation=activation)


def gated(activation: str, seed: int) -> GatedBlock:
    """A gate and a linear factor, with biases."""
    gate, up = random_block(activation, seed, M, D, OUT), random_block(activation, seed + 1, M, D, OUT)
    return GatedBlock(gate.w1, gate.b1, up.w1, up.b1, gate.w2, gate.b2, activation=activation)


def masked(activation: str, seed: int) -> MaskedBlock:
    """Holes in both matrices, with weights other than 0 under them, and constants."""
    like, generator = dense(activation, seed), np.random.default_rng(seed)
    mask1, mask2 = (jnp.asarray(generator.random(shape) < 0.6, jnp.float64) for shape in ((D, M), (M, OUT)))
    return MaskedBlock(like.w1, like.b1, like.w2, like.b2, mask1, mask2, like.q, like.r, activation=activation)


def mixture(activation: str, seed: int) -> MixtureBlock:
    """Experts without biases and a trained router."""
    experts = [random_block(activation, seed + e, M, D, OUT).replace(b1=None, b2=None) for e in range(EXPERTS)]
    return MixtureBlock.stack(numbers(seed + 9, D, EXPERTS), experts)


MAKERS: dict[str, Callable[[str, int], Block]] = {
    "dense": dense,
    "factorised": factorised,
    "gated": gated,
    "masked": masked,
    "mixture": mixture,
}


def wrong_blocks(block: Any) -> Iterator[tuple[str, Any]]:
    """The block with something left out, exchanged or moved, one thing at a time."""
    if isinstance(block, MLPBlock):
        yield f"the Jacobians of {OTHER[block.activation]}", block.replace(activation=OTHER[block.activation])
    for name in block.constants():
        yield f"{name} left out", block.replace(**{name: jnp.ones_like(getattr(block, name))})
    if not block.constants():
        name, weight = next(iter(block.parameters().items()))
        yield f"an entry of {name} moved by 1e-6", block.replace(**{name: weight.at[0, 0].add(1e-6)})


@partial(jax.jit, compiler_options=FAST)
def jacobians(block: Block, x: jax.Array) -> dict[str, jax.Array]:
    """∂f/∂parameters by reverse mode, [N, o, p] by parameter."""
    return jacobian(*block_function(block), x)


def dense_kernels(block: Block, x: jax.Array, z: jax.Array) -> dict[Kind, dict[str, np.ndarray]]:
    """Both kernels by parameter, [N, M, o, o], from one pair of Jacobians."""
    left, right = (jacobians(block, inputs) for inputs in (x, z))
    found: dict[Kind, dict[str, np.ndarray]] = {"sgd": {}, "sign": {}}
    for name in left:
        rows, columns = np.asarray(left[name]), np.asarray(right[name])
        found["sgd"][name] = np.einsum("nop,mqp->nmoq", rows, columns)
        found["sign"][name] = np.einsum("nop,mqp->nmoq", rows, np.sign(columns))
    return found


def errors(closed: dict[str, jax.Array], oracle: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every entry's difference by parameter, relative to the parameter's largest entry."""
    return {name: np.abs(np.asarray(closed[name]) - kernel) / np.abs(kernel).max() for name, kernel in oracle.items()}


def compare(kind_of_block: str, activation: str, seed: int) -> tuple[list[CheckRow], list[Control]]:
    """One block: a row per kernel and parameter, a control per thing that can be wrong."""
    block = MAKERS[kind_of_block](activation, seed)
    x, z = 0.5 * numbers(seed + 20, INPUTS, D), 0.5 * numbers(seed + 21, INPUTS, D)
    closed = {kind: nf.block_kernel(block, x, z, kind=kind, trace=False, by_parameter=True) for kind in KINDS}
    oracle, rows, controls = dense_kernels(block, x, z), [], []
    for kind in KINDS:
        found = errors(closed[kind], oracle[kind])
        case = f"{kind_of_block}, {activation}, {kind} kernels of {', '.join(found)}"
        rows.append(CheckRow.of_arrays(case, np.stack([*found.values()]), EXACT, of="entries", exact=True))
    for name, wrong in wrong_blocks(block):
        altered = dense_kernels(wrong, x, z)
        for kind in KINDS:
            far = max(error.max() for error in errors(closed[kind], altered[kind]).values())
            controls.append(Control(f"{kind_of_block}, {activation}, {kind} kernel: {name}", bool(far > EXACT)))
    return rows, controls


def run(scope: Scope) -> CheckOutcome:
    """Every kind of block; in full mode with every activation."""
    rows, controls = [], []
    for number, name in enumerate(MAKERS):
        for activation in QUICK[name] if scope.quick else ACTIVATIONS:
            found = compare(name, activation, 1000 * scope.seed + 100 * number)
            rows += found[0]
            controls += found[1]
    return CheckOutcome(tuple(rows), tuple(controls))


CHECK = Check(
    name="closed-forms",
    statement=(
        "The closed forms of the SGD and the sign kernel of dense (with constants), factorised, gated, masked and "
        "mixture blocks are the products of dense Jacobians, for every parameter and every pair of outputs."
    ),
    run=run,
)
