"""Real block inputs: what reaches every layer's MLP block when a model reads text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.data.text import checked_texts
from ntkfusion.errors import InputError
from ntkfusion.models.indices import check_range
from ntkfusion.models.model import Model

#: Padded lengths are multiples of this, so that few shapes are compiled.
LENGTH_STEP = 16


@dataclasses.dataclass(frozen=True)
class BlockInputs:
    """Inputs of every layer's MLP block at the same tokens.

    Attributes:
        inputs: one [N, d] array per layer; row n is the same token in all of them.
        tokens: the text of the N tokens.
        num_sentences: how many sentences they come from.
        num_dropped: tokens that were left out beforehand, because other text has them behind the same beginning.
    """

    inputs: tuple[Float[Array, "N d"], ...]
    tokens: tuple[str, ...]
    num_sentences: int
    num_dropped: int = 0


def collect_block_inputs(
    model: Model,
    sentences: Sequence[str],
    *,
    max_tokens: int | None,
    seed: int,
    max_length: int = 128,
    special_tokens: bool = True,
    batch_size: int = 32,
    unlike: Sequence[str] = (),
) -> BlockInputs:
    """Run the model over sentences and keep the block inputs of a random sample of their tokens.

    Padding is left out. The sample is spread over all sentences and keeps the order of the text. Of a block that R
    layers share, token n's input is that in layer n mod R. A decoder's row is the position that predicts its token.

    Args:
        model: the model, with a tokenizer.
        sentences: the text.
        max_tokens: size of the sample; None, or a text with fewer tokens, takes all of them.
        seed: of the sample.
        max_length: sentences are cut to so many tokens, special ones included, or to the positions the model has.
        special_tokens: whether tokens the tokenizer adds ([CLS], [SEP]) may be sampled. They are block inputs like any
            other, but few and with outputs many times larger than those of words, so they weigh heavily in norms.
        batch_size: sentences per batch.
        unlike: other sentences, such as those that a method was calibrated on. In a causal model a token sees only what
            stands before it, so that equal beginnings are equal block inputs: tokens that, with all that they see, are
            in one of these sentences too are left out, and counted.

    Returns:
        The `BlockInputs`.

    Raises:
        InputError: if the model has no tokenizer, or the text has no tokens, none that the other sentences have not.
    """
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
    encodings, special = tokenize(model, sentences, max_length=max_length)
    places = [
        (row, column)
        for row, flags in enumerate(special)
        for column, flag in enumerate(flags)
        if special_tokens or not flag
    ]
    if not places:
        raise InputError("the text has no tokens that the model's tokenizer knows")
    every = len(places)
    if unlike and model.config.is_causal:
        seen = _shared_beginnings(encodings, tokenize(model, unlike, max_length=max_length)[0])
        places = [(row, column) for row, column in places if column >= seen[row]]
    if not places:
        raise InputError(
            "every token of the text stands behind a beginning that the calibration text has too, so that a causal "
            "model has seen it: give more varied text"
        )
    rng = np.random.default_rng(seed)
    count = len(places) if max_tokens is None else min(max_tokens, len(places))
    chosen = sorted(rng.choice(len(places), count, replace=False).tolist())
    sample = [places[index] for index in chosen]
    rows = _collect(model, encodings, sample, batch_size)
    tokens = model.tokenizer.convert_ids_to_tokens([encodings[row][column] for row, column in sample])
    return BlockInputs(rows, tuple(tokens), len({row for row, _ in sample}), every - len(places))


def _shared_beginnings(encodings: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> list[int]:
    """How many first tokens each text shares with one of the others, at most."""
    tree: dict[int, Any] = {}
    for ids in others:
        node = tree
        for token in ids:
            node = node.setdefault(token, {})
    shared = []
    for ids in encodings:
        node, count = tree, 0
        while count < len(ids) and ids[count] in node:
            node, count = node[ids[count]], count + 1
        shared.append(count)
    return shared


def tokenize(model: Model, sentences: Sequence[str], *, max_length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each sentence, cut to `max_length` or to the model's positions, and 1 where a token is special.

    Raises:
        InputError: if the model has no tokenizer, or one whose ids exceed the model's vocabulary.
    """
    texts = checked_texts(sentences)
    if not texts:
        raise InputError("give a list of at least one sentence")
    encoded = tokenizer_output(model, texts, max_length=max_length, return_special_tokens_mask=True)
    return encoded["input_ids"], encoded["special_tokens_mask"]


def tokenizer_output(model: Model, *texts: Iterable[str] | None, max_length: int, **options: bool) -> Mapping[str, Any]:
    """What the tokenizer makes of texts, or of pairs of them, cut to `max_length` or to the model's positions.

    Raises:
        InputError: if the model has no tokenizer, or one that gives words, segments or more tokens than the model has
            rows for, there are no texts, or nothing of them would be left beside special tokens.
    """
    if model.tokenizer is None:
        raise InputError(f"{model.source} has no tokenizer files, so it cannot read text")
    lists = [None if each is None else checked_texts(each) for each in texts]
    if not lists[0]:
        raise InputError("there are no texts to tokenise; a split needs at least one example")
    length = max_length if model.config.max_length is None else min(max_length, model.config.max_length)
    _check_length(model, length, is_pair=len(lists) > 1 and lists[1] is not None)
    with _kept_truncation(model.tokenizer):
        encoded = model.tokenizer(*lists, truncation=True, max_length=length, **options)
    _check_rows(model, encoded, length)
    return encoded


