"""Refit: the output weights of a compressed block by ridge regression on the original's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import overload

from jaxtyping import Array, Float

from ntkfusion.compression.ridge import ridge
from ntkfusion.errors import InputError
from ntkfusion.kernels.checks import check_inputs
from ntkfusion.models.mlp import Block, FactorizedBlock, MLPBlock


@overload
def refit_output(block: MLPBlock, original: Block, x: Float[Array, "N d"]) -> tuple[MLPBlock, Mapping[str, float]]: ...


@overload
def refit_output(
    block: Block, original: Block, x: Float[Array, "N d"]
) -> tuple[MLPBlock | FactorizedBlock, Mapping[str, float]]: ...


def refit_output(
    block: Block, original: Block, x: Float[Array, "N d"]
) -> tuple[MLPBlock | FactorizedBlock, Mapping[str, float]]:
    """Replace the last layer of a block by the one that comes closest to the original's outputs on `x`.

    Ridge regression of the original block's outputs on the compressed block's hidden activations (of a factorised
    block: on their images under left2), with an intercept if the block has output biases. The penalty is chosen by
    leave-one-out errors on `x` itself. Constants of the block are folded away: the regression changes what they stand
    for.

    Args:
        block: a compressed dense or factorised block.
        original: the block it came from.
        x: calibration inputs; more of them than neurons, or the penalty has to do all the work.

    Returns:
        The block with new output weights and bias, and the penalty and leave-one-out error by name.

    Raises:
        InputError: for another kind of block, or inputs that do not fit.
    """
    if not isinstance(block, (MLPBlock, FactorizedBlock)):
        raise InputError(f"refitting needs dense output weights; got a {type(block).__name__}")
    check_inputs(original, x, None)
    block = block.fold()
    hidden = block.hidden(x)
    features = hidden if isinstance(block, MLPBlock) else hidden @ block.left2
    weights, bias, penalty, error = ridge(features, original(x), intercept=block.b2 is not None)
    last = {"w2": weights} if isinstance(block, MLPBlock) else {"right2": weights}
    b2 = None if block.b2 is None else bias
    return block.replace(**last, b2=b2), {"refit_penalty": penalty, "refit_left_out_error": error}
