"""A network with its weights: the object that `ntkfusion.load_model` returns.

Around it what it is made and run with, whatever the architecture: batches, the hidden states behind every layer, the
inputs of every MLP block, and parameters that are fresh or of which only the shapes are wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch, ModelOutput
from ntkfusion.models.blocks.block import Block, layout
from ntkfusion.models.config import JsonObject, ModelConfig
from ntkfusion.models.indices import check_indices, indices_are_checked
from ntkfusion.models.inputs import Given, checked_inputs
from ntkfusion.models.registry import build_network
from ntkfusion.utils.parameter_paths import Params, subtree, with_subtree

ArrayLike = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a checkpoint says beside its weights.

    Attributes:
        config: the contents of its ``config.json``, keys included that do not change the computed function.
        dtypes: tensor → how it is stored, in safetensors' words; by the names of the checkpoint's architecture, without
            prefix.
        files: path in its folder → contents, of every other file that is written back as it is.
        left_behind: path in its folder → why it is not written back.
    """

    config: JsonObject = dataclasses.field(default_factory=dict)
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    left_behind: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True)
class Model:
    """A configuration, its parameters, and the functions that need both.

    Attributes:
        config: the architecture, block layouts included.
        params: trainable arrays as nested dictionaries.
        constants: arrays that are never trained (q, r and masks of compressed blocks), same nesting.
        tokenizer: the checkpoint's tokenizer, or None.
        source: where the weights came from.
        origin: the checkpoint's own configuration, dtypes and other files, written back when the model is saved.
    """

    config: ModelConfig
    params: Params
    constants: Params = dataclasses.field(default_factory=dict)
    tokenizer: Any = None
    source: str = "random weights"
    origin: Origin = Origin()

    @property
    def module(self) -> nn.Module:
        """The linen module of this configuration."""
        return build_network(self.config)

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
        position_ids: Int[ArrayLike, "B T"] | None = None,
        decoder_input_ids: Int[ArrayLike, "B U"] | None = None,
        decoder_attention_mask: Int[ArrayLike, "B U"] | None = None,
        dropout_key: Array | None = None,
        checked: bool | None = None,
    ) -> ModelOutput:
        """Run the network on a batch. Pure; wrap it in `jax.jit` as you like.

        Args:
            params: parameters with the structure of `self.params`.
            input_ids: token ids; or give `inputs_embeds`, word embeddings in their place.
            inputs_embeds: word embeddings, instead of `input_ids`.
            attention_mask: 1 for tokens, 0 for padding; by default all tokens.
            token_type_ids: segment of each token (BERT); by default 0.
            position_ids: position of each token; by default counted from the left.
            decoder_input_ids: what the decoder reads (encoder–decoder models); by default `input_ids`, shifted to the
                right behind the start token.
            decoder_attention_mask: 1 for tokens of the decoder, 0 for padding; by default all tokens.
            dropout_key: a JAX key, to train with dropout; without it nothing is dropped.
            checked: whether every index is looked at first, to find out where NaN comes from; by default as the
                environment variable ``NTKFUSION_CHECK_INDICES`` says. Otherwise a token, segment or position that the
                model does not have gives NaN, or another one's row.

        Returns:
            The `ModelOutput`.

        Raises:
            InputError: unless exactly one kind of input is given, for arrays of another kind or shape than these, or if
                the input is longer than the positions of the model; if indices are looked at, and the model has no row
                for one.
        """
        arrays = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
        }
        if indices_are_checked(checked):  # before 64 bits become 32
            check_indices(self.config, arrays)
        batch = make_batch(arrays, self.config)
        dropout = {} if dropout_key is None else {"deterministic": False, "rngs": {"dropout": dropout_key}}
        return self._run(params, batch, **dropout)

    def hidden_states(self, params: Params, **inputs: ArrayLike) -> tuple[Float[Array, "B _ d"], ...]:
        """The hidden states behind every layer in turn, without dropout. Pure, as `apply`.

        The embeddings are no layer. A norm behind the last layer (GPT-2, Switch Transformer) is not applied: there, the
        last entry is not `last_hidden_state`. Of an encoder–decoder model the encoder's layers come first.

        Args:
            params: parameters with the structure of `self.params`.
            inputs: what `apply` reads, by the same names.

        Returns:
            [B, T, d] for each layer.

        Raises:
            InputError: as `apply`.
        """
        if indices_are_checked():
            check_indices(self.config, inputs)
        batch = make_batch(inputs, self.config)
        return hidden_states(self.config, params, self.constants, batch)

    def block_inputs(
        self, input_ids: Int[ArrayLike, "B T"], attention_mask: Int[ArrayLike, "B T"]
    ) -> tuple[Float[Array, "B T d"], ...]:
        """The input of the MLP block of every layer in turn (compiled once per shape of the batch).

        Layers that share a block (`ModelConfig.applications`) have an entry each. A decoder reads the same tokens as
        the encoder, shifted to the right: its row t is the position that predicts token t.
        """
        if indices_are_checked():
            check_indices(self.config, {"input_ids": input_ids})
        given = checked_inputs({"input_ids": input_ids, "attention_mask": attention_mask}, self.config)
        return _block_inputs(self.config, self.params, self.constants, **given)

    def _run(self, params: Params, batch: Batch, **options: Any) -> Any:
        return self.module.apply({"params": params, "constants": self.constants}, batch, **options)

    def mlp_blocks(self) -> list[Block]:
        """Every MLP block, parameters and constants together, in the order of the network."""
        blocks = []
        for index, path in enumerate(self.config.block_paths):
            arrays = dict(subtree(self.params, path))
            arrays |= subtree(self.constants, path)
            blocks.append(self.config.block_layout(index).replace(**arrays))
        return blocks

    def replace_mlp_blocks(self, blocks: Mapping[int, Block]) -> Model:
        """A model with some MLP blocks exchanged; everything else is shared with this one.

        Args:
            blocks: number of the block → new block, of any hidden width and kind.

        Returns:
            The new model, its configuration updated.

        Raises:
            InputError: for a block that does not exist, or whose input or output width does not fit.
        """
        layouts = [self.config.block_layout(index) for index in range(self.config.num_blocks)]
        params, constants = self.params, self.constants
        for index, block in blocks.items():
            self._check_fits(index, block)
            layouts[index] = layout(block)
            params = with_subtree(params, self.config.block_paths[index], block.parameters())
            constants = with_subtree(constants, self.config.block_paths[index], block.constants())
        config = dataclasses.replace(self.config, mlp_layouts=tuple(layouts))
        return dataclasses.replace(self, config=config, params=params, constants=constants)

    def _check_fits(self, index: int, block: Block) -> None:
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise InputError(f"blocks are given by the number of their layer, got {index!r} ({type(index).__name__})")
        if not 0 <= index < self.config.num_blocks:
            raise InputError(f"layer {index} does not exist; this model has layers 0 to {self.config.num_blocks - 1}")
        widths = (block.model_width, block.output_width)
        if widths != (self.config.hidden_size, self.config.hidden_size):
            raise InputError(
                f"layer {index}: block maps {widths[0]} to {widths[1]}, the model needs {self.config.hidden_size}"
            )


