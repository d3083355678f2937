"""What runs inside a worker: each function prepares a problem and returns the call that is timed.

Sides of one race get the same weights and inputs, drawn from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

import ntkfusion as nf
from experiments.benchmarks.kernels.jacrev import jacrev_kernel
from experiments.common.store import Result
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.oracles.dense_jacobian import Function, block_function
from ntkfusion.kernels.oracles.neural_tangents import load_neural_tangents, reference_kernel
from ntkfusion.utils.devices import row_mesh

#: Computes once, and returns what is to be waited for.
Call = Callable[[], PyTree]


def random_block(d: int, m: int, o: int, n: int, seed: int) -> tuple[nf.MLPBlock, jax.Array]:
    """A GELU block with weights of the usual size, and n tokens."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    block = nf.MLPBlock(
        w1=normal(d, m, scale=d**-0.5),
        b1=normal(m, scale=0.1),
        w2=normal(m, o, scale=m**-0.5),
        b2=normal(o, scale=0.1),
        activation="gelu",
    )
    return block, normal(n, d)


def rows_over_devices(sharded: bool) -> Mesh | None:
    """What spreads the rows of a kernel over all devices, if it is to."""
    return row_mesh() if sharded else None


def block_ours(kind: Kind, sharded: bool = False, **problem: int) -> Call:
    """The closed form."""
    block, x = random_block(**problem)
    mesh = rows_over_devices(sharded)
    return lambda: nf.block_kernel(block, x, kind=kind, mesh=mesh)


def reference(f: Function, params: PyTree, x: PyTree, trace: bool, implementation: str, batch_size: int | None) -> Call:
    """neural-tangents, compiled once, block by block of the symmetric kernel.

    Kinder to it than ``neural_tangents.batch``, which computes the blocks on both sides of the diagonal.
    """
    load_neural_tangents()
    n = jax.tree.leaves(x)[0].shape[0]
    size = batch_size or n
    block = jax.jit(lambda params, x, z: reference_kernel(f, params, x, z, trace=trace, implementation=implementation))

    def some(start: int) -> PyTree:
        return jax.tree.map(lambda array: array[start : start + size], x)

    def kernel() -> jax.Array | None:
        total: jax.Array | None = None
        for rows in range(0, n, size):
            for columns in range(0, rows + 1, size):
                tile = jax.block_until_ready(block(params, some(rows), some(columns)))
                total = jnp.zeros((n, n, *tile.shape[2:]), tile.dtype) if total is None else total
                total = total.at[rows : rows + size, columns : columns + size].set(tile)
                mirrored = tile.T if trace else tile.transpose(1, 0, 3, 2)
                total = total.at[columns : columns + size, rows : rows + size].set(mirrored)
        return total

    return kernel


def block_reference(implementation: str, batch_size: int | None, **problem: int) -> Call:
    """neural-tangents on the block."""
    block, x = random_block(**problem)
    f, params = block_function(block)
    return reference(f, params, x, True, implementation, batch_size)


class NetworkArguments(TypedDict):
    """The arguments of `random_network`."""

    config: Result
    n: int
    t: int
    seed: int


def random_network(config: Result, n: int, t: int, seed: int) -> tuple[Function, PyTree, PyTree]:
    """A random BERT with a classification head as f(params, example), its parameters, and n examples of t tokens."""
    bert = nf.BertConfig(**config)
    model = nf.random_model(bert, seed)

    def f(params: PyTree, example: PyTree) -> jax.Array:
        out = model.apply(params, input_ids=example["ids"][None], attention_mask=example["mask"][None])
        assert out.logits is not None
        return out.logits[0]

    ids = np.random.default_rng(seed).integers(0, bert.vocab_size, (n, t), dtype=np.int32)
    return f, model.params, {"ids": jnp.asarray(ids), "mask": jnp.ones((n, t), jnp.int32)}


def network_ours(
    kind: Kind, memory_limit: int | None = None, sharded: bool = False, **problem: Unpack[NetworkArguments]
) -> Call:
    """The exact kernel of all parameters."""
    f, params, x = random_network(**problem)
    mesh = rows_over_devices(sharded)
    return lambda: nf.network_kernel(f, params, x, kind=kind, memory_limit=memory_limit, mesh=mesh)


def network_reference(implementation: str, batch_size: int | None, **problem: Unpack[NetworkArguments]) -> Call:
    """neural-tangents on the network."""
    f, params, x = random_network(**problem)
    return reference(f, params, x, False, implementation, batch_size)


def network_jacrev(by: str, budget: int, **problem: Unpack[NetworkArguments]) -> Call:
    """Dense Jacobians by reverse mode, in pieces of `budget` bytes."""
    f, params, x = random_network(**problem)
    return jacrev_kernel(f, params, x, by, budget)


def matmul(shape: tuple[int, int, int]) -> Call:
    """One float32 product at full precision: what the machine can do."""
    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    left = jnp.asarray(rng.standard_normal((rows, inner)), jnp.float32)
    right = jnp.asarray(rng.standard_normal((inner, columns)), jnp.float32)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    return lambda: product(left, right)


CONTESTANTS: dict[str, Callable[..., Call]] = {
    "block": block_ours,
    "block-reference": block_reference,
    "network": network_ours,
    "network-reference": network_reference,
    "network-jacrev": network_jacrev,
    "matmul": matmul,
}
