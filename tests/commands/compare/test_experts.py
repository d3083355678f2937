"""Errors of experts on their own tokens, and whether tokens keep theirs, against the same by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.commands.compare.experts import ExpertReference, Routes
from ntkfusion.models.blocks.mixture import MixtureBlock
from tests.helpers.blocks import dense_block, mixture_block, normal


def relative(changed, original):
    return np.linalg.norm(np.asarray(changed) - np.asarray(original)) / np.linalg.norm(original)


@pytest.mark.wide
def test_every_expert_is_measured_on_the_tokens_that_it_gets():
    # experts 0 and 1 get 14 and 11 tokens, expert 2 one, expert 3 none
    router, counts = 5 * jnp.eye(5)[:, :4], (14, 11, 1, 0)
    experts = [dense_block(o=5, seed=seed) for seed in range(4)]
    x = 0.1 * normal(3, 26, 5)
    x = x.at[jnp.arange(26), jnp.array([0] * 14 + [1] * 11 + [2])].set(3.0)[np.random.default_rng(0).permutation(26)]
    block = MixtureBlock.stack(router, experts)
    small = nf.MLPFusion(0.5).compress([block], nf.compression.Workspace(0)).blocks[0]
    found = ExpertReference.of(block, x).errors(small)
    assert [(error.expert, error.tokens) for error in found] == list(enumerate(counts))
    for expert in (0, 1):
        own = x[np.flatnonzero(np.argmax(np.asarray(x @ router), axis=1) == expert)]
        new, old = small.expert(expert), experts[expert]
        assert found[expert].output_error == pytest.approx(relative(new(own), old(own)), rel=1e-4)
        for kind in ("sgd", "sign")[: 2 - expert]:
            expected = relative(*(nf.block_kernel(one, own, kind=kind) for one in (new, old)))
            assert getattr(found[expert], f"{kind}_kernel_error") == pytest.approx(expected, rel=1e-4)
    for expert in (2, 3):
        assert (found[expert].output_error, found[expert].sgd_kernel_error) == (None, None)
        assert found[expert].sign_kernel_error is None


def test_what_is_no_mixture_has_no_experts():
    block = mixture_block()
    assert ExpertReference.of(block, normal(1, 6, 5)).errors(block.expert(0)) is None


def test_routes_that_change():
    block, x = mixture_block(), normal(1, 40, 5)
    # the last two experts change places; a dense block has no routes
    other = block.replace(router=block.router[:, jnp.array([0, 2, 1])])
    chosen, p = (np.asarray(part) for part in block.route(x))
    before, after = (Routes.of([dense_block(), one, one], [x, x, x[::-1]]) for one in (block, other))
    assert before.chosen.keys() == {1, 2}
    change = before.change("svd", 0.5, after)
    moved = chosen != 0
    assert 0 < moved.sum() < 40
    assert (change.method, change.width, change.pairs) == ("svd", 0.5, 80)
    assert change.agreement == pytest.approx(1 - moved.mean())
    assert change.flipped_mass == pytest.approx(p.max(1)[moved].sum() / p.max(1).sum(), rel=1e-5)
    assert change.layers == {"1": pytest.approx(change.agreement), "2": pytest.approx(change.agreement)}
    assert before.compared_with(before) == (80, 1.0, 0.0)
    gone = before.change("svd", 0.5, Routes.of([dense_block()], [x]))
    assert (gone.pairs, gone.layers) == (0, {})
    assert np.isnan(gone.agreement)
