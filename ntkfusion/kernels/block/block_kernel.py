"""Exact kernels of one MLP block in closed form: no Jacobian is ever built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, overload

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.program import block_program
from ntkfusion.kernels.block.request import BlockRequest, on_mesh
from ntkfusion.kernels.estimate import Estimate
from ntkfusion.kernels.kinds import Kind, check_inputs, check_kind
from ntkfusion.kernels.tiles import Parts
from ntkfusion.models.blocks.block import Block


@overload
def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = ...,
    trace: bool = ...,
    diagonal: bool = ...,
    by_parameter: Literal[False] = ...,
    rates: Mapping[str, float] | None = ...,
    tile: int | None = ...,
    memory_limit: int | str | None = ...,
    mesh: Mesh | None = ...,
) -> Float[Array, "N M *outputs"]: ...


@overload
def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = ...,
    trace: bool = ...,
    diagonal: bool = ...,
    by_parameter: Literal[True],
    rates: Mapping[str, float] | None = ...,
    tile: int | None = ...,
    memory_limit: int | str | None = ...,
    mesh: Mesh | None = ...,
) -> Parts: ...


def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = "sgd",
    trace: bool = True,
    diagonal: bool = False,
    by_parameter: bool = False,
    rates: Mapping[str, float] | None = None,
    tile: int | None = None,
    memory_limit: int | str | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "N M *outputs"] | Parts:
    """The exact neural tangent kernel of an MLP block with respect to its parameters (not its constants).

    SGD: ``K(x, z) = ⟨∇f(x), ∇f(z)⟩``, symmetric. Sign: ``K(x, z) = ⟨∇f(x), sgn ∇f(z)⟩``, where z is the training
    example whose Adam/SignSGD step moves f(x); not symmetric. Formulas: the modules `dense`, `factorized`, `gated`,
    `masked` and `mixture` beside this one; derived in docs/theory.md.

    Args:
        block: the block.
        x: evaluated inputs of the block, one per row.
        z: training inputs; by default `x`.
        kind: "sgd" or "sign".
        trace: the mean over outputs of the diagonal, (1/o) Σ_k K_kk, as neural-tangents' ``trace_axes=(-1,)``; if
            False the full kernel of every pair of outputs.
        diagonal: keep K_kk of every output k instead of their mean.
        by_parameter: return {parameter name: kernel}; the kernels add up to the whole.
        rates: learning rates by parameter name, J C Jᵀ with C constant on each parameter: 0 is frozen, and what is not
            named has 1. New values do not compile again, unless a rate becomes 0 or ceases to be.
        tile: rows of x and z per tile; changes memory and speed, and the result only by rounding. By default 1024 for
            traced kernels, for full ones as many as keep an intermediate array near 256 MiB, and fewer if the memory
            limit asks for it.
        memory_limit: bytes, or a text such as "8GiB"; by default a safe share of what the machine has.
        mesh: devices to share the rows among, of one process or several (`ntkfusion.utils.devices.row_mesh`). Every
            process passes the same block and inputs. The result is shared by rows if the devices divide N, else it is
            complete on every device; `ntkfusion.utils.devices.fetch` gives it to every process.

    Returns:
        [N, M], or [N, M, o] for the diagonal, or [N, M, o, o] without trace; or a dictionary of such arrays.

    Raises:
        InputError: for inputs that do not fit the block, an unknown kind, a tile below 1, diagonal=True with
            trace=False, rates of unknown parameters, rates that are negative or not finite, or a kernel that does not
            fit into the memory limit.

    >>> import jax.numpy as jnp
    >>> from ntkfusion.models.blocks.dense import MLPBlock
    >>> block = MLPBlock(w1=jnp.eye(2), b1=None, w2=jnp.ones((2, 1)), b2=None, activation="relu")
    >>> block_kernel(block, jnp.array([[1.0, 2.0]]))   # a·a + x·x (1 + 1)
    Array([[15.]], dtype=float32)
    """
    check_kind(kind)
    check_inputs(block, x, z)
    names = _trained(block, rates)
    constants = None if rates is None else {name: float(rates.get(name, 1)) for name in names}
    request = BlockRequest.of(block, x, z, kind, trace, diagonal, by_parameter, names, mesh)
    plan = request.plan(tile, memory_limit)
    with jax.default_matmul_precision("highest"):
        if mesh is None:
            return block_program(block, x, z, constants, tile=plan.chunk, **request.options)
        return on_mesh(request, block, x, z, constants, plan.chunk)


def estimate_block_kernel(
    block: Block,
    num_x: int,
    num_z: int | None = None,
    *,
    kind: Kind = "sgd",
    trace: bool = True,
    diagonal: bool = False,
    by_parameter: bool = False,
    tile: int | None = None,
    memory_limit: int | str | None = None,
    mesh: Mesh | None = None,
) -> Estimate:
    """The memory that `block_kernel` takes, by compiling its program for those sizes; nothing runs.

    Args:
        block: the block, or its shapes (`ntkfusion.models.blocks.block.layout`).
        num_x: N, how many evaluated inputs.
        num_z: M, how many training inputs; by default the evaluated ones.
        kind: as in `block_kernel`.
        trace: as there.
        diagonal: as there.
        by_parameter: as there.
        tile: as there.
        memory_limit: as there.
        mesh: as there.

    Returns:
        The estimate; `chunk` is the tile.

    Raises:
        InputError: as `block_kernel`, if the kernel does not fit into the limit.
    """
    for name, number in (("num_x", num_x), ("num_z", num_x if num_z is None else num_z)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    dtype = jax.tree.leaves(block)[0].dtype
    x, z = (None if n is None else jax.ShapeDtypeStruct((n, block.model_width), dtype) for n in (num_x, num_z))
    request = BlockRequest.of(block, x, z, kind, trace, diagonal, by_parameter, tuple(block.parameters()), mesh)
    return request.plan(tile, memory_limit, exactly=True)


def _trained(block: Block, rates: Mapping[str, float] | None) -> tuple[str, ...]:
    """The parameters whose rate is not 0, in the block's order."""
    names, rates = tuple(block.parameters()), rates or {}
    if unknown := [name for name in rates if name not in names]:
        raise InputError(f"rates name {', '.join(unknown)}; the block's parameters are {', '.join(names)}")
    if wrong := {name: rate for name, rate in rates.items() if not (math.isfinite(rate) and rate >= 0)}:
        raise InputError(f"rates must be finite and not negative, got {wrong}; parameters: {', '.join(names)}")
    return tuple(name for name in names if rates.get(name, 1))
