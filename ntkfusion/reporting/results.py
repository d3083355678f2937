"""The results of a comparison: plain numbers with the conditions under which they hold, readable without JAX."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkfusion.errors import InputError
from ntkfusion.utils.files import Json

#: Version of the layout of ``results.json``; raised when a reader of the old one would be wrong.
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ExpertErrors:
    """What one method did to one expert of a mixture, by itself, on the held-out tokens that are routed to it.

    Attributes:
        expert: index of the expert.
        tokens: how many held-out tokens the original router sends to it.
        output_error: as in `ComparisonRow`, of the expert's own block; None if it has fewer than two tokens.
        sgd_kernel_error: likewise.
        sign_kernel_error: likewise.
    """

    expert: int
    tokens: int
    output_error: float | None
    sgd_kernel_error: float | None
    sign_kernel_error: float | None


@dataclasses.dataclass(frozen=True)
class RoutingChange:
    """Whether the routers of a network choose the same experts once all compared layers are compressed at once.

    Attributes:
        method: name on the command line.
        width: kept fraction of the hidden width.
        pairs: how many (held-out token, mixture of experts) pairs were looked at.
        agreement: the share of them whose chosen expert stays the same.
        flipped_mass: of the probability that the original routers give to the experts they choose, the share that is
            with pairs whose expert changes; below 1 − agreement if those were the unsure ones.
        layers: index of a layer with a mixture → the agreement in this layer.
    """

    method: str
    width: float
    pairs: int
    agreement: float
    flipped_mass: float
    layers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """What one method did to one layer at one width.

    Errors are relative Frobenius norms ``‖new − original‖ / ‖original‖`` on held-out tokens; kernels are traced (mean
    over outputs).

    Attributes:
        method: name on the command line.
        layer: index of the layer.
        width: kept fraction of the hidden width that was asked for.
        hidden_width: neurons of the compressed block.
        parameters: trainable numbers that the compressed block stores.
        original_parameters: the same of the original block.
        output_error: of the block's outputs.
        sgd_kernel_error: of the SGD kernel.
        sign_kernel_error: of the sign kernel.
        seconds: wall-clock time of compressing this layer, compilation included.
        experts: of a mixture of experts, the errors of every expert; None for other blocks.
    """

    method: str
    layer: int
    width: float
    hidden_width: int
    parameters: int
    original_parameters: int
    output_error: float
    sgd_kernel_error: float
    sign_kernel_error: float
    seconds: float
    experts: tuple[ExpertErrors, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything ``results.json`` holds.

    Attributes:
        rows: one per method, layer and width.
        command: the command line that repeats the run.
        settings: the options of the run (model, methods, widths, layers, tokens, seed ...).
        model: what was compressed (source, architecture, layers, widths, activation, parameters).
        inputs: where the tokens came from and how many there are, calibration and held-out.
        environment: versions, device, number of cores.
        seconds: wall-clock time of the whole run.
        routing: one per method and width, if the model has mixtures of experts.
        undefined: error → layers in which it is relative to 0, so that it has no value there and those layers are in no
            mean of it.
    """

    rows: tuple[ComparisonRow, ...]
    command: str
    settings: Json
    model: Json
    inputs: Json
    environment: Json
    seconds: float
    routing: tuple[RoutingChange, ...] = ()
    undefined: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``results.json``. Numbers that are not finite become null, as JSON has no other word for them.

        What only models with mixtures of experts, or with blocks that give 0, have is left out for others.
        """
        contents = {"format": FORMAT, **dataclasses.asdict(self)}
        contents["rows"] = [_without_empty(row, "experts") for row in contents["rows"]]
        contents = _without_empty(_without_empty(contents, "routing"), "undefined")
        return json.dumps(_finite(contents), indent=1, allow_nan=False) + "\n"


@dataclasses.dataclass(frozen=True)
class KernelGallery:
    """The kernels of one layer, original and compressed, to be shown side by side.

    Attributes:
        layer: index of the layer.
        width: width of the compressed blocks.
        tokens: the words whose kernel entries are shown.
        kernels: kind ("sgd" or "sign") → name ("original" or a method) → [n, n] array.
    """

    layer: int
    width: float
    tokens: tuple[str, ...]
    kernels: Mapping[str, Mapping[str, np.ndarray]]


def read_comparison(path: Path) -> Comparison:
    """Read a ``results.json``.

    Raises:
        InputError: if it is not one, or of another format version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("format")
        rows = tuple(_row(row) for row in data.pop("rows"))
        routing = tuple(RoutingChange(**_numbers(change)) for change in data.pop("routing", ()))
        comparison = Comparison(rows=rows, routing=routing, **data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a results.json of ntkfusion compare: {error}") from error
    if version != FORMAT:
        raise InputError(f"{path} has format {version}; this version reads {FORMAT}")
    return comparison


def _row(data: Json) -> ComparisonRow:
    experts = data.pop("experts", None)
    found = None if experts is None else tuple(ExpertErrors(**expert) for expert in experts)
    return ComparisonRow(**_numbers(data), experts=found)


def _without_empty(data: Json, name: str) -> Json:
    return data if data[name] else {key: value for key, value in data.items() if key != name}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _numbers(row: Json) -> Json:
    return {name: float("nan") if value is None else value for name, value in row.items()}
