"""The offline autoencoder as a compression method and as a codec of single matrices.

Which matrices share a decoder, how wide it is, and what is stored of a trained network.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.contract import BlockReport, Compressed, Method, require_dense
from ntkfusion.compression.matrices.codecs import EncodedMatrix, Matrix, fidelity, matrix_budgets
from ntkfusion.compression.methods.autoencoder.network import (
    AutoencoderTraining,
    RowImportance,
    Sizes,
    Trained,
    directions,
    encode,
    latent_width,
    row_weights,
    train,
)
from ntkfusion.compression.neurons import fisher
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.coded import CodedBlock, LatentMatrix, decode_rows, unit_rows
from ntkfusion.models.blocks.dense import MLPBlock

Sharing = Literal["model", "layer"]

Scales = Literal["exact", "fitted"]

OutputRows = Literal["outputs", "neurons"]


@dataclasses.dataclass(frozen=True)
class Autoencoder(Method):
    """Rows of W1 and W2 as latents, row norms and a decoder; the encoder is discarded.

    Source: Banaei et al. 2023, "Revisiting Offline Compression" (arXiv 2302.04045), from its code: networks, loss, norm
    restoring and schedule. Different here: row norms are counted, the epoch is chosen by the training loss and not by
    test data, batches are larger. Needs no data, unless `importance` asks for it. At width 1 nothing is coded.

    Attributes:
        keep_ratio: the kept share of neurons of the dense block whose parameter count is matched.
        ratio: if given, replaces the keep ratio: each matrix is stored in its size / ratio numbers.
        linear: one affine map each as encoder and decoder.
        sharing: "model", one decoder for the w1 of all layers and one for their w2; or "layer", one per matrix.
        output_rows: the rows of W2: "outputs", as in PyTorch's layout, o rows of m numbers; or "neurons", m rows of o.
            The rows of W1 are its neurons either way.
        scales: the lengths of decoded rows: "exact", those of the originals; or "fitted", the nearest point.
        importance: whether all rows count alike, or by "fisher" or "l1" (see `row_weights`), which takes a
            task's squared gradients or else, for blocks, calibration inputs.
        training: epochs, batch, rates.
    """

    ratio: float | None = None
    linear: bool = False
    sharing: Sharing = "model"
    output_rows: OutputRows = "outputs"
    scales: Scales = "exact"
    importance: RowImportance = "none"
    training: AutoencoderTraining = dataclasses.field(default_factory=AutoencoderTraining)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a keep ratio or ratio out of range or an unknown choice.
        """
        super().__post_init__()
        if self.ratio is not None and not 1 <= self.ratio < float("inf"):
            raise InputError(f"ratio is the number of original per stored number, at least 1; got {self.ratio}")
        choices = {"sharing": Sharing, "output_rows": OutputRows, "scales": Scales, "importance": RowImportance}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise InputError(
                    f"unknown {name} {getattr(self, name)!r} of the autoencoder; known: {', '.join(get_args(known))}"
                )

    @property
    def kept(self) -> float:
        """The fraction of a matrix's numbers that its code may take."""
        return self.keep_ratio if self.ratio is None else 1 / self.ratio

    def makes(self) -> type[Block]:
        """Blocks of another kind; see `Method.makes`."""
        return CodedBlock

    def check(self, blocks: Sequence[Block]) -> None:
        """Refuse blocks that are not dense, and budgets that no latent fits into; see `Method.check`."""
        for coded, name in zip(self._matrices(self._dense(blocks), None), ("w1", "w2"), strict=True):
            self._plan(name, coded)

    def compress(self, blocks: Sequence[Block], workspace: Workspace) -> Compressed:
        """Code the matrices of all blocks; see `Method.compress`."""
        self.check(blocks)
        start, dense = time.perf_counter(), self._dense(blocks)
        workspace.charged()
        first, second = self._matrices(dense, workspace)
        coded = zip(self.encode("w1", first, workspace), self.encode("w2", second, workspace), strict=True)
        results = [(block, {}) if self._keeps(block) else _coded_block(block, *next(coded)) for block in dense]
        seconds = (time.perf_counter() - start + workspace.charged()) / max(1, len(blocks))
        reports = [
            BlockReport(new.hidden_width, new.num_parameters, old.num_parameters, seconds, details)
            for (new, details), old in zip(results, blocks, strict=True)
        ]
        return Compressed(tuple(block for block, _ in results), tuple(reports))

    def check_matrices(self, name: str, matrices: Sequence[Matrix]) -> None:
        """Refuse budgets that no latent fits into, and weights without gradients; see `Codec.check_matrices`.

        Raises:
            InputError: as said.
        """
        if self.importance != "none" and any(matrix.squared is None for matrix in matrices):
            raise InputError(f"the importance of rows ({self.importance}) needs squared gradients of {name}; give them")
        self._plan(name, matrices)

    def encode(self, name: str, matrices: Sequence[Matrix], workspace: Workspace) -> list[EncodedMatrix]:
        """Code matrices of one kind; those of one shape and budget share a decoder if `sharing` is "model"."""
        self.check_matrices(name, matrices)
        encoded: dict[int, EncodedMatrix] = {}
        for number, (members, sizes) in enumerate(plan := self._plan(name, matrices)):
            what = f"autoencoder of {name}" + (f", {number + 1} of {len(plan)}" if len(plan) > 1 else "")

            def report(fraction: float, what: str = what) -> None:
                workspace.progress(what, fraction)

            key = workspace.key(f"autoencoder {name}", number)
            alike = [matrices[index] for index in members]
            codes = encode_together(alike, sizes, key, self.training, self.scales, self.importance, report)
            encoded |= dict(zip(members, codes, strict=True))
        return [encoded[index] for index in range(len(matrices))]

    def _plan(self, name: str, matrices: Sequence[Matrix]) -> list[tuple[list[int], Sizes]]:
        members = groups(matrices, self.sharing)
        return [(group, sizes_of(name, [matrices[index] for index in group], linear=self.linear)) for group in members]

    def _dense(self, blocks: Sequence[Block]) -> list[MLPBlock]:
        return [require_dense(block, type(self).__name__) for block in blocks]

    def _keeps(self, block: MLPBlock) -> bool:
        """Whether the budget is the whole block."""
        return self.kept_neurons(block.hidden_width) >= block.hidden_width if self.ratio is None else self.ratio == 1

    def _matrices(self, blocks: Sequence[MLPBlock], workspace: Workspace | None) -> tuple[list[Matrix], list[Matrix]]:
        """W1 and W2 of the blocks that are coded; without a workspace their squared gradients are left out."""
        pairs = [self._pair(block, index, workspace) for index, block in enumerate(blocks) if not self._keeps(block)]
        return [first for first, _ in pairs], [second for _, second in pairs]

    def _pair(self, block: MLPBlock, index: int, workspace: Workspace | None) -> tuple[Matrix, Matrix]:
        budgets = matrix_budgets(block, self.kept_neurons(block.hidden_width))
        if self.ratio is not None:
            budgets = int(block.w1.size / self.ratio), int(block.w2.size / self.ratio)
        by_output = self.output_rows == "outputs"
        squared: Mapping[str, Array] = {}
        if workspace is not None and self.importance != "none":
            squared = fisher(block, index, workspace)
        first = Matrix(block.w1, budgets[0], True, squared.get("w1"))
        return first, Matrix(block.w2, budgets[1], by_output, squared.get("w2"))


