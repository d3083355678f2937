from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.compression.mlp_fusion import fuse
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.theory import mixture_bounds as module
from ntkfusion.theory.mixture_bounds import mixture_kernel_bound, mixture_output_bound

D, M, OUT, C, E, N = 5, 12, 3, 4, 3, 20


@pytest.fixture
def case(x64):
    """A mixture whose experts are noisy copies of C neurons; the clusterings; inputs."""
    keys = jax.random.split(jax.random.key(0), 3 * E + 2)
    experts = []
    for i in range(E):
        w1, w2 = jax.random.normal(keys[3 * i], (D, C)), jax.random.normal(keys[3 * i + 1], (C, OUT))
        noise = 0.05 * jax.random.normal(keys[3 * i + 2], (M, D + OUT))
        w1, w2 = jnp.tile(w1, (1, M // C)) + noise[:, :D].T, jnp.tile(w2, (M // C, 1)) + noise[:, D:]
        experts.append(nf.MLPBlock(w1, None, w2, None, activation="relu"))
    mixture = nf.MixtureBlock.stack(jax.random.normal(keys[-2], (D, E)), experts)
    clusters = [nf.kmeans(neuron_vectors(expert), C, seed=i) for i, expert in enumerate(experts)]
    return mixture, experts, clusters, jax.random.normal(keys[-1], (N, D))


def fused_mixture(case, variant: str, trained: bool) -> tuple[nf.MixtureBlock, nf.MixtureBlock]:
    mixture, experts, clusters, _ = case
    fused = [fuse(*pair, variant) for pair in zip(experts, clusters, strict=True)]
    stacks = [nf.MixtureBlock.stack(mixture.router, blocks, train_router=trained) for blocks in (experts, fused)]
    return stacks[0], stacks[1]


@pytest.mark.parametrize(("kind", "variant"), [("sgd", "v4"), ("sign", "v1")])
@pytest.mark.parametrize("trained", [True, False])
def test_kernel_bound_holds_and_says_something(case, kind, variant, trained):
    (*_, clusters, x), (original, fused) = case, fused_mixture(case, variant, trained)
    error = jnp.abs(nf.block_kernel(original, x, kind=kind) - nf.block_kernel(fused, x, kind=kind))
    bound = mixture_kernel_bound(original, fused, x, labels=[c.labels for c in clusters], kind=kind)
    assert bool(jnp.all(error <= bound))
    assert float(jnp.linalg.norm(bound)) < 20 * float(jnp.linalg.norm(error))
    if not trained:
        chosen, _ = original.route(x)
        np.testing.assert_array_equal(np.asarray(bound)[np.asarray(chosen[:, None] != chosen[None, :])], 0)


def test_output_bound_holds(case):
    (*_, clusters, x), (original, fused) = case, fused_mixture(case, "v1", True)
    error = jnp.linalg.norm(original(x) - fused(x), axis=1)
    bound = mixture_output_bound(original, fused, x, [c.labels for c in clusters])
    assert bool(jnp.all(error <= bound))
    assert float(jnp.median(bound / error)) < 5


def test_without_the_routers_part_the_bound_is_violated(case, monkeypatch):
    (*_, clusters, x), (original, fused) = case, fused_mixture(case, "v4", True)
    monkeypatch.setattr(module, "router_bound", lambda *args: jnp.zeros((N, N)))
    error = jnp.abs(nf.block_kernel(original, x) - nf.block_kernel(fused, x))
    assert bool(jnp.any(error > mixture_kernel_bound(original, fused, x, labels=[c.labels for c in clusters])))


def test_another_router_is_refused(case):
    original, fused = fused_mixture(case, "v1", True)
    with pytest.raises(nf.InputError, match="routers"):
        mixture_output_bound(original, fused.replace(router=2 * fused.router), case[3])
    with pytest.raises(nf.InputError, match="one array per expert"):
        mixture_output_bound(original, fused, case[3], [case[2][0].labels])
