"""The text of a run: sentences to calibrate on, others to measure on, and what of both reaches a model's blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from ntkfusion.data.block_inputs import BlockInputs, collect_block_inputs, tokenize, unseen_sentences
from ntkfusion.data.text import read_sentences, sample_sentences, split_sentences
from ntkfusion.models.model import Model

#: Sentences are cut to this many tokens.
MAX_LENGTH = 128


def read_text(path: Path | None) -> list[str]:
    """The sentences of a file, or without one the packaged sample.

    Raises:
        InputError: as `read_sentences`.
    """
    return sample_sentences() if path is None else read_sentences(path)


def describe_text(path: Path | None) -> str:
    """Where `read_text` has its sentences from."""
    return "packaged sample" if path is None else str(path)


@dataclasses.dataclass(frozen=True)
class CalibrationSplit:
    """Two sets of sentences that do not mix, and how their tokens are sampled.

    Attributes:
        calibration: for methods that look at text.
        held_out: to measure on.
        seed: of the sample.
        special_tokens: whether tokens that the tokenizer adds may be in it.
        max_length: sentences are cut to so many tokens.
    """

    calibration: Sequence[str]
    held_out: Sequence[str]
    seed: int = 0
    special_tokens: bool = True
    max_length: int = MAX_LENGTH

    @classmethod
    def of(cls, path: Path | None, *, seed: int, special_tokens: bool = True) -> CalibrationSplit:
        """Two random halves of a text file, or of the packaged sample.

        Raises:
            InputError: for a file that cannot be read, or fewer than two different sentences.
        """
        return cls(*split_sentences(read_text(path), seed=seed), seed=seed, special_tokens=special_tokens)

    def collect(
        self, model: Model, *, tokens: int, calibration_tokens: int, check: Callable[[int], None] = lambda count: None
    ) -> tuple[BlockInputs, BlockInputs]:
        """Both kinds of block inputs of a model, each at most so many tokens.

        Args:
            model: the model, with a tokenizer.
            tokens: held-out tokens.
            calibration_tokens: tokens of the other sentences.
            check: is told how many held-out tokens there are, and may refuse them, before the others are collected.

        Returns:
            Inputs to calibrate on, and inputs to measure on.

        Raises:
            InputError: as `collect_block_inputs`, or if no sentence is left to calibrate on.
        """
        held_out = self.held_out_inputs(model, tokens)
        check(len(held_out.tokens))
        return self.calibration_inputs(model, calibration_tokens), held_out

    def held_out_inputs(self, model: Model, tokens: int) -> BlockInputs:
        """At most so many tokens to measure on; in a causal model none with all that it sees in a calibration sentence.

        All sentences that are calibrated on count, whichever tokens of them a method will be given.

        Raises:
            InputError: as `collect_block_inputs`, or if no sentence is left to calibrate a causal model on.
        """
        unlike = self._unseen(model, self.calibration) if model.config.is_causal else ()
        return self._inputs(model, self.held_out, tokens, unlike=unlike)

    def calibration_inputs(self, model: Model, tokens: int, *, shortest: int | None = None) -> BlockInputs:
        """At most so many tokens of sentences that are no held-out ones, not even after tokenisation.

        Args:
            model: the model, with a tokenizer.
            tokens: how many at most.
            shortest: if given, no more sentences are looked at than so many tokens take, in their order, each of which
                has at least `shortest`; by default the tokens are a sample of all sentences.

        Raises:
            InputError: if no sentence is left.
        """
        if shortest is None:
            return self._inputs(model, self._unseen(model, self.calibration), tokens)
        enough = self.calibration[: tokens // shortest + 1]
        sentences = self._unseen(model, enough)
        totals = accumulate(map(len, tokenize(model, sentences, max_length=self.max_length)[0]))
        count = next((index for index, total in enumerate(totals, start=1) if total >= tokens), len(sentences))
        return self._inputs(model, sentences[:count], tokens)

    def _unseen(self, model: Model, sentences: Sequence[str]) -> list[str]:
        """Those that are no held-out ones to the model's tokenizer."""
        return unseen_sentences(model, sentences, self.held_out, max_length=self.max_length)

    def _inputs(self, model: Model, sentences: Sequence[str], tokens: int, unlike: Sequence[str] = ()) -> BlockInputs:
        return collect_block_inputs(
            model,
            sentences,
            max_tokens=tokens,
            seed=self.seed,
            max_length=self.max_length,
            special_tokens=self.special_tokens,
            unlike=unlike,
        )
