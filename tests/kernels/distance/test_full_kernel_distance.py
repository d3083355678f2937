"""Distances of full kernels against the tensors that they never form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.distance import full_kernel_distance as full_distance
from ntkfusion.kernels.distance.full_kernel_distance import full_kernel_distance, full_kernel_inner
from tests.helpers.blocks import dense_block, factorized_block, gated_block, mixture_block, normal

PAIRS = {
    "fewer neurons": lambda: (dense_block(constants=True), dense_block(m=4, seed=2)),
    "two factorized": lambda: (factorized_block(), factorized_block(k=3, m=4, seed=3, biases=False)),
    "gated, factorized": lambda: (gated_block(), factorized_block()),
}
FIELDS = ("relative_frobenius", "cosine", "alignment", "reference_norm", "new_norm")


def centred(kernel):
    kernel = kernel - np.mean(kernel, axis=0, keepdims=True)
    return kernel - np.mean(kernel, axis=1, keepdims=True)


def cosine(first, second):
    return np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second))


def by_hand(reference, new):
    norms = np.linalg.norm(reference), np.linalg.norm(new)
    error = np.linalg.norm(new - reference) / norms[0]
    return error, cosine(reference, new), cosine(centred(reference), centred(new)), *norms


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("fewer neurons", "sgd", marks=pytest.mark.wide),
        pytest.param("gated, factorized", "sgd", marks=pytest.mark.wide),
        pytest.param("gated, factorized", "sign", marks=pytest.mark.wide),
        ("two factorized", "sign"),
    ],
)
def test_equals_the_materialised_kernels(x64, name, kind, monkeypatch):
    monkeypatch.setattr(full_distance, "TILE", 4)
    rows = 6 if name == "fewer neurons" else 8  # a last tile that is not full needs another compilation
    (first, second), x, z = PAIRS[name](), normal(7, rows, 5), normal(8, 4, 5)
    kernels = jax.device_get([block_kernel(block, x, z, kind=kind, trace=False) for block in (first, second)])
    distance = full_kernel_distance(first, second, x, z, kind=kind)
    for field, expected in zip(FIELDS, by_hand(*kernels), strict=True):
        assert getattr(distance, field) == pytest.approx(float(expected), rel=1e-12, abs=1e-13), field
    inner = full_kernel_inner(first, second, x, z, kind=kind)
    scale = float(np.linalg.norm(kernels[0]) * np.linalg.norm(kernels[1]))
    assert abs(inner - float(np.sum(kernels[0] * kernels[1]))) <= 1e-12 * scale


@pytest.mark.wide
def test_float32_agrees_with_float64():
    first, second, x = dense_block(), dense_block(m=4, seed=2), normal(7, 6, 5)
    distance = full_kernel_distance(first, second, x)
    with jax.enable_x64(True):
        first, second, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (first, second, x))
        kernels = jax.device_get([block_kernel(block, x, trace=False) for block in (first, second)])
    for field, expected in zip(FIELDS, by_hand(*kernels), strict=True):
        assert getattr(distance, field) == pytest.approx(float(expected), rel=2e-5), field


def test_what_must_be_zero_and_one(x64):
    block, x = gated_block(), normal(7, 5, 5)
    distance = full_kernel_distance(block, block, x)
    assert distance.relative_frobenius <= 1e-7
    assert distance.cosine == pytest.approx(1, abs=1e-13)
    assert distance.alignment == pytest.approx(1, abs=1e-12)
    alone = full_kernel_distance(block, block, x[:1])
    assert alone.alignment == 0  # one example: nothing is left after centring


def test_prints_one_fact_per_line():
    lines = str(full_distance.FullKernelDistance(0.5, 0.9, 0.8, 2.0, 3.0)).splitlines()
    assert len(lines) == 5
    assert lines[0] == "FullKernelDistance(relative_frobenius=0.5,"
    assert lines[4].strip() == "new_norm=3)"


@pytest.mark.parametrize(
    ("new", "x", "message"),
    [
        (mixture_block(), jnp.ones((2, 5)), "compared for MLPBlock, FactorizedBlock, GatedBlock; got a MixtureBlock"),
        (dense_block(o=2), jnp.ones((2, 5)), "of 3 and 2 outputs cannot be compared"),
        (dense_block(d=4), jnp.ones((2, 5)), "x must hold at least one row of 4 numbers"),
    ],
)
def test_blocks_that_cannot_be_compared(new, x, message):
    for call in (full_kernel_distance, full_kernel_inner):
        with pytest.raises(InputError, match=message):
            call(dense_block(), new, x)
