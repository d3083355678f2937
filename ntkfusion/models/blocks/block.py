"""Any MLP block: the union of its forms, its layout, and its weights as dense ones."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp

from ntkfusion.models.blocks.coded import CodedBlock
from ntkfusion.models.blocks.mixture import Expert, MixtureBlock

#: Any MLP block.
Block: TypeAlias = Expert | MixtureBlock

#: A block with `jax.ShapeDtypeStruct`s for arrays: hashable, and all that a network needs to know in advance.
Layout: TypeAlias = Block


def layout(block: Block) -> Layout:
    """The layout of a block."""
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
