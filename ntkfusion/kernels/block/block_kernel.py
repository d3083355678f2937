"""Exact kernels of one MLP block in closed form: no Jacobian is ever built.

A call becomes a request, whose memory is known before anything runs; the request becomes a program of
tiles (`program`), whose rows the devices of a mesh may share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Literal, overload

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.program import BlockOptions, block_program, default_tile
from ntkfusion.kernels.block.terms import Outputs, Parts, outputs_shape
from ntkfusion.kernels.estimate import Estimate, Shaped, check_result, largest_that_fits, program_bytes
from ntkfusion.kernels.kinds import Kind, Signs, check_inputs, check_kind, check_signs
from ntkfusion.models.blocks.block import Block, is_coded, layout
from ntkfusion.utils.devices import EVERYWHERE, by_rows, cropped, device_limit, num_shares, on_each, padded_rows, placed
from ntkfusion.utils.memory import memory_limit as limit_in_bytes

#: Without a limit, what a kernel with default tiles takes at most: so many times its result, and beside it so much.
RESULTS, WORKSPACE = 4, 2**30


@overload
def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = ...,
    signs: Signs = ...,
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
    signs: Signs = ...,
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
    signs: Signs = "exact",
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
        signs: of which gradients the sign kernel takes signs: "exact", the mathematical ones, known also where a value
            underflows; "float", those that the arithmetic gives, where a parameter whose gradient underflows does not
            move, as with a real optimiser. Read off what goes into a weight matrix and what comes back to it, each as
            computed in the inputs' precision; traced kernels then cost as much as those with diagonal=True.
        trace: the mean over outputs of the diagonal, (1/o) Σ_k K_kk, as neural-tangents' ``trace_axes=(-1,)``; if
            False the full kernel of every pair of outputs.
        diagonal: keep K_kk of every output k instead of their mean.
        by_parameter: return {parameter name: kernel}; the kernels add up to the whole.
        rates: learning rates by parameter name, J C Jᵀ with C constant on each parameter: 0 is not trained, and what is
            not named has 1. New values do not compile again, unless a rate becomes 0 or ceases to be.
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
        InputError: for inputs that do not fit the block, an unknown kind or unknown signs, a tile below 1,
            diagonal=True with trace=False, rates of unknown parameters, rates that are negative or not finite, or a
            kernel that does not fit into the memory limit.

    >>> import jax.numpy as jnp
    >>> from ntkfusion.models.blocks.dense import MLPBlock
    >>> block = MLPBlock(w1=jnp.eye(2), b1=None, w2=jnp.ones((2, 1)), b2=None, activation="relu")
    >>> block_kernel(block, jnp.array([[1.0, 2.0]]))   # a·a + x·x (1 + 1)
    Array([[15.]], dtype=float32)
    """
    check_kind(kind)
    check_signs(signs)
    check_inputs(block, x, z)
    names = _trained(block, rates)
    constants = None if rates is None else {name: float(rates.get(name, 1)) for name in names}
    outputs = _kept_outputs(block, trace=trace, diagonal=diagonal)
    options = BlockOptions(kind=kind, outputs=outputs, by_parameter=by_parameter, names=names, signs=signs)
    tile = BlockRequest.of(block, x, z, options, mesh).estimate(tile, memory_limit).chunk
    with jax.default_matmul_precision("highest"):
        if mesh is None:
            return block_program(block, x, z, constants, options=options, tile=tile)
        return _on_mesh(mesh, block, x, z, constants, options=options, tile=tile)


