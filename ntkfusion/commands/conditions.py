"""The conditions of a run, as everything this library writes states them: command, model, text, environment."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntkfusion._version import __version__
from ntkfusion.data.text import read_sentences, sample_sentences
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model


def check_seed(seed: int) -> None:
    """Refuse a seed that NumPy or JAX would not take.

    Raises:
        InputError: if it is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")


def read_text(path: Path | None) -> list[str]:
    """The sentences of a file, or without one the packaged sample.

    Raises:
        InputError: as `read_sentences`.
    """
    return sample_sentences() if path is None else read_sentences(path)


def describe_text(path: Path | None) -> str:
    """Where `read_text` has its sentences from."""
    return "packaged sample" if path is None else str(path)


def command_line(options: Any, positional: Sequence[str] = ("model",)) -> str:
    """The command line that repeats a run.

    Args:
        options: a dataclass of `ntkfusion.options`, named like its command.
        positional: its fields without a flag, in their order.
    """
    words = ["ntkfusion", type(options).__name__.lower()]
    words += [shlex.quote(str(getattr(options, name))) for name in positional]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in positional or value == field.default:
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if not isinstance(value, bool):
            words += [shlex.quote(str(item)) for item in (value if isinstance(value, tuple) else (value,))]
    return " ".join(words)


def describe_model(model: Model) -> dict[str, Any]:
    """The facts about a model that a reader of its results needs."""
    config, blocks = model.config, model.mlp_blocks()
    return {
        "name": Path(model.source).name,
        "source": model.source,
        "architecture": config.architecture,
        "num_layers": config.num_blocks,
        "model_width": config.hidden_size,
        "hidden_width": blocks[0].hidden_width,
        "activation": blocks[0].activation,
        "num_parameters": model.num_parameters,
        "mlp_parameters": sum(block.num_parameters for block in blocks),
    }


def environment() -> dict[str, Any]:
    """Versions and device of this run."""
    return {
        "ntkfusion": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "precision": "float32, matmuls at the highest precision",
    }
