"""The exact kernel of a whole network, of any function, with respect to any of its parameters.

One forward pass and one backward pass per output give the factors of every gradient (`taps`); then
the parameters are contracted one after the other (`parameter_kernels`), so that no more than a tile of
one parameter's gradients exists at a time. Examples are taken in chunks when the factors of all do not fit, and the
rows of the kernel are shared among the devices of a mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, PyTree

from ntkfusion.kernels.estimate import Estimate
from ntkfusion.kernels.kinds import Kind, Signs, check_kind, check_signs
from ntkfusion.kernels.network.plan import (
    AllFactors,
    AnalysedRequest,
    NetworkFunction,
    NetworkPlan,
    NetworkRequest,
    make_plan,
    remembered,
)
from ntkfusion.utils.devices import EVERYWHERE, by_rows, cropped, device_limit, num_shares, placed
from ntkfusion.utils.memory import memory_limit as limit_in_bytes
from ntkfusion.utils.parameter_paths import Select

#: A kernel as it is filled in: axes [devices, rows of each, devices, columns of each, C, C].
Tiled: TypeAlias = Float[Array, "D B E G C C"]


def network_kernel(
    f: NetworkFunction,
    params: PyTree,
    x: PyTree,
    z: PyTree = None,
    *,
    kind: Kind = "sgd",
    signs: Signs = "float",
    select: Select | None = None,
    groups: Mapping[str, Select] | None = None,
    memory_limit: int | str | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "N M C C"] | dict[str, Float[Array, "N M C C"]]:
    """The exact empirical NTK of ``f(params, one_example) -> [C]``.

    SGD: ``K(x, z)[c, d] = ⟨∇f_c(x), ∇f_d(z)⟩``. Sign: ``⟨∇f_c(x), sgn ∇f_d(z)⟩`` with z the training example. Sums over
    all selected parameters; not divided by anything.

    As for `jax.jit`, programs are compiled once for an f and its shapes, so f must be pure: what it closes over
    stays as it was at the first call. It runs on concrete arrays only, not inside `jax.jit`.

    Args:
        f: the function, of the parameters and one example without batch axis.
        params: pytree of parameters.
        x: evaluated examples: an array or pytree of arrays, examples along the first axis.
        z: training examples; by default `x`.
        kind: "sgd" or "sign".
        signs: "float", signs of gradients as they are computed, the only ones a network has: of sums over positions; of
            one position, of what goes into a weight matrix and what comes back. `ntkfusion.block_kernel` knows exact
            ones.
        select: parameters to differentiate; by default all. Paths are joined by slashes: "layer_0/mlp/w1".
        groups: name → which parameters: return one kernel per group. A parameter belongs to the first group that it
            fits; what fits none is left out.
        memory_limit: bytes, or a text such as "8GiB"; by default a safe share of what the machine has. Examples are
            taken in chunks that fit; the result changes by rounding only.
        mesh: devices to share the rows among, of one process or several (`ntkfusion.utils.devices.row_mesh`). Every
            process passes the same examples and parameters. The result is shared by rows if the devices divide N, else
            it is complete on every device; `ntkfusion.utils.devices.fetch` gives it to every process.

    Returns:
        [N, M, C, C], or {group: [N, M, C, C]}.

    Raises:
        InputError: if nothing is selected, f does not return a vector, examples differ in number or shape, the kind is
            unknown, signs are exact, or not even one example fits into the memory limit.
    """
    check_signs(signs, known=False)
    plan = _plan(
        NetworkRequest(
            f=f, params=params, x=x, z=z, kind=kind, select=select, groups=groups, memory_limit=memory_limit, mesh=mesh
        )
    )
    flat = placed(jax.tree.leaves(params), mesh, EVERYWHERE)
    n, m = plan.problem.shape[:2]
    kernels = {name: _zeros(plan) for name in plan.problem.group_names}
    for rows, columns, left, right in _pairs_of_chunks(plan, flat, x, z):
        for group, tile in plan.tiles(left, right).items():
            kernels[group] = _put(kernels[group], tile, rows, columns)
            if plan.mirrored and rows != columns:
                kernels[group] = _put(kernels[group], tile.transpose(1, 0, 3, 2), columns, rows)
        del left, right  # not to live while the factors of the next pair are computed
    found = {name: cropped(_flat(kernel), mesh, n, m) for name, kernel in kernels.items()}
    return found if groups is not None else found[plan.problem.group_names[0]]


def estimate_network_kernel(
    f: NetworkFunction,
    params: PyTree,
    x: PyTree,
    z: PyTree = None,
    *,
    kind: Kind = "sgd",
    signs: Signs = "float",
    select: Select | None = None,
    groups: Mapping[str, Select] | None = None,
    memory_limit: int | str | None = None,
    mesh: Mesh | None = None,
) -> Estimate:
    """The memory that `network_kernel` takes with the same arguments, from its compiled programs; nothing runs.

    Args:
        f: as there.
        params: as there, or their shapes.
        x: as there, or their shapes (`jax.ShapeDtypeStruct`, examples along the first axis).
        z: likewise.
        kind: as there.
        signs: as there.
        select: as there.
        groups: as there.
        memory_limit: as there.
        mesh: as there.

    Returns:
        The estimate; a call with the same arguments that follows does not compile again.

    Raises:
        InputError: as `network_kernel`.
    """
    check_signs(signs, known=False)
    return _plan(
        NetworkRequest(
            f=f, params=params, x=x, z=z, kind=kind, select=select, groups=groups, memory_limit=memory_limit, mesh=mesh
        )
    ).estimate


def _plan(request: NetworkRequest) -> NetworkPlan:
    """The plan of an earlier request like this one, or a new one."""
    check_kind(request.kind)
    limit = device_limit(limit_in_bytes(request.memory_limit), request.mesh)

    def make() -> NetworkPlan:
        with jax.default_matmul_precision("highest"):  # f's own products too, whose precision is that of its tracing
            problem = AnalysedRequest.of(request)
        return make_plan(problem, request.kind, request.mesh, z_is_x=request.z is None, limit=limit)

    return remembered(request.key(), make, limit)


def _pairs_of_chunks(
    plan: NetworkPlan, params: list[Array], x: PyTree, z: PyTree
) -> Iterator[tuple[int, int, AllFactors, AllFactors]]:
    """First rows and columns (of each device) with the factors; of a symmetric kernel each unordered pair once."""
    devices, (n, m) = num_shares(plan.mesh), plan.problem.shape[:2]
    for row in _starts(-(-n // devices), plan.chunk):
        left = _factors(plan, params, x, n, row)
        for column in _starts(-(-m // devices), plan.chunk):
            if plan.mirrored and column > row:
                break
            same = z is None and column == row
            yield row, column, left, left if same else _factors(plan, params, x if z is None else z, m, column)


def _starts(count: int, chunk: int) -> list[int]:
    """Where chunks begin; the last one reaches back into the one before, so that all have one size."""
    if count <= chunk:
        return [0]
    return [min(start, count - chunk) for start in range(0, count, chunk)]


def _factors(plan: NetworkPlan, params: list[Array], examples: PyTree, count: int, start: int) -> AllFactors:
    """The factors of a chunk: examples start … start + chunk of every device; beyond the end the last is repeated."""
    devices = num_shares(plan.mesh)
    first = np.arange(devices)[:, None] * -(-count // devices)
    which = np.minimum(first + start + np.arange(plan.chunk)[None, :], count - 1).reshape(-1)
    some = jax.tree.map(lambda array: array[which], examples)
    return plan.factor_program(params, placed(jax.tree.map(jnp.asarray, some), plan.mesh, by_rows(plan.mesh)))


def _zeros(plan: NetworkPlan) -> Tiled:
    """The kernel of one group, to be filled: as many rows for every device."""
    devices, (n, m, outputs, _) = num_shares(plan.mesh), plan.problem.shape
    rows, columns = (-(-count // devices) for count in (n, m))
    sharding = None if plan.mesh is None else NamedSharding(plan.mesh, by_rows(plan.mesh))
    return jnp.zeros((devices, rows, devices, columns, outputs, outputs), plan.problem.dtype, device=sharding)


@partial(jax.jit, donate_argnums=0)
def _put(
    kernel: Tiled, tile: Float[Array, "n m C C"], row: int | Int[Array, ""], column: int | Int[Array, ""]
) -> Tiled:
    """The kernel with a tile of it filled in (in place), without what a chunk has beyond a device's share."""
    devices, rows, _, columns = kernel.shape[:4]
    placed_tile = tile.reshape(devices, -1, devices, tile.shape[1] // devices, *tile.shape[2:])
    return jax.lax.dynamic_update_slice(kernel, placed_tile[:, :rows, :, :columns], (0, row, 0, column, 0, 0))


@jax.jit
def _flat(kernel: Tiled) -> Float[Array, "N M C C"]:
    devices, rows, _, columns = kernel.shape[:4]
    return kernel.reshape(devices * rows, devices * columns, *kernel.shape[4:])
