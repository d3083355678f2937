"""Coded blocks: decoded at load or on the fly, inside of a model, and what their kernels are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.kernels.oracles.dense_jacobian import block_function, dense_kernel
from ntkfusion.models.blocks.block import as_dense_weights, layout
from ntkfusion.models.blocks.coded import Affine, CodedBlock, KroneckerMatrix, LatentMatrix, LowRankMatrix
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.utils.parameter_paths import flatten
from tests.helpers.blocks import dense_block, normal, relative


def latent_matrix(n=6, k=4, x=2, *, seed=0, **options) -> LatentMatrix:
    widths, keys = (x, 2 * x, 4 * x, k), range(3)
    decoder = tuple(
        Affine(normal(100 * seed + key, i, j), normal(100 * seed + 10 + key, j))
        for key, i, j in zip(keys, widths, widths[1:], strict=False)
    )
    return LatentMatrix(normal(seed + 20, n, x), jnp.exp(normal(seed + 21, n)), decoder, **options)


def coded_block(d=4, m=6, *, seed=0, biases=True) -> CodedBlock:
    """W1 from latents of its neurons, W2 a sum of Kronecker products."""
    b1, b2 = (normal(seed + 1, m), normal(seed + 2, d)) if biases else (None, None)
    w2 = KroneckerMatrix(normal(seed + 3, 2, 2, 2), normal(seed + 4, 2, m // 2, d // 2))
    return CodedBlock(latent_matrix(m, d, seed=seed, transposed=True), b1, w2, b2, activation="gelu")


def test_latents_decode_as_the_formula_says(x64):
    code = latent_matrix()
    h = np.asarray(code.latents)
    for affine in code.decoder[:-1]:
        h = h @ np.asarray(affine.kernel) + np.asarray(affine.bias)
        h = np.where(h > 0, h, 0.01 * h)
    h = np.tanh(h @ np.asarray(code.decoder[-1].kernel) + np.asarray(code.decoder[-1].bias))
    expected = np.asarray(code.norms)[:, None] * h / np.linalg.norm(h, axis=1, keepdims=True)
    np.testing.assert_allclose(code.decode(), expected, rtol=1e-12)
    np.testing.assert_allclose(latent_matrix(transposed=True).decode(), expected.T, rtol=1e-12)


def test_a_decoder_of_one_layer_is_linear(x64):
    affine = Affine(normal(0, 2, 4), normal(1, 4))
    code = LatentMatrix(normal(2, 6, 2), jnp.ones(6), (affine,))
    rows = code.latents @ affine.kernel + affine.bias[None, :]
    assert relative(code.decode(), rows / jnp.linalg.norm(rows, axis=1, keepdims=True)) <= 1e-14


def test_kronecker_layout_is_numpys(x64):
    code = KroneckerMatrix(normal(0, 3, 2, 5), normal(1, 3, 4, 2))
    expected = sum(np.kron(a, b) for a, b in zip(code.left, code.right, strict=True))
    np.testing.assert_allclose(code.decode(), expected, rtol=1e-12)
    assert code.shape == expected.shape == (8, 10)
    assert code.num_parameters == 3 * (10 + 8)


def test_row_norms_and_biases_count():
    block = coded_block()
    code = block.w1
    assert code.num_parameters == 6 * 2 + 6 + (2 * 4 + 4) + (4 * 8 + 8) + (8 * 4 + 4)
    assert block.num_parameters == code.num_parameters + 2 * (4 + 6) + 6 + 4
    assert block.num_parameters == sum(array.size for array in block.parameters().values())


def test_a_shared_decoder_is_charged_in_shares():
    whole = latent_matrix()
    decoder = sum(array.size for array in flatten(whole.decoder).values())
    shares = [(decoder + index) // 3 for index in range(3)]
    codes = [latent_matrix(decoder_share=share) for share in shares]
    own = whole.latents.size + whole.norms.size
    assert sum(code.num_parameters for code in codes) == 3 * own + decoder


def test_on_the_fly_is_decode_and_apply(x64):
    block, x = coded_block(), normal(9, 5, 4)
    dense = block.decode()
    assert isinstance(dense, MLPBlock)
    assert (dense.model_width, dense.hidden_width, dense.output_width) == (4, 6, 4)
    assert (block.model_width, block.hidden_width, block.output_width) == (4, 6, 4)
    assert relative(jax.jit(lambda b: b(x))(block), dense(x)) <= 1e-14


def test_parameters_round_trip_through_names_and_layout():
    for biases in (True, False):
        block = coded_block(biases=biases)
        again = layout(block).replace(**block.parameters())
        jax.tree.map(np.testing.assert_array_equal, again, block)
        assert hash(layout(block)) == hash(layout(again))
    assert coded_block().replace(activation="relu").activation == "relu"
    assert {"w1/latents", "w1/norms", "w1/decoder/0/kernel", "w2/left", "b1", "b2"} <= coded_block().parameters().keys()


@pytest.mark.slow
def test_a_network_runs_and_trains_on_coded_blocks():
    config = nf.BertConfig(
        vocab_size=13, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6
    )
    model, block, ids = nf.random_model(config), coded_block(), jnp.array([[1, 5, 9]])
    coded, dense = (model.replace_mlp_blocks({0: new}) for new in (block, block.decode()))
    out, expected = (jax.jit(m.apply)(m.params, input_ids=ids).last_hidden_state for m in (coded, dense))
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert coded.num_parameters == dense.num_parameters + block.num_parameters - block.decode().num_parameters
    gradient = jax.jit(jax.grad(lambda p: coded.apply(p, input_ids=ids).last_hidden_state[0, 0, 0]))(coded.params)
    assert all(float(jnp.max(jnp.abs(g))) > 0 for g in gradient["layer_0"]["mlp"].values())


def test_layers_that_share_a_decoder_store_it_once():
    config = nf.BertConfig(
        vocab_size=13, hidden_size=4, num_hidden_layers=2, num_attention_heads=2, intermediate_size=6
    )
    block = coded_block()
    whole = block.w1.num_parameters - block.w1.latents.size - block.w1.norms.size
    halves = {
        layer: block.replace(w1=latent_matrix(6, 4, transposed=True, decoder_share=whole // 2)) for layer in (0, 1)
    }
    model = nf.random_model(config)
    dense = model.replace_mlp_blocks({layer: block.decode() for layer in (0, 1)})
    saved = 2 * (block.decode().num_parameters - block.num_parameters) + whole
    assert model.replace_mlp_blocks(halves).num_parameters == dense.num_parameters - saved


def test_block_kernels_of_codes_are_refused():
    block, x = coded_block(), normal(9, 3, 4)
    for call in (lambda: nf.block_kernel(block, x), lambda: nf.estimate_block_kernel(block, 3)):
        with pytest.raises(InputError, match=r"block\.decode\(\).*nf\.network_kernel"):
            call()
    assert nf.block_kernel(as_dense_weights(block), x).shape == (3, 3)


@pytest.mark.wide
@pytest.mark.parametrize("kind", ["sgd", "sign"])
def test_the_kernel_of_the_stored_numbers_is_the_network_kernel(x64, kind):
    """What the refusal advises, against a dense Jacobian."""
    block, x = coded_block(), normal(9, 3, 4)
    found = nf.network_kernel(lambda p, one: block.replace(**p)(one), block.parameters(), x, kind=kind)
    expected = dense_kernel(*block_function(block), x, kind=kind, trace=False)
    assert relative(found, expected) <= 1e-12


@pytest.mark.wide
def test_experts_may_be_coded(x64):
    experts, x = [coded_block(seed=seed, biases=False) for seed in (1, 2)], normal(9, 7, 4)
    mixture = MixtureBlock.stack(normal(0, 4, 2), experts)
    dense = MixtureBlock.stack(normal(0, 4, 2), [expert.decode() for expert in experts])
    assert relative(mixture(x), dense(x)) <= 1e-14
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), as_dense_weights(mixture), dense)
    again = layout(mixture).replace(**mixture.parameters())
    jax.tree.map(np.testing.assert_array_equal, again, mixture)
    with pytest.raises(InputError, match="stores codes"):
        nf.block_kernel(mixture, x)


def test_dense_blocks_are_left_alone():
    block = dense_block()
    assert as_dense_weights(block) is block


def test_low_rank_matrices_decode_to_their_product():
    code = LowRankMatrix(normal(0, 3, 2), normal(1, 2, 5))
    np.testing.assert_array_equal(code.decode(), code.left @ code.right)
    assert (code.shape, code.num_parameters) == ((3, 5), 16)
