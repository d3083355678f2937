"""Small BERTs, RoBERTas and ALBERTs: configurations, batches for them, and models of ours with random weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.models.model import Model, abstract_params

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 19,
    "type_vocab_size": 2,
}
CLASSES = {
    None: "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "masked-lm": "ForMaskedLM",
}
#: What every head is seen with, on the way through the shapes that could go wrong; and which batch.
VARIANTS = {
    "gelu, two layers, left padding": ({"num_hidden_layers": 2}, {"padding": "left"}),
    "gelu_new, one head, odd sizes": (
        {"hidden_act": "gelu_new", "num_attention_heads": 1, "hidden_size": 37, "intermediate_size": 17},
        {},
    ),
    "relu, twelve heads, full length": (
        {"hidden_act": "relu", "num_attention_heads": 12, "layer_norm_eps": 1e-5},
        {"length": None},
    ),
    "silu, three token types, batch of one": ({"hidden_act": "silu", "type_vocab_size": 3}, {"batch": 1}),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A small random model and the shape of a batch for it; `length` None is the longest there can be."""

    name: str
    family: str = "Bert"
    head: str | None = None
    changes: dict = dataclasses.field(default_factory=dict)
    num_labels: int = 3
    pooler: bool = True
    padding: str = "right"
    batch: int = 3
    length: int | None = 11

    @property
    def sizes(self):
        """The configuration."""
        return TINY | self.changes


def grid(family, changes=None):
    """Every head in every variant; the decoder of a language model is tied in half of them."""
    cases = []
    for head in CLASSES:
        for index, (name, (sizes, batch)) in enumerate(VARIANTS.items()):
            untied = {"tie_word_embeddings": False} if head == "masked-lm" and index % 2 else {}
            sizes = (changes or {}) | sizes | untied
            labels, pooler = (1, 3)[index % 2], index % 2 == 0
            cases.append(Case(f"{head}, {name}", family, head, sizes, num_labels=labels, pooler=pooler, **batch))
    return cases


def marked(cases, always):
    """All cases, those whose index is not in `always` as slow ones."""
    marks = [() if index in always else pytest.mark.slow for index in range(len(cases))]
    return [pytest.param(case, marks=mark, id=case.name) for case, mark in zip(cases, marks, strict=True)]


def small_batch(case, config):
    """Token ids with padding on one side; the padding token is nowhere else."""
    rng = np.random.default_rng(1)
    longest = config.max_position_embeddings
    if "oberta" in case.family:
        longest -= config.pad_token_id + 1
    shape = (case.batch, longest if case.length is None else case.length)
    lengths = rng.integers(2, shape[1], size=(shape[0], 1))
    lengths[0] = shape[1]
    mask = (np.arange(shape[1])[None, :] < lengths).astype(np.int64)
    flip = slice(None, None, -1) if case.padding == "left" else slice(None)
    mask = mask[:, flip].copy()
    words = (config.pad_token_id + rng.integers(1, config.vocab_size, size=shape)) % config.vocab_size
    return {
        "input_ids": np.where(mask, words, config.pad_token_id),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, config.type_vocab_size, size=shape),
    }


def random_weights(config, scale=1.0):
    """A model of ours with random weights, made without compiling anything."""
    rng = np.random.default_rng(0)
    shapes = abstract_params(config)
    return Model(config, jax.tree.map(lambda leaf: jnp.float32(scale * rng.normal(size=leaf.shape)), shapes))
