from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.theory.blocks.mixture_bounds import mixture_kernel_bound, mixture_output_bound

D, M, OUT, C, E, N = 5, 12, 3, 4, 3, 20


LABELS = jnp.arange(M) % C


@pytest.fixture
def case(x64):
    """Experts whose neurons are noisy copies of C neurons, a router, inputs."""
    rng = np.random.default_rng(0)
    neurons = np.tile(rng.normal(size=(E, C, D + OUT)), (1, M // C, 1)) + 0.05 * rng.normal(size=(E, M, D + OUT))
    return neurons, jnp.asarray(rng.normal(size=(D, E))), jnp.asarray(rng.normal(size=(N, D)))


def mixtures(case, constant: str, trained: bool) -> tuple[nf.models.MixtureBlock, nf.models.MixtureBlock]:
    """The original, and the means of its clusters with the constants of V1 or V4."""
    neurons, router, _ = case
    n = M // C
    means = neurons.reshape(E, n, C, D + OUT).mean(1)
    r = 1.0 if constant == "v1" else n**-0.5

    def expert(rows: np.ndarray, scale: float, q: float | None) -> nf.MLPBlock:
        w, v = jnp.asarray(rows[:, :D].T * scale), jnp.asarray(rows[:, D:] * scale)
        constants = {} if q is None else {"q": jnp.full(C, q), "r": jnp.full(C, 1 / scale)}
        return nf.MLPBlock(w, None, v, None, activation="relu", **constants)

    both = [expert(rows, 1.0, None) for rows in neurons], [expert(rows, 1 / r, n * r) for rows in means]
    old, new = (nf.models.MixtureBlock.stack(router, experts, train_router=trained) for experts in both)
    return old, new


@pytest.mark.parametrize(
    ("kind", "variant", "trained"),
    [
        ("sgd", "v4", True),
        pytest.param("sign", "v1", True, marks=pytest.mark.slow),
        pytest.param("sgd", "v4", False, marks=pytest.mark.slow),
        pytest.param("sign", "v1", False, marks=pytest.mark.slow),
    ],
)
def test_kernel_bound_holds_and_says_something(case, kind, variant, trained):
    x, (original, fused) = case[-1], mixtures(case, variant, trained)
    error = jnp.abs(nf.block_kernel(original, x, kind=kind) - nf.block_kernel(fused, x, kind=kind))
    bound = mixture_kernel_bound(original, fused, x, labels=[LABELS] * E, kind=kind)
    assert bool(jnp.all(error <= bound))
    assert float(jnp.linalg.norm(bound)) < 20 * float(jnp.linalg.norm(error))
    if not trained:
        chosen, _ = original.route(x)
        np.testing.assert_array_equal(np.asarray(bound)[np.asarray(chosen[:, None] != chosen[None, :])], 0)


def test_output_bound_holds(case):
    x, (original, fused) = case[-1], mixtures(case, "v1", True)
    error = jnp.linalg.norm(original(x) - fused(x), axis=1)
    bound = mixture_output_bound(original, fused, x, [LABELS] * E)
    assert bool(jnp.all(error <= bound))
    assert float(jnp.median(bound / error)) < 5


def test_without_the_routers_part_the_bound_is_violated(case):
    """The bound of the same experts behind a router that is not trained has every part but the router's."""
    x, (original, fused) = case[-1], mixtures(case, "v4", True)
    error = jnp.abs(nf.block_kernel(original, x) - nf.block_kernel(fused, x))
    without = mixture_kernel_bound(*mixtures(case, "v4", False), x, labels=[LABELS] * E)
    assert bool(jnp.any(error > without))


def test_another_router_is_refused(case):
    original, fused = mixtures(case, "v1", True)
    with pytest.raises(nf.InputError, match="routers"):
        mixture_output_bound(original, fused.replace(router=2 * fused.router), case[-1])
    with pytest.raises(nf.InputError, match="one array per expert"):
        mixture_output_bound(original, fused, case[-1], [LABELS])
