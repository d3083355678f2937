"""Run by test_devices.py in processes of their own: kernels on all devices against the same on one.

Usage: many_devices.py [PORT NUM_PROCESSES PROCESS_ID]; with XLA_FLAGS for several CPU devices in each process.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.kernels.block.block_kernel import block_kernel, estimate_block_kernel
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.kernels.network.network_kernel import estimate_network_kernel, network_kernel
from ntkfusion.utils.devices import fetch, row_mesh
from tests.helpers.blocks import dense_block, mixture_block, normal


def network(params, ids):
    """An embedding, two matrices, one of them tied, a bias and a scale."""
    hidden = jnp.tanh(params["table"][ids] @ params["w"] + params["b"][None, :])
    return ((hidden * params["scale"][None, :]) @ params["table"].T).mean(0) @ params["head"]


def worst_difference(found, expected) -> float:
    """Largest relative difference between two trees of kernels, which must have the same shapes."""

    def one(new, reference):
        values = fetch(new)
        assert values.shape == reference.shape, (values.shape, reference.shape)
        return float(np.max(np.abs(values - np.asarray(reference))) / np.max(np.abs(np.asarray(reference))))

    return max(jax.tree.leaves(jax.tree.map(one, found, expected)))


def main() -> None:
    """Print one line per case: its largest relative difference."""
    if sys.argv[1:]:
        port, count, index = map(int, sys.argv[1:])
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index, local_device_ids=None)
    jax.config.update("jax_enable_x64", True)
    mesh = row_mesh()
    print("devices", mesh.size, "processes", jax.process_count())

    block, x, z = dense_block(constants=True), normal(7, 16, 5), normal(8, 3, 5)
    for kind in KINDS:
        for name, inputs, options in (
            ("divided", (x,), {}),
            ("remainder and z", (x[:11], z), {"by_parameter": True, "rates": {"b1": 0.5}}),
            ("fewer than devices, full", (x[:1], z), {"trace": False}),
        ):
            expected = block_kernel(block, *inputs, kind=kind, **options)
            found = block_kernel(block, *inputs, kind=kind, mesh=mesh, tile=2, **options)
            print(f"block {kind} {name}", worst_difference(found, expected))
        expected, mixture = block_kernel(mixture_block(), x, kind=kind), mixture_block()
        print(f"mixture {kind}", worst_difference(block_kernel(mixture, x, kind=kind, mesh=mesh), expected))
    shared = block_kernel(block, x, mesh=mesh)
    print("rows per device", {shard.data.shape[0] for shard in shared.addressable_shards})
    print("bytes per device", estimate_block_kernel(block, 16, mesh=mesh).result)

    shapes = {"table": (11, 6), "w": (6, 6), "b": (6,), "scale": (6,), "head": (11, 2)}
    params = {name: normal(index, *shape) for index, (name, shape) in enumerate(shapes.items())}
    ids = jax.random.randint(jax.random.key(0), (19, 4), 0, 11, dtype=jnp.int32)
    # per device; all its devices share the memory of one process
    small = 40000 * mesh.local_mesh.size
    groups = {"table": "table", "matrices": ["w", "head"], "rest": "*"}
    for kind in KINDS:
        for name, inputs, options in (
            ("remainder", (ids,), {"groups": groups}),
            ("divided, z, chunks", (ids[:16], ids[5:12]), {"memory_limit": small}),
            ("chunks", (ids,), {"memory_limit": small}),
            ("more rows than columns", (ids[:16], ids[5:12]), {}),
        ):
            expected = network_kernel(network, params, *inputs, kind=kind, groups=options.get("groups"))
            found = network_kernel(network, params, *inputs, kind=kind, mesh=mesh, **options)
            if "memory_limit" in options:
                estimate = estimate_network_kernel(network, params, *inputs, kind=kind, mesh=mesh, **options)
                assert 1 <= estimate.chunk < -(-inputs[0].shape[0] // mesh.size), estimate
            print(f"network {kind} {name}", worst_difference(found, expected))


if __name__ == "__main__":
    main()
