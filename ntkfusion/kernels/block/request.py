"""A block kernel as a request: which tile its memory allows, and how devices share its rows."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.program import block_program, default_tile
from ntkfusion.kernels.block.terms import Outputs
from ntkfusion.kernels.estimate import Estimate, check_result, largest_that_fits, program_bytes
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.tiles import Parts
from ntkfusion.models.blocks.block import Block, is_coded, layout
from ntkfusion.utils.devices import EVERYWHERE, by_rows, cropped, device_limit, num_shares, on_each, padded_rows, placed
from ntkfusion.utils.memory import memory_limit as limit_in_bytes


@dataclasses.dataclass(frozen=True)
class BlockRequest:
    """The shapes and options of a call; hashable, and all that its program depends on.

    Attributes:
        block: the block's layout.
        x: the evaluated inputs.
        z: the training inputs, None for the same.
        kind: "sgd" or "sign".
        outputs: what is kept of every pair's o×o matrix.
        by_parameter: whether there is one kernel per parameter.
        names: the trained parameters.
        mesh: devices, or None.
    """

    block: Any
    x: jax.ShapeDtypeStruct
    z: jax.ShapeDtypeStruct | None
    kind: Kind
    outputs: Outputs
    by_parameter: bool
    names: tuple[str, ...]
    mesh: Mesh | None

    @classmethod
    def of(
        cls,
        block: Block,
        x: Any,
        z: Any,
        kind: Kind,
        trace: bool,
        diagonal: bool,
        by_parameter: bool,
        names: tuple[str, ...],
        mesh: Mesh | None,
    ) -> BlockRequest:
        """The request of a call of `block_kernel`, its options checked."""
        if is_coded(block):
            raise InputError(
                "a block kernel is with respect to dense weights, and this block stores codes of them: take "
                "block.decode() for the kernel of the decoded weights, or nf.network_kernel(f, block.parameters(), x) "
                "with f = lambda p, x: block.replace(**p)(x) for the exact one with respect to the stored numbers"
            )
        if diagonal and not trace:
            raise InputError(
                "diagonal=True and trace=False exclude each other: ask for the diagonal or the full kernel"
            )
        outputs = "diagonal" if diagonal else "trace" if trace else "full"
        shapes = [None if inputs is None else jax.ShapeDtypeStruct(inputs.shape, inputs.dtype) for inputs in (x, z)]
        return cls(layout(block), shapes[0], shapes[1], kind, outputs, by_parameter, names, mesh)  # pyright: ignore

    @property
    def options(self) -> dict[str, Any]:
        """The options of its program, the tile apart."""
        return {"kind": self.kind, "outputs": self.outputs, "by_parameter": self.by_parameter, "names": self.names}

    def plan(self, tile: int | None, memory_limit: int | str | None, *, exactly: bool = False) -> Estimate:
        """The tile, and the memory that goes with it."""
        if tile is not None and tile < 1:
            raise InputError(f"tile must be at least 1, got {tile}")
        limit = device_limit(limit_in_bytes(memory_limit), self.mesh)
        rows, columns = self.x.shape[0], (self.z or self.x).shape[0]
        o = self.block.output_width
        per_pair = self.x.dtype.itemsize * {"trace": 1, "diagonal": o, "full": o * o}[self.outputs]
        per_pair *= len(self.block.parameters()) if self.by_parameter else 1
        result = -(-rows // num_shares(self.mesh)) * columns * per_pair
        fits = math.isqrt(limit * num_shares(self.mesh) // per_pair)
        check_result(result, limit, fits, "rows", "" if self.outputs == "trace" else ", or the traced kernel")
        first = min(tile or default_tile(self.block, self.outputs), max(rows, columns))
        if not exactly and memory_limit is None and RESULTS * result + WORKSPACE <= limit:
            return Estimate(RESULTS * result + WORKSPACE, result, first, limit)
        advice = "raise memory_limit or take fewer rows"
        chunk, peak = largest_that_fits(lambda t: _program_bytes(self, t), first, limit, advice)
        return Estimate(peak, result, chunk, limit)


#: Without a limit, what a kernel with default tiles takes at most: so many times its result, and beside it so much.
RESULTS, WORKSPACE = 4, 2**30


@lru_cache(maxsize=256)
def _program_bytes(request: BlockRequest, tile: int) -> int:
    shares = num_shares(request.mesh)
    x = jax.ShapeDtypeStruct((-(-request.x.shape[0] // shares), request.x.shape[1]), request.x.dtype)
    z = request.x if shares > 1 and request.z is None else request.z
    with jax.default_matmul_precision("highest"):
        return program_bytes(block_program.lower(request.block, x, z, None, tile=tile, **request.options).compile())


def on_mesh(
    request: BlockRequest,
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None,
    rates: dict[str, float] | None,
    tile: int,
) -> Float[Array, "N M *outputs"] | Parts:
    """The kernel with its rows shared among the devices of the request's mesh."""
    mesh, count = request.mesh, x.shape[0]
    assert mesh is not None
    z = x if z is None else z
    rows = placed(padded_rows(x, mesh), mesh, by_rows(mesh))
    others = placed((block, z, rates), mesh, EVERYWHERE)
    kernels = _mesh_program(mesh, tile, tuple(request.options.items()))(rows, *others)
    return jax.tree.map(lambda kernel: cropped(kernel, mesh, count, z.shape[0]), kernels)


@lru_cache(maxsize=64)
def _mesh_program(mesh: Mesh, tile: int, options: tuple[tuple[str, Any], ...]) -> Any:
    """The program on every device: its own rows of x, the whole of z."""

    def share(x: Float[Array, "n d"], block: Block, z: Float[Array, "M d"], rates: Any) -> Any:
        return block_program(block, x, z, rates, tile=tile, **dict(options))

    return jax.jit(on_each(share, mesh, (by_rows(mesh), EVERYWHERE, EVERYWHERE, EVERYWHERE), by_rows(mesh)))