def groups(matrices: Sequence[Matrix], sharing: Sharing) -> list[list[int]]:
    """Which matrices have a decoder in common: each its own, or all of one shape and budget."""
    if sharing == "layer":
        return [[index] for index in range(len(matrices))]
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        alike.setdefault((matrix.rows.shape, matrix.budget), []).append(index)
    return list(alike.values())


def sizes_of(name: str, matrices: Sequence[Matrix], *, linear: bool) -> Sizes:
    """The layers of the widest codec that matrices of one shape and budget can share.

    Raises:
        InputError: if not even one latent number per row fits.
    """
    (n, k), count = matrices[0].rows.shape, len(matrices)
    width = latent_width(count * n, k, count * matrices[0].budget, linear=linear)
    if width < 1:
        one = Sizes.of(k, 1, linear=linear).decoder_parameters
        raise InputError(
            f"autoencoder: one latent number and a norm for each of {count * n} rows of {name}, and a decoder of {one} "
            f"numbers, are {2 * count * n + one}, more than the budget of {count * matrices[0].budget}; choose a "
            "larger width (or a smaller ratio), or share the decoder among more layers"
        )
    return Sizes.of(k, width, linear=linear)


def encode_together(
    matrices: Sequence[Matrix],
    sizes: Sizes,
    key: Array,
    training: AutoencoderTraining,
    scales: Scales,
    importance: RowImportance,
    progress: Callable[[float], None],
) -> list[EncodedMatrix]:
    """Train one autoencoder on the rows of all matrices, which are alike, and keep what has to be stored."""
    rows = jnp.concatenate([matrix.rows for matrix in matrices])
    weights = jnp.concatenate([_weights(matrix, importance) for matrix in matrices])
    trained = train(rows, weights, sizes, key, training, progress)
    shares = [(sizes.decoder_parameters + index) // len(matrices) for index in range(len(matrices))]
    return [_stored(matrix, trained, share, scales) for matrix, share in zip(matrices, shares, strict=True)]


def _weights(matrix: Matrix, importance: RowImportance) -> Float[Array, " n"]:
    """The weights of a matrix's rows, of mean 1 in every matrix: no layer matters more than another."""
    if importance == "none" or matrix.squared is None:
        return jnp.ones(matrix.rows.shape[0], matrix.array.dtype)
    return row_weights(matrix.squared.T if matrix.transposed else matrix.squared, importance)


def _stored(matrix: Matrix, trained: Trained, share: int, scales: Scales) -> EncodedMatrix:
    rows, (encoder, decoder) = matrix.rows, trained.network
    latents = encode(encoder, directions(rows))
    found = unit_rows(decode_rows(decoder, latents))
    norms = jnp.linalg.norm(rows, axis=1) if scales == "exact" else jnp.sum(found * rows, axis=1)
    code = LatentMatrix(latents, norms, decoder, transposed=matrix.transposed, decoder_share=share)
    details = {"latent_width": float(latents.shape[1]), "loss": min(trained.losses), "first_loss": trained.losses[0]}
    details |= {"best_epoch": float(trained.best_epoch), "decoder_share": float(share)}
    return EncodedMatrix(code, details | fidelity(norms[:, None] * found, rows))


def _coded_block(block: MLPBlock, first: EncodedMatrix, second: EncodedMatrix) -> tuple[CodedBlock, dict[str, float]]:
    """The block with both codes, and what was measured of them by name of the matrix."""
    details = {
        f"{name}_{key}": value for name, e in (("w1", first), ("w2", second)) for key, value in e.details.items()
    }
    return CodedBlock(first.code, block.b1, second.code, block.b2, activation=block.activation), details
