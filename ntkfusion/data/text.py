"""Sentences from a text file, and the packaged sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from ntkfusion.errors import InputError


def sample_sentences() -> list[str]:
    """The sentences that ship with the package: varied registers and topics, written for this project."""
    text = resources.files("ntkfusion.data").joinpath("sample.txt").read_text(encoding="utf-8")
    return text.splitlines()


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Texts as a list, whatever holds them: a list, a tuple, an array, a column of a table.

    Raises:
        InputError: for one string, and for what is no text: None, numbers, lone surrogates.

    >>> checked_texts(np.array(["one", "two"]))
    ['one', 'two']
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(f"give a list of at least one sentence, got {_shown(texts)}")
    checked = list(texts)
    for place, text in enumerate(checked):
        if not isinstance(text, str):
            raise InputError(
                f"text {place} is {_shown(text)}; every text must be a str: drop or fill in what is missing"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {place} holds a lone surrogate ({text[error.start]!r} at character {error.start}), half of a "
                "character that was cut: decode the file as UTF-8 with errors='replace'"
            ) from error
    return [str(text) for text in checked]


def _shown(value: object) -> str:
    """A value and its type, shortened."""
    text = repr(value)
    return f"{text if len(text) < 60 else text[:59] + '…'} ({type(value).__name__})"


def read_utf8(path: Path) -> str:
    """The content of a UTF-8 text file, without a byte order mark.

    Raises:
        InputError: if the file is missing, a folder, not readable or not UTF-8.
    """
    if not path.exists() or path.is_dir():
        raise InputError(f"text file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"text file {path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise InputError(f"text file {path} cannot be read: {error.strerror}") from error


def read_sentences(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that hold more than white space, stripped.

    Raises:
        InputError: if the file is missing, a folder, not UTF-8, or has no text.
    """
    text = read_utf8(path)
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise InputError(f"text file {path} is empty; it should hold sentences, one per line")
    return sentences


def split_sentences(sentences: Sequence[str], *, seed: int, limit: int = 512) -> tuple[list[str], list[str]]:
    """Two disjoint random halves, for calibration and for measuring, of at most `limit` sentences each.

    Repeated sentences are counted once, so that no sentence is in both halves.

    Raises:
        InputError: if there are fewer than two different sentences.
    """
    distinct = list(dict.fromkeys(checked_texts(sentences)))
    if len(distinct) < 2:
        raise InputError("at least two different sentences are needed: one to calibrate on, another to measure on")
    order = np.random.default_rng(seed).permutation(len(distinct))
    middle = len(distinct) // 2
    halves = order[:middle], order[middle:]
    calibration, held_out = ([distinct[index] for index in half[:limit]] for half in halves)
    return calibration, held_out
