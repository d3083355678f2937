"""Compress some layers of a model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import numpy as np

from ntkfusion.compression.contract import BlockReport, Method
from ntkfusion.compression.workspace import Workspace
from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model


def check_layers(layers: Iterable[SupportsIndex] | None, num_layers: int) -> tuple[int, ...]:
    """The layers as a sorted tuple; None means all.

    Raises:
        InputError: for a layer that does not exist, a layer named twice, none at all, or what is no list of numbers.

    >>> check_layers([np.int64(2), 0], 6)
    (0, 2)
    """
    if layers is None:
        return tuple(range(num_layers))
    chosen = tuple(sorted(_layer_numbers(layers)))
    wrong = [layer for layer in chosen if not 0 <= layer < num_layers]
    if wrong:
        raise InputError(f"layer {wrong[0]} does not exist; this model has layers 0 to {num_layers - 1}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise InputError(f"layers must name at least one layer, each once; got {list(chosen)}")
    return chosen


def _layer_numbers(layers: object) -> list[int]:
    """Whole numbers, of any type that says it is one."""
    wanted = "layers must be a list of whole numbers such as [0, 3]"
    if isinstance(layers, str | bytes) or not isinstance(layers, Iterable):
        raise InputError(f"{wanted}; got {layers!r} ({type(layers).__name__})")
    numbers = []
    for layer in layers:
        try:
            if isinstance(layer, bool | np.bool_):
                raise TypeError
            numbers.append(operator.index(layer))
        except TypeError as error:
            raise InputError(f"{wanted}; got {layer!r} ({type(layer).__name__}) in it") from error
    return numbers


def compress(
    model: Model,
    method: Method,
    *,
    layers: Iterable[int] | None = None,
    calibration: Sequence[str] | None = None,
    max_tokens: int = 8192,
    seed: int = 0,
) -> tuple[Model, dict[int, BlockReport]]:
    """A smaller model: some layers' MLP blocks replaced by what the method makes of them.

    Args:
        model: the original; it is not changed.
        method: for example ``MLPFusion(keep_ratio=0.25)``.
        layers: which layers; by default all.
        calibration: texts, for methods that look at real block inputs. The original's inputs are used for every layer.
        max_tokens: how many calibration tokens at most. Methods that fit weights need several per neuron that is kept.
        seed: drives all randomness.

    Returns:
        The new model, and one report per compressed layer.

    Raises:
        InputError: for layers that do not exist, or where the method does not apply.
    """
    chosen = check_layers(layers, model.config.num_blocks)
    every_block = model.mlp_blocks()
    blocks = [every_block[layer] for layer in chosen]
    method.check(blocks)
    inputs = None
    if calibration is not None:
        collected = collect_block_inputs(model, calibration, max_tokens=max_tokens, seed=seed)
        inputs = [collected.inputs[layer] for layer in chosen]
    compressed = method.compress(blocks, Workspace(seed, inputs))
    new = model.replace_mlp_blocks(dict(zip(chosen, compressed.blocks, strict=True)))
    return new, dict(zip(chosen, compressed.reports, strict=True))
