"""The autoencoder as a method: rows, norms, sharing, budgets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.compression.matrices.codecs import Matrix
from ntkfusion.compression.methods.autoencoder.network import AutoencoderTraining
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import layout
from ntkfusion.utils.parameter_paths import flatten
from tests.helpers.blocks import dense_block, normal

QUICK = AutoencoderTraining(epochs=3, batch=16)
D, M = 16, 24


def compress(blocks=None, workspace=None, **options):
    blocks = [dense_block(D, M, D, seed=seed) for seed in (1, 2)] if blocks is None else blocks
    method = nf.compression.Autoencoder(**{"keep_ratio": 0.5, "training": QUICK, **options})
    return blocks, method.compress(blocks, workspace or Workspace())


def norms(array, axis):
    return np.linalg.norm(np.asarray(array), axis=axis)


@pytest.mark.wide
@pytest.mark.parametrize("output_rows", ["outputs", "neurons"])
def test_row_norms_are_exact(output_rows):
    blocks, compressed = compress(output_rows=output_rows)
    for old, new in zip(blocks, compressed.blocks, strict=True):
        dense, axis = new.decode(), 0 if output_rows == "outputs" else 1
        np.testing.assert_allclose(norms(dense.w1, 0), norms(old.w1, 0), rtol=1e-5)
        np.testing.assert_allclose(norms(dense.w2, axis), norms(old.w2, axis), rtol=1e-5)
        assert new.w2.norms.shape == ((D,) if output_rows == "outputs" else (M,))
        np.testing.assert_array_equal(dense.b1, old.b1)


def test_fitted_scales_are_the_nearest_and_take_no_more():
    blocks, exact = compress(output_rows="neurons")
    _, fitted = compress(output_rows="neurons", scales="fitted")
    for old, one, other in zip(blocks, exact.blocks, fitted.blocks, strict=True):
        for name in ("w1", "w2"):
            best, rows = (np.asarray(getattr(block, name).decode()) for block in (other, one))
            original = np.asarray(getattr(old, name))
            assert np.linalg.norm(best - original) < np.linalg.norm(rows - original)
            axis = 0 if name == "w1" else 1
            np.testing.assert_allclose(((original - best) * best).sum(axis), 0, atol=1e-4)
        assert one.num_parameters == other.num_parameters


def test_codes_alone_give_the_block_back():
    """Encoder and training are gone: latents, norms and decoder by name are all there is."""
    block = compress()[1].blocks[0]
    names = {name.split("/")[1] for name in block.parameters() if "/" in name}
    assert names == {"latents", "norms", "decoder"}
    again = layout(block).replace(
        **{name: jnp.asarray(np.asarray(array)) for name, array in block.parameters().items()}
    )
    jax.tree.map(np.testing.assert_array_equal, again.decode(), block.decode())


@pytest.mark.wide
def test_one_decoder_for_all_layers_or_one_each():
    _, shared = compress()
    first, second = (block.w1 for block in shared.blocks)
    assert all(a is b for a, b in zip(jax.tree.leaves(first.decoder), jax.tree.leaves(second.decoder), strict=True))
    assert sum(code.decoder_share for code in (first, second)) == sum(
        array.size for array in flatten(first.decoder).values()
    )
    _, separate = compress(sharing="layer")
    assert first.latents.shape[1] > separate.blocks[0].w1.latents.shape[1]
    kernels = [block.w1.decoder[0].kernel for block in separate.blocks]
    assert not jnp.array_equal(*kernels)
    budget = dense_block(D, M // 2, D).num_parameters
    assert all(block.num_parameters <= budget for c in (shared, separate) for block in c.blocks)


@pytest.mark.slow
def test_layers_of_one_decoder_are_coded_better_together():
    """Four matrices whose rows one curved decoder made: at equal numbers, sharing is wider and closer."""
    frequencies, phases = normal(1, 3, 32), normal(2, 1, 32)
    layers = [jnp.sin(normal(10 + layer, 48, 3) @ frequencies + phases.repeat(48, 0)) for layer in range(4)]
    matrices = [Matrix(rows, rows.size // 3) for rows in layers]
    training = AutoencoderTraining(epochs=150, batch=16, rate=3e-3)
    errors, numbers = {}, {}
    for sharing in ("model", "layer"):
        found = nf.compression.Autoencoder(sharing=sharing, training=training).encode("rows", matrices, Workspace())
        errors[sharing] = np.mean([result.details["relative_error"] for result in found])
        numbers[sharing] = sum(result.code.num_parameters for result in found)
    assert max(numbers.values()) <= sum(matrix.budget for matrix in matrices)
    assert errors["model"] < 0.8 * errors["layer"]


def test_a_ratio_is_kept_matrix_by_matrix():
    _, compressed = compress(ratio=1.8)
    for block in compressed.blocks:
        assert block.w1.num_parameters <= D * M / 1.8
        assert block.w2.num_parameters <= D * M / 1.8
    with pytest.raises(InputError, match=r"at least 1; got 0\.5"):
        nf.compression.Autoencoder(ratio=0.5)


def test_nothing_is_coded_where_nothing_is_saved():
    for options in ({"keep_ratio": 1.0}, {"ratio": 1.0}):
        blocks, compressed = compress(**options)
        jax.tree.map(np.testing.assert_array_equal, compressed.blocks, tuple(block.fold() for block in blocks))


@pytest.mark.slow
def test_layers_of_other_widths_have_decoders_of_their_own():
    blocks = [dense_block(D, m, D, seed=m) for m in (M, 2 * M, M)]
    compressed = compress(blocks)[1].blocks
    decoders = [block.w1.decoder[0].kernel for block in compressed]
    assert decoders[0] is decoders[2]
    assert decoders[0] is not decoders[1]


def test_progress_and_losses_reach_the_listener():
    heard = []
    _, compressed = compress(workspace=Workspace(progress=lambda what, fraction: heard.append((what, fraction))))
    assert [round(fraction * 3) for _, fraction in heard] == [1, 2, 3] * 2
    assert {what for what, _ in heard} == {"autoencoder of w1", "autoencoder of w2"}
    details = compressed.reports[0].details
    assert details["w1_loss"] < details["w1_first_loss"]
    assert -1 <= details["w2_cosine"] <= 1


@pytest.mark.wide
@pytest.mark.parametrize("importance", ["fisher", "l1"])
def test_row_weights_come_from_gradients(importance):
    blocks = [dense_block(D, M, D)]
    # gradients at the first four neurons only: they are what is learned
    squared = {"w1": jnp.zeros((D, M)).at[:, :4].set(1.0), "w2": jnp.ones((M, D))}
    options = {
        "importance": importance,
        "linear": True,
        "training": AutoencoderTraining(epochs=150, batch=24, rate=0.03),
    }
    found = compress(blocks, Workspace(squared_gradients=[squared]), **options)[1].blocks[0].decode()
    errors = norms(found.w1 - blocks[0].w1, 0) / norms(blocks[0].w1, 0)
    assert errors[:4].max() < 0.5 * errors[4:].mean()
    with pytest.raises(InputError, match="calibration"):
        compress(blocks, importance=importance)


def test_blocks_too_small_for_a_latent_are_refused():
    with pytest.raises(
        InputError, match=r"24 rows of w1, and a decoder of 46 numbers, are 94, more than the budget of 66"
    ):
        compress([dense_block(6, 24, 6)])
    with pytest.raises(InputError, match="choose a larger width"):
        nf.compression.Autoencoder(0.01).check([dense_block(D, M, D)])


@pytest.mark.parametrize("name", ["sharing", "output_rows", "scales", "importance"])
def test_unknown_choices_are_refused(name):
    method = nf.compression.Autoencoder()
    # set behind the back of beartype, which checks the Literal in tests only
    object.__setattr__(method, name, "no")
    with pytest.raises(InputError, match=f"unknown {name} 'no' of the autoencoder; known"):
        method.__post_init__()
