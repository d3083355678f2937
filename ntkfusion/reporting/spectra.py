"""The spectra of a kernel and of its parts."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from ntkfusion.kernels.distance import effective_rank
from ntkfusion.reporting.kernel_file import KernelFile

#: What the numbers of a spectrum are: an SGD kernel is symmetric, a sign kernel is not.
VALUES = {"sgd": "eigenvalue", "sign": "singular value"}


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The spectrum of one kernel.

    Attributes:
        values: sizes of the eigenvalues (SGD) or the singular values (sign), largest first.
        effective_rank: exp of their entropy, see `ntkfusion.kernels.distance`.
        share: this kernel's part in the trace of the whole kernel.
    """

    values: np.ndarray
    effective_rank: float
    share: float

    @property
    def significant(self) -> np.ndarray:
        """The values that float32 can tell from rounding of the largest; none of a zero kernel."""
        return self.values[self.values > np.finfo(np.float32).eps * self.values[0]]


def spectra_of(file: KernelFile) -> dict[str, Spectrum]:
    """The spectrum of the whole kernel, under "all", and of every group, in float64.

    A network kernel [N, N, C, C] is taken as a matrix of N·C rows and columns.
    """
    kernels = {"all": file.kernel, **file.groups}
    whole = float(np.trace(_matrix(file.kernel)))
    return {name: _spectrum(_matrix(kernel), file.conditions["kind"], whole) for name, kernel in kernels.items()}


def _spectrum(matrix: np.ndarray, kind: str, whole: float) -> Spectrum:
    values = np.abs(np.linalg.eigvalsh(matrix)) if kind == "sgd" else np.linalg.svd(matrix, compute_uv=False)
    values = np.sort(values)[::-1]
    largest = values[0] if values[0] > 0 else 1.0
    rank = effective_rank(jnp.asarray(values / largest, jnp.float32))
    return Spectrum(values, rank, float(np.trace(matrix) / whole) if whole else 0.0)


def _matrix(kernel: np.ndarray) -> np.ndarray:
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 2:
        return kernel
    return kernel.transpose(0, 2, 1, 3).reshape(kernel.shape[0] * kernel.shape[2], -1)
