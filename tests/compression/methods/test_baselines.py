"""The baselines against independent computations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.methods.random_neurons import RandomNeurons
from ntkfusion.compression.methods.sketch import Sketch
from ntkfusion.compression.methods.structured_pruning import StructuredPruning
from ntkfusion.compression.methods.svd import SVD, matched_rank
from ntkfusion.compression.neurons import block_of_neurons, largest, neuron_vectors, select_neurons, weight_products
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from tests.helpers.blocks import dense_block, normal, relative


def only(method, block, seed=0):
    return method.compress([block], Workspace(seed)).blocks[0]


def test_neuron_vectors_round_trip():
    for biases in (True, False):
        block = dense_block(biases=biases)
        again = block_of_neurons(neuron_vectors(block), block)
        for name, array in block.parameters().items():
            np.testing.assert_array_equal(array, again.parameters()[name])


def test_neurons_can_be_permuted(x64):
    block, x = dense_block(), normal(1, 4, 5)
    shuffled = select_neurons(block, jnp.array([3, 1, 0, 6, 5, 2, 4]))
    assert relative(shuffled(x), block(x)) <= 1e-14


def test_svd_rank_is_the_papers_for_bert_base():
    """r = 153 for d = 768, m = 3072, a quarter of the width (the rank of MLP Fusion's baseline)."""
    block = dense_block(768, 3072, 768)
    assert matched_rank(block, 768) == 153


@pytest.mark.parametrize("split", ["balanced", "left"])
def test_svd_is_the_best_approximation_of_its_rank(x64, split):
    block = dense_block(12, 40, 12)
    small = only(SVD(0.5, split=split), block)
    rank = small.left1.shape[1]
    assert 1 < rank < 12
    for product, original in ((small.left1 @ small.right1, block.w1), (small.left2 @ small.right2, block.w2)):
        tail = np.linalg.svd(original, compute_uv=False)[rank:]
        assert float(jnp.linalg.norm(product - original)) == pytest.approx(np.sqrt((tail**2).sum()), rel=1e-10)


def test_svd_splits_agree_in_function_and_differ_in_kernel(x64):
    block, x = dense_block(12, 40, 12), normal(1, 6, 12)
    balanced, left = only(SVD(0.5), block), only(SVD(0.5, split="left"), block)
    assert relative(balanced(x), left(x)) <= 1e-12
    assert relative(block_kernel(balanced, x), block_kernel(left, x)) > 0.05
    gram = balanced.left1.T @ balanced.left1
    assert relative(gram, balanced.right1 @ balanced.right1.T) <= 1e-12


def test_svd_says_when_the_width_is_too_small():
    with pytest.raises(InputError, match="choose a larger width"):
        only(SVD(0.01), dense_block(4, 20, 4))


def test_structured_pruning_keeps_the_largest_products_together():
    block = dense_block()
    scores = np.linalg.norm(block.w1, axis=0) * np.linalg.norm(block.w2, axis=1)
    np.testing.assert_allclose(weight_products(block), scores, rtol=1e-6)
    kept = np.sort(np.argsort(-scores)[:4])
    small = only(StructuredPruning(4 / 7), block)
    np.testing.assert_array_equal(small.w1, block.w1[:, kept])
    np.testing.assert_array_equal(small.b1, block.b1[kept])
    np.testing.assert_array_equal(small.w2, block.w2[kept])


def test_ties_go_to_the_lower_index():
    assert largest(jnp.array([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]


def test_sketch_keeps_the_top_and_sketches_the_rest():
    block = dense_block(5, 30, 5)
    small = only(Sketch(0.4, top_k=0.5), block)
    top = largest(weight_products(block), 6)
    np.testing.assert_array_equal(small.w1[:, :6], block.w1[:, top])
    np.testing.assert_array_equal(small.w2[:6], block.w2[top])


@pytest.mark.wide
def test_sketch_is_unbiased_for_the_product_of_the_weights(x64):
    """E[S Sᵀ] = I, so the mean of W1 S Sᵀ W2 over seeds tends to W1 W2."""
    block = dense_block(3, 20, 3)
    products = [(small := only(Sketch(0.5), block, seed)).w1 @ small.w2 for seed in range(800)]
    mean, error = np.mean(products, axis=0), np.std(products, axis=0) / np.sqrt(len(products))
    assert np.all(np.abs(mean - block.w1 @ block.w2) < 5 * error)


def test_sketch_fraction_out_of_range():
    with pytest.raises(InputError, match=r"from 0 to 1; got 2\.0"):
        Sketch(0.5, top_k=2.0)


def test_random_neurons_are_neurons_counted_m_over_c_times():
    block = dense_block(5, 30, 5)
    small = only(RandomNeurons(1 / 3), block)
    assert small.q.tolist() == [3.0] * 10
    columns = {tuple(column) for column in np.asarray(block.w1).T.tolist()}
    assert all(tuple(column) in columns for column in np.asarray(small.w1).T.tolist())
    assert only(RandomNeurons(1 / 3, rescale=False), block).q is None


@pytest.mark.wide
def test_rescaled_random_neurons_have_an_unbiased_output(x64):
    block, x = dense_block(3, 12, 3).replace(b2=None), normal(1, 2, 3)
    outputs = np.stack([only(RandomNeurons(0.5), block, seed)(x) for seed in range(400)])
    error = outputs.std(axis=0) / np.sqrt(len(outputs))
    assert np.all(np.abs(outputs.mean(axis=0) - block(x)) < 5 * error)
