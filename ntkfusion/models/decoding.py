"""One token after the other with a cache of keys and values: what greedy and beam search have in common.

Shapes: B prompts, T tokens of a prompt, R rows that are continued (prompts, or beams of prompts), V words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.batch import Batch
from ntkfusion.models.gpt2 import empty_cache
from ntkfusion.models.gpt2_config import GPT2Config
from ntkfusion.models.model import Params


class Weights(NamedTuple):
    """The arrays of a model; arguments of every compiled program."""

    params: Params
    constants: Params

    @property
    def dtype(self) -> Any:
        """The dtype of the parameters."""
        return jax.tree.leaves(self.params)[0].dtype


class Memory(NamedTuple):
    """What has been read: the cache, and the position of the next token of every row."""

    cache: dict[str, Any]
    positions: Int[Array, " R"]

    def rows(self, index: Int[Array, " R2"]) -> Memory:
        """The memory of some rows, of which some may be there twice."""
        return jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, self)


def read_prompt(
    config: GPT2Config, weights: Weights, ids: Int[Array, "B T"], mask: Int[Array, "B T"], *, capacity: int
) -> tuple[Float[Array, "B V"], Memory]:
    """Read prompts that end in a token each; padding is where the mask is 0.

    Args:
        config: a language model's.
        weights: its arrays.
        ids: the prompts.
        mask: 1 for tokens, 0 for padding.
        capacity: positions that the cache has room for.

    Returns:
        The logits of the next token, and the memory.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    batch = Batch(attention_mask=mask, input_ids=ids, position_ids=positions)
    logits, cache = _run(config, weights, batch, empty_cache(config, ids.shape[0], capacity, weights.dtype))
    return logits, Memory(cache, positions[:, -1] + 1)


def read_token(
    config: GPT2Config, weights: Weights, tokens: Int[Array, " R"], memory: Memory
) -> tuple[Float[Array, "R V"], Memory]:
    """Read one more token per row: the logits of the token behind it, and the memory."""
    ids, positions = tokens[:, None], memory.positions[:, None]
    batch = Batch(attention_mask=jnp.ones_like(ids), input_ids=ids, position_ids=positions)
    logits, cache = _run(config, weights, batch, memory.cache)
    return logits, Memory(cache, memory.positions + 1)


def _run(
    config: GPT2Config, weights: Weights, batch: Batch, cache: dict[str, Any]
) -> tuple[Float[Array, "R V"], dict[str, Any]]:
    variables = {"params": weights.params, "constants": weights.constants, "cache": cache}
    output, state = config.build().apply(variables, batch, last_only=True, mutable=["cache"])
    return output.logits[:, 0], dict(state["cache"])
