"""Compressed models in the shape of their architecture: dense blocks of one width, without constants."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import jax
import jax.numpy as jnp

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block, Layout
from ntkfusion.models.blocks.coded import CodedBlock
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import Expert, MixtureBlock
from ntkfusion.models.model import Model

#: Array → the axis of its neurons, counted from the end: experts are stacked along a first axis.
_NEURON_AXES = {"w1": -1, "b1": -1, "w2": -2, "gate": -1, "gate_bias": -1, "up": -1, "up_bias": -1}

T = TypeVar("T")

_KEEP = "format='ntkfusion' keeps the blocks as they are"


def exportable(model: Model, *, pad: bool = False, merge: bool = False) -> Model:
    """A model with the same function whose every MLP block is what its architecture has.

    Constants are folded into the weights and masks applied; the function stays, its kernels may not.

    Args:
        model: any model.
        pad: fill blocks of different widths up to the widest with zero neurons, which do not change the function.
        merge: multiply factorised and coded weights out to dense ones.

    Returns:
        The model, without block layouts in its configuration; the model itself if it is like that already.

    Raises:
        InputError: if blocks differ in width, or are factorised or coded, and nobody said what to do; if a block is of
            a kind that the architecture does not have.
    """
    if not model.config.mlp_layouts and not model.constants:
        return model
    blocks = model.mlp_blocks()
    if not merge:
        _refuse_factors(blocks)
    with jax.default_matmul_precision("highest"):
        plain = [_plain(block) for block in blocks]
    widths = [block.hidden_width for block in plain]
    if len(set(widths)) > 1 and not pad:
        raise InputError(
            f"the MLP blocks have different widths ({_listed(widths)}), and this format has one for all. pad=True "
            f"fills them with zero neurons up to {max(widths)}, which costs {_zeros(plain)} numbers; {_KEEP}"
        )
    return _with_blocks(model, [_padded(block, max(widths)) for block in plain], max(widths))


def _with_blocks(model: Model, blocks: list[Block], width: int) -> Model:
    config = dataclasses.replace(model.config, mlp_layouts=())
    if any(config.original_layout(index).hidden_width != width for index in range(config.num_blocks)):
        config = dataclasses.replace(config, **{config.WIDTH_FIELD: width})
    for index, block in enumerate(blocks):
        wanted = config.original_layout(index)
        blocks[index] = fitting = _with_biases(block, wanted)
        if _signature(fitting) != _signature(wanted):
            raise InputError(
                f"MLP block {index} is {_described(fitting)}; a {config.architecture} in this format has "
                f"{_described(wanted)} there. {_KEEP}"
            )
    replaced = dataclasses.replace(model, constants={}).replace_mlp_blocks(dict(enumerate(blocks)))
    return dataclasses.replace(replaced, config=config)


def _plain(block: Block) -> Block:
    """The block with dense weights and no constants."""
    if isinstance(block, MixtureBlock):
        # one expert after the other: what is the same for all (kinds, shapes) is seen only once
        return MixtureBlock(block.router, jax.vmap(_plain_expert)(block.experts), train_router=True)
    return _plain_expert(block)


def _plain_expert(block: Expert) -> Expert:
    if isinstance(block, FactorizedBlock | MaskedBlock):
        return block.merge()
    if isinstance(block, CodedBlock):
        return block.decode()
    return block.fold() if isinstance(block, MLPBlock) else block


def _refuse_factors(blocks: list[Block]) -> None:
    kinds = {index: _factored(block) for index, block in enumerate(blocks)}
    concerned = [index for index, kind in kinds.items() if kind]
    if not concerned:
        return
    stored = sum(blocks[index].num_parameters for index in concerned)
    layouts = [jax.eval_shape(_plain, blocks[index]) for index in concerned]
    dense = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layouts))
    names = " or ".join(sorted({kind for kind in kinds.values() if kind}))
    raise InputError(
        f"MLP blocks {', '.join(map(str, concerned))} have {names} weights, which this format has no place for. "
        f"merge=True multiplies them out to dense ones, which takes {dense:,} numbers instead of {stored:,}; {_KEEP}"
    )


def _factored(block: Block) -> str:
    inner = block.experts if isinstance(block, MixtureBlock) else block
    return {FactorizedBlock: "factorised", CodedBlock: "coded"}.get(type(inner), "")


def _padded(block: Block, width: int) -> Block:
    """The block with neurons of zero weights up to `width`."""
    if isinstance(block, MixtureBlock):
        return block.replace(experts=_padded(block.experts, width))
    present = {name: array for name, axis in _NEURON_AXES.items() if (array := getattr(block, name, None)) is not None}
    arrays = {name: _filled(array, _NEURON_AXES[name], width) for name, array in present.items()}
    return _exchanged(block, arrays)


def _exchanged(block: T, arrays: dict[str, jax.Array]) -> T:
    # leaf by leaf: the constructor would refuse arrays of experts, which have a leading axis
    new = object.__new__(type(block))
    for field in dataclasses.fields(block):  # pyright: ignore[reportArgumentType]
        object.__setattr__(new, field.name, arrays.get(field.name, getattr(block, field.name)))
    return new


def _filled(array: jax.Array, axis: int, width: int) -> jax.Array:
    missing = [(0, 0)] * array.ndim
    missing[axis] = (0, width - array.shape[axis])
    return jnp.pad(array, missing) if missing[axis][1] else array


def _with_biases(block: Block, wanted: Layout) -> Block:
    """The block with biases of zero where the architecture has biases."""
    if isinstance(block, MixtureBlock) and isinstance(wanted, MixtureBlock):
        return block.replace(experts=_with_biases(block.experts, wanted.experts))
    if not isinstance(block, MLPBlock) or not isinstance(wanted, MLPBlock):
        return block
    matrices = {"b1": block.w1, "b2": block.w2}
    absent = [name for name in matrices if getattr(block, name) is None and getattr(wanted, name) is not None]
    return _exchanged(block, {name: jnp.zeros_like(matrices[name][..., 0, :]) for name in absent})


def _signature(block: Block) -> tuple[object, ...]:
    return jax.tree.structure(block), tuple(leaf.shape for leaf in jax.tree.leaves(block))


def _described(block: Block) -> str:
    names = ", ".join(f"{name} {list(array.shape)}" for name, array in block.parameters().items())
    return f"a {type(block).__name__} with {block.activation} ({names})"


def _listed(widths: list[int]) -> str:
    return ", ".join(f"{widths.count(width)} × {width}" for width in sorted(set(widths)))


def _zeros(blocks: list[Block]) -> str:
    width = max(block.hidden_width for block in blocks)
    before = sum(block.num_parameters for block in blocks)
    after = sum(
        math.prod(leaf.shape)
        for block in blocks
        for leaf in jax.tree.leaves(jax.eval_shape(lambda one: _padded(one, width), block))
    )
    return f"{after - before:,}"