def _check_rows(model: Model, encoded: Mapping[str, Any], length: int) -> None:
    """Refuse what the tables of the model have no row for, once for all texts."""
    for name, rows in model.config.table_sizes.items():
        given = encoded.get(name, ())
        lowest = min((min(row, default=0) for row in given), default=0)
        highest = max((max(row, default=0) for row in given), default=0)
        if name == "input_ids" and highest >= rows:
            raise InputError(f"{model.source}: the tokenizer gives id {highest}, the model has {rows} embeddings")
        if name == "token_type_ids" and highest >= rows:
            raise InputError(
                f"{model.source}: the tokenizer gives segment {highest}, the model has {rows} of them "
                "(type_vocab_size). Take the tokenizer that it was trained with, or leave segments out: "
                "tokenizer.model_input_names without 'token_type_ids'"
            )
        check_range(name, rows, lowest, highest)
    longest = max(map(len, encoded["input_ids"]))
    if longest > length:
        raise InputError(f"{model.source}: the tokenizer gives {longest} tokens where {length} were asked for")


@contextmanager
def _kept_truncation(tokenizer: Any) -> Iterator[None]:
    """What a call cuts to stays in a tokenizer, and would be written into its tokenizer.json when it is saved."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    was = None if backend is None else backend.truncation
    try:
        yield
    finally:
        if backend is not None:
            backend.no_truncation()
        if backend is not None and was is not None:
            backend.enable_truncation(**was)


def _check_length(model: Model, length: int, *, is_pair: bool) -> None:
    """Refuse lengths that special tokens fill up: tokenizers then cut nothing at all."""
    count = getattr(model.tokenizer, "num_special_tokens_to_add", None)
    special = 0 if count is None else count(pair=is_pair)
    if length <= special:
        raise InputError(
            f"max_length is {length}, and {special} special tokens are added to every {'pair' if is_pair else 'text'}: "
            "take a larger one"
        )


def unseen_sentences(model: Model, sentences: Sequence[str], others: Sequence[str], *, max_length: int) -> list[str]:
    """The sentences that the tokenizer does not make equal to one of the others.

    Raises:
        InputError: if none is left; as `tokenize`.
    """
    taken = {tuple(ids) for ids in tokenize(model, others, max_length=max_length)[0]}
    encodings = tokenize(model, sentences, max_length=max_length)[0]
    kept = [sentence for sentence, ids in zip(sentences, encodings, strict=True) if tuple(ids) not in taken]
    if not kept:
        raise InputError("all sentences of the text are the same to the model's tokenizer; give more varied text")
    return kept


def _collect(
    model: Model, encodings: list[list[int]], sample: list[tuple[int, int]], batch_size: int
) -> tuple[Float[Array, "N d"], ...]:
    """Block inputs at the sampled (sentence, position) places, one array per layer."""
    wanted: dict[int, list[tuple[int, int]]] = {}
    for index, (row, column) in enumerate(sample):
        wanted.setdefault(row, []).append((index, column))
    shape = (len(sample), model.config.hidden_size)
    dtype = np.dtype(jax.tree.leaves(model.params)[0].dtype)
    rows_of = [np.empty(shape, dtype) for _ in range(model.config.num_blocks)]
    for batch, ids, mask in _batches(encodings, sorted(wanted), batch_size, model.config.max_length):
        states = _by_block(model, [np.asarray(state) for state in model.block_inputs(ids, mask)])
        for place, row in enumerate(batch):
            for index, column in wanted[row]:
                for block, seen in enumerate(states):
                    rows_of[block][index] = seen[index % len(seen)][place, column]
    return tuple(jnp.asarray(array) for array in rows_of)


def _by_block(model: Model, states: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The inputs of every block: one array, or as many as there are layers that share it."""
    inputs_of: list[list[np.ndarray]] = [[] for _ in range(model.config.num_blocks)]
    for block, state in zip(model.config.applications, states, strict=True):
        inputs_of[block].append(state)
    return inputs_of


def _batches(
    encodings: list[list[int]], rows: list[int], batch_size: int, longest: int | None
) -> Iterator[tuple[list[int], Any, Any]]:
    """Sentences of similar length together, padded to few different shapes."""
    by_length = sorted(rows, key=lambda row: len(encodings[row]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        length = -(-max(len(encodings[row]) for row in batch) // LENGTH_STEP) * LENGTH_STEP
        length = length if longest is None else min(longest, length)
        ids, mask = np.zeros((2, batch_size, length), np.int32)
        for place, row in enumerate(batch):
            ids[place, : len(encodings[row])] = encodings[row]
            mask[place, : len(encodings[row])] = 1
        mask[len(batch) :, 0] = 1  # rows that only fill the batch attend to something
        yield batch, jnp.asarray(ids), jnp.asarray(mask)
