"""What tests of training share: a small classifier, a tokenizer whose words are token ids, tasks of random tokens."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.data.tasks.task import Examples, Task
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.training.batches import TokenizedExamples
from ntkfusion.training.optimizer import build_optimizer
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.step import NonTrainable, dropout_key, first_state, make_step, task_loss
from ntkfusion.utils.parameter_paths import flatten
from tests.helpers.small_encoders import random_weights

CONFIG = BertConfig(
    vocab_size=31,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=32,
    head="sequence-classification",
    num_labels=2,
)
#: One shape of a batch, so that one program serves the tests that train from a task.
RECIPE = Recipe(learning_rate=1e-2, epochs=2, batch_size=4, num_buckets=1)


class WordIds:
    """A tokenizer that reads "5 7 9" as these ids."""

    model_input_names = ("input_ids", "attention_mask")
    pad_token_id = 0

    def __call__(self, first, second=None, *, truncation, max_length):
        return {"input_ids": [[int(word) for word in text.split()][:max_length] for text in first]}


def tiny_model(config=CONFIG):
    """A classifier with random weights."""
    return as_readable(random_weights(config, 0.3))


def as_readable(model):
    """The model with the tokenizer."""
    object.__setattr__(model, "tokenizer", WordIds())
    return model


def duplicated(model, copies):
    """The model with neuron i of its block copies[i] times, and V1 of that one: every neuron once, with q = copies."""
    (block,) = model.mlp_blocks()
    places = np.repeat(np.arange(block.hidden_width), copies)
    whole = MLPBlock(block.w1[:, places], block.b1[places], block.w2[places], block.b2, activation=block.activation)
    sizes = jnp.asarray(copies, block.b1.dtype)
    once = MLPBlock(block.w1, block.b1, block.w2, block.b2, q=sizes, activation=block.activation)
    return model.replace_mlp_blocks({0: whole}), model.replace_mlp_blocks({0: once}), places


def half(block):
    """Every second neuron, counted twice by constants."""
    q = jnp.full(block.hidden_width // 2, 2.0, block.w1.dtype)
    return MLPBlock(block.w1[:, ::2], block.b1[::2], block.w2[::2], block.b2, q=q, activation=block.activation)


def examples(count, seed, lengths=(3, 8)):
    """Random sentences whose label is whether the first word is even."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, CONFIG.vocab_size, rng.integers(lengths[0], lengths[1] + 1)).tolist() for _ in range(count)]
    labels = np.array([row[0] % 2 for row in ids], np.int32)
    return Examples(tuple(" ".join(map(str, row)) for row in ids), None, labels)


def tiny_task(train=14, dev=8, test=6, lengths=(3, 8)):
    """A task of random sentences."""
    sets = [examples(count, seed, lengths) if count else None for seed, count in enumerate((train, dev, test))]
    return Task("parity", ("odd", "even"), ("accuracy",), *sets, source="random numbers")


def random_encoded(count, seed, *, longest=11, vocab=31, classes=2, padding=0):
    """Tokenised examples, padding among no example's tokens."""
    rng = np.random.default_rng(seed)
    words = [word for word in range(vocab) if word != padding]
    ids = [rng.choice(words, rng.integers(2, longest + 1)).tolist() for _ in range(count)]
    types = [rng.integers(0, 2, len(row)).tolist() for row in ids]
    return TokenizedExamples(ids, types, rng.integers(0, classes, count).astype(np.int32), padding)


def train(model, recipe, batches, *, rates=None, frozen=()):
    """Parameters by path behind the updates of some batches, and what the updates told, without a task."""
    flat = flatten(model.params)
    fixed = NonTrainable({path: flat[path] for path in frozen}, model.constants, dropout_key(0), rates or {})
    optimizer, step = _program(model.config, recipe, len(batches))
    state, told = first_state({path: leaf for path, leaf in flat.items() if path not in frozen}, optimizer), []
    for arrays in batches:
        state, measured = step(state, fixed, {name: jnp.asarray(array) for name, array in arrays.items()})
        told.append(measured)
    return state.params | fixed.params, told


@lru_cache(maxsize=4)
def _program(config, recipe, num_updates):
    optimizer = build_optimizer(recipe, num_updates)
    return optimizer, make_step(task_loss(config, is_regression=False), optimizer, recipe)


def in_double(model):
    """The model in float64."""
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (model.params, model.constants))
    return type(model)(model.config, *double)


def relative(found, expected):
    """max |a − b| / max |b|."""
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())
