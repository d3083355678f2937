"""What tests of saving share: blocks of every kind for a small model, and comparisons bit by bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.models.blocks.coded import Affine, CodedBlock, KroneckerMatrix, LatentMatrix, LowRankMatrix
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import MixtureBlock

IDS = np.array([[1, 5, 3, 2], [4, 4, 7, 0]])


def array(seed, *shape):
    """Random float32 numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def fused(m=6, d=8, *, seed=0, constants=True):
    """A dense block, with the constants that MLP Fusion gives its neurons."""
    q, r = (array(seed + 5, m), array(seed + 6, m)) if constants else (None, None)
    return MLPBlock(array(seed, d, m), array(seed + 1, m), array(seed + 2, m, d), array(seed + 3, d), q=q, r=r)


def factorised(m=12, d=8, k=2):
    """A block whose weights are products."""
    return FactorizedBlock(array(1, d, k), array(2, k, m), array(3, m), array(4, m, k), array(5, k, d), array(6, d))


def masked(m=12, d=8):
    """A block of which about half the weights are pruned, with constants."""
    one, two = (array(7, d, m) > 0).astype(jnp.float32), (array(8, m, d) > 0).astype(jnp.float32)
    block = fused(m, d)
    return MaskedBlock(block.w1, block.b1, block.w2, block.b2, mask1=one, mask2=two, q=block.q, r=block.r)


def coded(m=12, d=8, *, decoder=None):
    """A block of decoded weights."""
    decoder = decoder or (Affine(array(1, 3, 4), array(2, 4)), Affine(array(3, 4, d), array(4, d)))
    latent = LatentMatrix(array(5, m, 3), array(6, m), decoder, transposed=True, decoder_share=0)
    return CodedBlock(latent, array(7, m), LowRankMatrix(array(8, m, 2), array(9, 2, d)), array(10, d))


def every_kind():
    """Name → a block of model width 8."""
    kronecker = (
        KroneckerMatrix(array(1, 2, 4, 3), array(2, 2, 2, 4)),
        KroneckerMatrix(array(3, 1, 3, 4), array(4, 1, 4, 2)),
    )
    gated = GatedBlock(array(1, 8, 5), None, array(2, 8, 5), array(3, 5), array(4, 5, 8), array(5, 8))
    return {
        "dense": fused(5, constants=False),
        "constants": fused(6),
        "factorised": factorised(),
        "masked": masked(),
        "coded": coded(),
        "kronecker": CodedBlock(kronecker[0], None, kronecker[1], array(5, 8), activation="relu"),
        "gated": gated,
        "mixture": MixtureBlock.stack(array(1, 8, 3), [fused(4, seed=i) for i in range(3)], train_router=False),
        "coded mixture": MixtureBlock.stack(array(1, 8, 2), [coded(), coded()]),
    }


def outputs(model):
    """Last hidden states."""
    return np.asarray(model.apply(model.params, input_ids=IDS).last_hidden_state)


def assert_same_model(one, other):
    """Two models agree in everything but where they came from."""
    assert one.config == other.config
    for left, right in ((one.params, other.params), (one.constants, other.constants)):
        assert_same_tensors(_named(left), _named(right))


def _named(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_tensors(one, other):
    """Two dictionaries of arrays agree bit by bit."""
    assert one.keys() == other.keys()
    for name, left in one.items():
        assert left.dtype == other[name].dtype, name
        assert left.shape == other[name].shape, name
        assert left.tobytes() == other[name].tobytes(), name
