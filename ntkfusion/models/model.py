"""A network with its weights: the object that `ntkfusion.load_model` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.bert import Bert
from ntkfusion.models.config import BertConfig
from ntkfusion.models.mlp import Block, layout
from ntkfusion.models.output import ModelOutput

Params = dict[str, Any]
ArrayLike = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
    """A configuration, its parameters, and the functions that need both.

    Attributes:
        config: the architecture, block layouts included.
        params: trainable arrays as nested dictionaries.
        constants: arrays that are never trained (q, r and masks of compressed blocks), same nesting.
        tokenizer: the checkpoint's tokenizer, or None.
        source: where the weights came from.
    """

    config: BertConfig
    params: Params
    constants: Params = dataclasses.field(default_factory=dict)
    tokenizer: Any = None
    source: str = "random weights"

    @property
    def module(self) -> nn.Module:
        """The linen module of this configuration."""
        return Bert(self.config)

    @property
    def num_parameters(self) -> int:
        """Trainable numbers that the whole model stores; of pruned weights those that survive."""
        pruned = sum(block.num_pruned for block in self.mlp_blocks())
        return sum(leaf.size for leaf in jax.tree.leaves(self.params)) - pruned

    def apply(
        self,
        params: Params,
        *,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        inputs_embeds: Float[ArrayLike, "B T d"] | None = None,
        attention_mask: Int[ArrayLike, "B T"] | None = None,
        token_type_ids: Int[ArrayLike, "B T"] | None = None,
    ) -> ModelOutput:
        """Run the network on a batch. Pure; wrap it in `jax.jit` as you like.

        Args:
            params: parameters with the structure of `self.params`.
            input_ids: token ids; or give `inputs_embeds`, word embeddings in their place.
            inputs_embeds: word embeddings, instead of `input_ids`.
            attention_mask: 1 for tokens, 0 for padding; by default all tokens.
            token_type_ids: segment of each token; by default 0.

        Returns:
            The `ModelOutput`.

        Raises:
            InputError: unless exactly one kind of input is given, or if it is longer than the positions of the model.
        """
        return self._run(params, input_ids, inputs_embeds, attention_mask, token_type_ids)

    def block_inputs(
        self, input_ids: Int[ArrayLike, "B T"], attention_mask: Int[ArrayLike, "B T"]
    ) -> tuple[Float[Array, "B T d"], ...]:
        """The input of every layer's MLP block, in layer order (compiled once per shape of the batch)."""
        return _block_inputs(self.config, self.params, self.constants, input_ids, attention_mask)

    def _run(
        self,
        params: Params,
        input_ids: Int[ArrayLike, "B T"] | None,
        inputs_embeds: Float[ArrayLike, "B T d"] | None,
        attention_mask: Int[ArrayLike, "B T"] | None,
        token_type_ids: Int[ArrayLike, "B T"] | None,
        **options: Any,
    ) -> Any:
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        shape = given.shape[:2]
        if shape[1] > self.config.max_position_embeddings:
            raise InputError(
                f"inputs are {shape[1]} tokens long; this model has {self.config.max_position_embeddings} positions. "
                "Truncate them."
            )
        ids = None if input_ids is None else jnp.asarray(input_ids)
        mask = jnp.ones(shape, jnp.int32) if attention_mask is None else jnp.asarray(attention_mask)
        types = jnp.zeros(shape, jnp.int32) if token_type_ids is None else jnp.asarray(token_type_ids)
        variables = {"params": params, "constants": self.constants}
        return self.module.apply(variables, ids, inputs_embeds, mask, types, **options)

    def mlp_blocks(self) -> list[Block]:
        """The MLP block of every layer, parameters and constants together."""
        blocks = []
        for index in range(self.config.num_hidden_layers):
            arrays = dict(self.params[_layer(index)]["mlp"])
            arrays |= self.constants.get(_layer(index), {}).get("mlp", {})
            blocks.append(self.config.block_layout(index).replace(**arrays))
        return blocks

    def replace_mlp_blocks(self, blocks: Mapping[int, Block]) -> Model:
        """A model with the MLP blocks of some layers exchanged; everything else is shared with this one.

        Args:
            blocks: layer index → new block, of any hidden width and kind.

        Returns:
            The new model, its configuration updated.

        Raises:
            InputError: for a layer that does not exist or a block whose input or output width does not fit.
        """
        layouts = [self.config.block_layout(index) for index in range(self.config.num_hidden_layers)]
        params, constants = dict(self.params), dict(self.constants)
        for index, block in blocks.items():
            self._check_fits(index, block)
            layouts[index] = layout(block)
            params[_layer(index)] = {**params[_layer(index)], "mlp": block.parameters()}
            constants[_layer(index)] = {"mlp": block.constants()}
        config = dataclasses.replace(self.config, mlp_layouts=tuple(layouts))
        return dataclasses.replace(self, config=config, params=params, constants=constants)

    def _check_fits(self, index: int, block: Block) -> None:
        if not 0 <= index < self.config.num_hidden_layers:
            raise InputError(
                f"layer {index} does not exist; this model has layers 0 to {self.config.num_hidden_layers - 1}"
            )
        widths = (block.model_width, block.output_width)
        if widths != (self.config.hidden_size, self.config.hidden_size):
            raise InputError(
                f"layer {index}: block maps {widths[0]} to {widths[1]}, the model needs {self.config.hidden_size}"
            )


@partial(jax.jit, static_argnames="config")
def _block_inputs(
    config: BertConfig,
    params: Params,
    constants: Params,
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"],
) -> tuple[Float[Array, "B T d"], ...]:
    # weights are arguments: closed over, they would become constants of every compiled program
    model = Model(config, params, constants)
    _, state = model._run(params, input_ids, None, attention_mask, None, mutable=["intermediates"])
    sown = state["intermediates"]
    return tuple(sown[_layer(index)]["mlp"]["block_input"][0] for index in range(config.num_hidden_layers))


def _layer(index: int) -> str:
    return f"layer_{index}"


def abstract_params(config: BertConfig) -> Params:
    """Shapes and dtypes of the parameters of a configuration, allocating nothing."""
    ids = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(Bert(config).init, jax.random.key(0), ids, None, ids, ids)
    return variables["params"]


def random_model(config: BertConfig, seed: int = 0) -> Model:
    """A model with freshly initialised weights (for tests and benchmarks).

    >>> from ntkfusion.models.config import BertConfig
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    >>> [block.hidden_width for block in random_model(tiny).mlp_blocks()]
    [16, 16]
    """
    ids = jnp.zeros((1, 1), jnp.int32)
    variables = Bert(config).init(jax.random.key(seed), ids, None, ids, ids)
    return Model(config, dict(variables["params"]))