def make_batch(given: Given, config: ModelConfig) -> Batch:
    """The batch, checked, its attention mask filled in.

    Raises:
        InputError: as `checked_inputs`.
    """
    arrays = checked_inputs(given, config)
    shape = arrays["input_ids" if "input_ids" in arrays else "inputs_embeds"].shape[:2]
    return Batch(**{"attention_mask": jnp.ones(shape, jnp.int32), **arrays})


def hidden_states(
    config: ModelConfig, params: Params, constants: Params, batch: Batch
) -> tuple[Float[Array, "B _ d"], ...]:
    """H_1, …, H_L, without dropout: what every layer in turn hands to the next.

    Args:
        config: the architecture.
        params: its parameters.
        constants: of its MLP blocks.
        batch: what it reads.

    Returns:
        One array per entry of `config.applications`.
    """
    layers = config.layer_paths

    def is_layer(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) in layers

    variables = {"params": params, "constants": constants}
    _, state = build_network(config).apply(variables, batch, mutable=["intermediates"], capture_intermediates=is_layer)
    # a layer that is used again, as ALBERT's are, has an entry for every use
    seen = [iter(subtree(dict(state["intermediates"]), path)["__call__"]) for path in layers]
    return tuple(_states(next(seen[index])) for index in config.applications)


def _states(returned: Array | tuple[Array, object]) -> Float[Array, "B _ d"]:
    """Switch Transformer's layers return what their routers did as well."""
    return returned[0] if isinstance(returned, tuple) else returned


@partial(jax.jit, static_argnames="config")
def _block_inputs(
    config: ModelConfig,
    params: Params,
    constants: Params,
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"],
) -> tuple[Float[Array, "B T d"], ...]:
    # weights are arguments: closed over, they would become constants of every compiled program
    batch = make_batch({"input_ids": input_ids, "attention_mask": attention_mask}, config)
    _, state = Model(config, params, constants)._run(params, batch, mutable=["intermediates"])
    seen = [iter(subtree(state["intermediates"], path)["block_input"]) for path in config.block_paths]
    return tuple(next(seen[index]) for index in config.applications)


def example_batch(config: ModelConfig) -> Batch:
    """One token, to make parameters with."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return Batch(attention_mask=ids, input_ids=ids)


@lru_cache(maxsize=64)
def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters of a configuration, allocating nothing."""
    return jax.eval_shape(build_network(config).init, jax.random.key(0), example_batch(config))["params"]


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    """A model with freshly initialised weights (for tests and benchmarks).

    >>> from ntkfusion.models.bert.config import BertConfig
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    >>> [block.hidden_width for block in random_model(tiny).mlp_blocks()]
    [16, 16]
    """
    variables = jax.jit(build_network(config).init)(jax.random.key(seed), example_batch(config))
    return Model(config, dict(variables["params"]))
