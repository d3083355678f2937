"""Code chosen weight matrices of a model, whatever part of the network they are in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from jaxtyping import Array, Float

from ntkfusion.compression.compress_model import check_layers
from ntkfusion.compression.matrices.codecs import Codec, EncodedMatrix, Matrix, fidelity
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.coded import MatrixCode
from ntkfusion.models.model import Model
from ntkfusion.models.registry import architecture_of
from ntkfusion.utils.parameter_paths import Flat, Params, flatten, subtree, with_subtree


@dataclasses.dataclass(frozen=True)
class MatrixReport:
    """What coding one matrix cost and gave.

    Attributes:
        kind: a key of the architecture's matrices (`ntkfusion.models.registry.Architecture`).
        parameters: numbers stored for it, its share of a common decoder included.
        original_parameters: numbers of the matrix.
        cosine: the mean cosine between decoded and original rows.
        relative_error: ‖decoded − original‖ / ‖original‖ (Frobenius).
        details: what the codec measured on the way.
    """

    kind: str
    parameters: int
    original_parameters: int
    cosine: float
    relative_error: float
    details: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class CodedStore:
    """All that has to be stored of the coded matrices.

    Attributes:
        codes: path of the parameter → its code. Matrices that share a decoder hold the same arrays.
        reports: path → what coding it cost and gave.
    """

    codes: Mapping[str, MatrixCode]
    reports: Mapping[str, MatrixReport]

    @property
    def num_parameters(self) -> int:
        """Numbers stored for all matrices; what they share counts once."""
        return sum(code.num_parameters for code in self.codes.values())

    def decode(self) -> dict[str, Float[Array, "rows columns"]]:
        """Path → dense matrix."""
        return {path: code.decode() for path, code in self.codes.items()}


def compress_matrices(
    model: Model,
    codec: Codec,
    *,
    kinds: Iterable[str] = ("intermediate", "output"),
    layers: Iterable[int] | None = None,
    squared_gradients: Params | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Model, CodedStore]:
    """A model some of whose matrices went through a codec: attention, embeddings, MLP blocks.

    Args:
        model: the original; it is not changed.
        codec: for example ``Autoencoder(ratio=10)``, ``Kronecker(keep_ratio=0.1)`` or ``LowRank(keep_ratio=0.1)``.
            Each matrix may take the fraction of its numbers that the codec keeps; biases stay.
        kinds: which matrices, keys of the architecture's `matrices`; those of one kind share a decoder if the codec has
            one to share.
        layers: of which layers; by default all.
        squared_gradients: means of a task's squared gradients, nested as the parameters, for codecs that weigh rows.
        seed: drives all randomness.
        progress: called with what is being done and which fraction of it is finished.

    Returns:
        The model with decoded dense matrices, and the codes with a report each.

    Raises:
        InputError: before any work, for a kind or layer that does not exist, an architecture whose matrices have no
            kinds, a matrix that is not dense any more, or a budget that is too small.
    """
    if codec.kept >= 1:
        raise InputError(
            "a codec that may keep every number has nothing to do; choose a width below 1 or a ratio above"
        )
    chosen = check_layers(layers, model.config.num_blocks)
    squared = {} if squared_gradients is None else flatten(squared_gradients)
    requests = {kind: _matrices(model, kind, chosen, codec.kept, squared) for kind in _check_kinds(model, kinds)}
    for kind, matrices in requests.items():
        codec.check_matrices(kind, list(matrices.values()))
    workspace = Workspace(seed, progress=progress)
    codes: dict[str, MatrixCode] = {}
    reports: dict[str, MatrixReport] = {}
    for kind, matrices in requests.items():
        encoded = codec.encode(kind, list(matrices.values()), workspace)
        for (path, matrix), result in zip(matrices.items(), encoded, strict=True):
            codes[path], reports[path] = result.code, _report(kind, matrix, result)
    store = CodedStore(codes, reports)
    return dataclasses.replace(model, params=_exchanged(model.params, store.decode())), store


def _check_kinds(model: Model, kinds: Iterable[str]) -> tuple[str, ...]:
    chosen, known = tuple(kinds), architecture_of(model.config).matrices
    if not known:
        raise InputError(f"the matrices of {model.config.architecture} cannot be chosen by kind")
    unknown = [kind for kind in chosen if kind not in known]
    if unknown or not chosen or len(set(chosen)) != len(chosen):
        raise InputError(
            f"kinds must name matrices of {model.config.architecture}, each once, out of {', '.join(known)}; "
            f"got {', '.join(chosen)}"
        )
    return chosen


def _matrices(model: Model, kind: str, layers: tuple[int, ...], kept: float, squared: Flat) -> dict[str, Matrix]:
    """Path → matrix of one kind; there is one for all layers if the path names no layer."""
    arrays, pattern = flatten(model.params), architecture_of(model.config).matrices[kind]
    found = {}
    for path in dict.fromkeys(pattern.format(layer=layer) for layer in layers):
        if path not in arrays:
            raise InputError(f"the model has no dense matrix {path}; code the matrices before its block is compressed")
        array = arrays[path]
        found[path] = Matrix(array, int(kept * array.size), kind != "embeddings", squared.get(path))
    return found


def _report(kind: str, matrix: Matrix, result: EncodedMatrix) -> MatrixReport:
    decoded = result.code.decode()
    measured = fidelity(decoded.T if matrix.transposed else decoded, matrix.rows)
    return MatrixReport(kind, result.code.num_parameters, matrix.array.size, **measured, details=result.details)


def _exchanged(params: Params, arrays: Mapping[str, Array]) -> Params:
    """Nested parameters with the arrays under some paths exchanged."""
    for path, array in arrays.items():
        above, _, name = path.rpartition("/")
        params = with_subtree(params, above, {**subtree(params, above), name: array})
    return params
