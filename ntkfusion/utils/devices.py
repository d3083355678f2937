"""Several devices: the rows of a kernel are shared among them, in one process or in several.

Examples are laid out as [devices, examples of each device]; device d computes the rows of its own examples. What all
devices need of each other's examples travels by ``all_gather``, one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

EVERYWHERE = PartitionSpec()


def row_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of devices along one axis, "rows": what kernels take as `mesh`.

    Args:
        devices: which ones; by default all, those of other processes included (after `jax.distributed.initialize`).

    Returns:
        The mesh. Any other mesh does as well: rows are shared among all of its devices.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("rows",))


def num_shares(mesh: Mesh | None) -> int:
    """Among how many devices the rows are shared."""
    return 1 if mesh is None else mesh.size


def devices_per_memory(mesh: Mesh | None) -> int:
    """How many devices of the mesh live in the same memory: on CPUs all of this process, else one."""
    if mesh is None or mesh.devices.flat[0].platform != "cpu":
        return 1
    return max(1, sum(device.process_index == jax.process_index() for device in mesh.devices.flat))


def device_limit(limit: int, mesh: Mesh | None) -> int:
    """The share of a memory limit that each device has; processes agree on the smallest, for they must do the same."""
    limit //= devices_per_memory(mesh)
    if mesh is None or mesh.local_mesh.size == mesh.size:
        return limit
    # in MiB: bytes do not fit into 32 bits
    mine = np.full(1, limit >> 20, np.int32)
    everyone = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, by_rows(mesh)), lambda _: mine)
    smallest = jax.jit(jnp.min, out_shardings=NamedSharding(mesh, EVERYWHERE))(everyone)
    agreed = int(smallest.addressable_data(0))
    return agreed << 20 if agreed else limit


def by_rows(mesh: Mesh | None) -> PartitionSpec:
    """The first axis is shared among all devices; without a mesh there is nothing to share."""
    return EVERYWHERE if mesh is None else PartitionSpec(mesh.axis_names)


def on_each(function: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The function as every device runs it on its own share; without a mesh, the function."""
    if mesh is None:
        return function
    # replication is not tracked through scans of values that differ from device to device
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def gathered(tree: Any, mesh: Mesh | None) -> Any:
    """Inside `on_each`: the shares of all devices, one behind the other along the first axis."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, mesh.axis_names, tiled=True), tree)


def placed(tree: Any, mesh: Mesh | None, spec: PartitionSpec) -> Any:
    """The arrays on the devices of the mesh. Every process passes the same values and keeps its part of them."""
    if mesh is None:
        return tree

    def place(leaf: Any) -> Array:
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, NamedSharding(mesh, spec), lambda index: values[index])

    return jax.tree.map(place, tree)


def shape_of(leaf: Any, mesh: Mesh | None, spec: PartitionSpec, rows: int | None = None) -> jax.ShapeDtypeStruct:
    """The array that a program is compiled for, with `rows` in front of its axes if given."""
    shape = leaf.shape if rows is None else (rows, *leaf.shape)
    sharding = None if mesh is None else NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)


def padded_rows(x: Array, mesh: Mesh) -> Array:
    """`x` with its last row repeated until the devices divide its rows."""
    missing = -x.shape[0] % mesh.size
    return jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]) if missing else x


def cropped(kernel: Any, mesh: Mesh | None, rows: int, columns: int) -> Any:
    """The first rows and columns; shared by rows if the devices divide them, else complete on every device."""
    if kernel.shape[:2] == (rows, columns):
        return kernel
    if mesh is None:
        return kernel[:rows, :columns]
    spec = EVERYWHERE if rows % mesh.size else by_rows(mesh)
    return jax.jit(lambda array: array[:rows, :columns], out_shardings=NamedSharding(mesh, spec))(kernel)


def fetch(kernel: Any) -> np.ndarray:
    """The whole kernel as a NumPy array, on every process; every process must call it.

    Args:
        kernel: what a kernel function returned.

    Returns:
        Its values.
    """
    if isinstance(kernel, jax.Array) and not kernel.is_fully_addressable:
        mesh = kernel.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
        kernel = jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, EVERYWHERE))(kernel)
        return np.asarray(kernel.addressable_data(0))
    return np.asarray(kernel)
