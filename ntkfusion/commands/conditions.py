"""The conditions of a run, as everything this library writes states them: command, model, environment."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion._version import __version__
from ntkfusion.commands.request import flag
from ntkfusion.models.model import Model
from ntkfusion.utils.files import Json
from ntkfusion.utils.parameter_paths import Params


def command_line(options: Any, positional: Sequence[str] = ("model",)) -> str:
    """The command line that repeats a run.

    Args:
        options: the dataclass of a command, named like it.
        positional: its fields without a flag, in their order.
    """
    words = ["ntkfusion", type(options).__name__.lower()]
    words += [shlex.quote(str(getattr(options, name))) for name in positional]
    for name, value, default in flat_fields(options):
        if name in positional or value == default:
            continue
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
            continue
        # a number that may be None is 0 on the command line, where 0 means never
        values = value if isinstance(value, tuple) else (0 if value is None else value,)
        words += [flag(name), *(shlex.quote(str(item)) for item in values)]
    return " ".join(words)


def flat_fields(options: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and default of every option, those of a dataclass among them in its place."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat_fields(value)
        else:
            yield field.name, value, field.default


def describe_model(model: Model) -> Json:
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


def left_aside_lines(left_aside: Mapping[str, str]) -> list[str]:
    """One sentence per reason for which tensors of a checkpoint are not part of the model."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_aside.items():
        reasons.setdefault(reason, []).append(name)
    return [f"left aside: {', '.join(names)} ({reason})" for reason, names in reasons.items()]


def environment(params: Params | None = None) -> Json:
    """Versions, device and precision of what runs here.

    Args:
        params: what is computed with; None for arrays of JAX's default type.
    """
    return {
        "ntkfusion": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "precision": precision_in_force(params),
    }


def precision_in_force(params: Params | None = None) -> str:
    """The floating types of parameters, and how JAX multiplies matrices at this moment.

    >>> import jax
    >>> with jax.default_matmul_precision("highest"):
    ...     precision_in_force()
    'float32, matmuls at the highest precision'
    """
    leaves = [jnp.zeros(())] if params is None else jax.tree.leaves(params)
    types = sorted({str(leaf.dtype) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)})
    matmuls = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    how = {None: "JAX's default", "default": "JAX's default", "highest": "the highest"}
    return f"{' and '.join(types)}, matmuls at {how.get(matmuls, matmuls)} precision"
