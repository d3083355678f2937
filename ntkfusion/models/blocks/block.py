"""Any MLP block: the union of its forms, its layout, and its weights as dense ones."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ntkfusion.models.blocks.coded import CodedBlock
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import MixtureBlock

#: Any MLP block.
Block: TypeAlias = MLPBlock | FactorizedBlock | GatedBlock | MaskedBlock | CodedBlock | MixtureBlock


def layout(block: Block) -> Any:
    """The block with `jax.ShapeDtypeStruct`s for arrays: hashable, and all that a network needs to know in advance."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype)), block)


def is_coded(block: Block) -> bool:
    """Whether a block, or the experts of a mixture, are coded."""
    return isinstance(block.experts if isinstance(block, MixtureBlock) else block, CodedBlock)


def as_dense_weights(block: Block) -> Block:
    """The block with its weights decoded if it is coded, else the block itself: what block kernels are measured of."""
    if isinstance(block, CodedBlock):
        return block.decode()
    if isinstance(block, MixtureBlock) and is_coded(block):
        experts = jax.vmap(lambda expert: expert.decode())(block.experts)
        return MixtureBlock(block.router, experts, train_router=block.train_router)
    return block