def estimate_block_kernel(
    block: Block,
    num_x: int,
    num_z: int | None = None,
    *,
    kind: Kind = "sgd",
    signs: Signs = "exact",
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
        signs: as there.
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
    check_signs(signs)
    for name, number in (("num_x", num_x), ("num_z", num_x if num_z is None else num_z)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    dtype = jax.tree.leaves(block)[0].dtype
    x = jax.ShapeDtypeStruct((num_x, block.model_width), dtype)
    z = None if num_z is None else jax.ShapeDtypeStruct((num_z, block.model_width), dtype)
    outputs = _kept_outputs(block, trace=trace, diagonal=diagonal)
    names = tuple(block.parameters())
    options = BlockOptions(kind=kind, outputs=outputs, by_parameter=by_parameter, names=names, signs=signs)
    return BlockRequest.of(block, x, z, options, mesh).estimate(tile, memory_limit, exactly=True)


def _trained(block: Block, rates: Mapping[str, float] | None) -> tuple[str, ...]:
    """The parameters whose rate is not 0, in the block's order."""
    names, rates = tuple(block.parameters()), rates or {}
    if unknown := [name for name in rates if name not in names]:
        raise InputError(f"rates name {', '.join(unknown)}; the block's parameters are {', '.join(names)}")
    if wrong := {name: rate for name, rate in rates.items() if not (math.isfinite(rate) and rate >= 0)}:
        raise InputError(f"rates must be finite and not negative, got {wrong}; parameters: {', '.join(names)}")
    return tuple(name for name in names if rates.get(name, 1))


def _kept_outputs(block: Block, *, trace: bool, diagonal: bool) -> Outputs:
    """What is kept of every pair's o×o matrix; coded blocks are refused."""
    if is_coded(block):
        raise InputError(
            "a block kernel is with respect to dense weights, and this block stores codes of them: take "
            "block.decode() for the kernel of the decoded weights, or nf.network_kernel(f, block.parameters(), x) "
            "with f = lambda p, x: block.replace(**p)(x) for the exact one with respect to the stored numbers"
        )
    if diagonal and not trace:
        raise InputError("diagonal=True and trace=False exclude each other: ask for the diagonal or the full kernel")
    return "diagonal" if diagonal else "trace" if trace else "full"


@dataclasses.dataclass(frozen=True)
class BlockRequest:
    """The shapes and options of a call; hashable, and all that its program depends on.

    Attributes:
        block: the block's layout.
        x: the evaluated inputs.
        z: the training inputs, None for the same.
        options: what is asked for.
        mesh: devices, or None.
    """

    block: Block
    x: jax.ShapeDtypeStruct
    z: jax.ShapeDtypeStruct | None
    options: BlockOptions
    mesh: Mesh | None

    @classmethod
    def of(cls, block: Block, x: Shaped, z: Shaped | None, options: BlockOptions, mesh: Mesh | None) -> BlockRequest:
        """The request of a call with those inputs, or inputs of those shapes."""
        return cls(layout(block), _shape(x), None if z is None else _shape(z), options, mesh)

    @property
    def pair_bytes(self) -> int:
        """Bytes of the result for one pair of inputs."""
        numbers = math.prod(outputs_shape(self.options.outputs, self.block.output_width))
        return self.x.dtype.itemsize * numbers * (len(self.block.parameters()) if self.options.by_parameter else 1)

    def estimate(self, tile: int | None, memory_limit: int | str | None, *, exactly: bool = False) -> Estimate:
        """The tile, and the memory that goes with it.

        Args:
            tile: rows of a tile, at most; None for the default.
            memory_limit: bytes, or a text; None for what the machine has.
            exactly: ask the compiler even where the kernel is sure to fit.

        Raises:
            InputError: if the kernel does not fit.
        """
        if tile is not None and tile < 1:
            raise InputError(f"tile must be at least 1, got {tile}")
        shares, limit = num_shares(self.mesh), device_limit(limit_in_bytes(memory_limit), self.mesh)
        rows, columns = self.x.shape[0], (self.z or self.x).shape[0]
        result = -(-rows // shares) * columns * self.pair_bytes
        fits = math.isqrt(limit * shares // self.pair_bytes)
        check_result(result, limit, fits, "rows", "" if self.options.outputs == "trace" else ", or the traced kernel")
        first = min(tile or default_tile(self.block, self.options.outputs), max(rows, columns))
        most = RESULTS * result + WORKSPACE
        if memory_limit is None and not exactly and most <= limit:
            return Estimate(most, result, first, limit)
        advice = "raise memory_limit or take fewer rows"
        chunk, peak = largest_that_fits(partial(_program_bytes, self), first, limit, advice)
        return Estimate(peak, result, chunk, limit)


def _shape(inputs: Shaped) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)


@lru_cache(maxsize=256)
def _program_bytes(request: BlockRequest, tile: int) -> int:
    """What the program for that tile allocates on each device."""
    shares = num_shares(request.mesh)
    x = jax.ShapeDtypeStruct((-(-request.x.shape[0] // shares), request.x.shape[1]), request.x.dtype)
    z = request.x if shares > 1 and request.z is None else request.z
    with jax.default_matmul_precision("highest"):
        program = block_program.lower(request.block, x, z, None, options=request.options, tile=tile)
        return program_bytes(program.compile())


def _on_mesh(
    mesh: Mesh,
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None,
    rates: Mapping[str, float] | None,
    *,
    options: BlockOptions,
    tile: int,
) -> Float[Array, "N M *outputs"] | Parts:
    """The kernel with its rows shared among the devices of the mesh."""
    count, z = x.shape[0], x if z is None else z
    rows = placed(padded_rows(x, mesh), mesh, by_rows(mesh))
    others = placed((block, z, rates), mesh, EVERYWHERE)
    kernels = _mesh_program(mesh, options, tile)(rows, *others)
    return jax.tree.map(lambda kernel: cropped(kernel, mesh, count, z.shape[0]), kernels)


@lru_cache(maxsize=64)
def _mesh_program(mesh: Mesh, options: BlockOptions, tile: int) -> Callable[..., Array | Parts]:
    """The program on every device: its own rows of x, the whole of z."""

    def share(
        x: Float[Array, "n d"], block: Block, z: Float[Array, "M d"], rates: Mapping[str, Array] | None
    ) -> Array | Parts:
        return block_program(block, x, z, rates, options=options, tile=tile)

    return jax.jit(on_each(share, mesh, (by_rows(mesh), EVERYWHERE, EVERYWHERE, EVERYWHERE), by_rows(mesh)))
