"""How far one kernel is from another."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.errors import InputError


def facts(distance: Any) -> str:
    """A dataclass of numbers as text, one per line; those that were not computed (None) are left out."""
    values = {field.name: getattr(distance, field.name) for field in dataclasses.fields(distance)}
    lines = [f"{name}={value:.6g}" for name, value in values.items() if value is not None]
    opening = f"{type(distance).__name__}("
    return opening + (",\n" + " " * len(opening)).join(lines) + ")"


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """Distances of a kernel from a reference kernel on the same examples.

    Attributes:
        relative_frobenius: ‖new − reference‖_F / ‖reference‖_F. 0 is equal; 1 is as far as the zero kernel.
        relative_spectral: the same with the largest singular value as norm.
        alignment: centred kernel alignment (CKA, Kornblith et al. 2019) in [−1, 1]; 1 is equal up to scale and offset.
        top_overlap: mean squared cosine between the spaces of the leading left singular vectors, in [0, 1]; for a
            symmetric kernel these are its leading eigenvectors. None if `top_k` is 0.
        top_k: how many leading directions `top_overlap` compares: the largest number, up to the one asked for and the
            numerical ranks, at which both kernels' leading directions are distinct from the rest. Others are decided by
            rounding. 0 if there is none, as for a kernel of zeros or a multiple of the identity.
        reference_rank: the reference's numerical rank, how many singular values exceed max(rows, columns)·ε times the
            largest.
        rank: the same of the new kernel.
        reference_effective_rank: how many directions the reference has, exp of the entropy of its singular values
            divided by their sum (Roy and Vetterli 2007, "The effective rank"); between 1 and min(N, M), 0 for zeros.
        effective_rank: the same of the new kernel.
        prediction_gap: ‖new predictions − reference's‖ / ‖reference's‖, see `prediction_gap`; None without targets,
            and where one of the kernels does not learn (see there: sign kernels may be indefinite).
    """

    relative_frobenius: float
    relative_spectral: float
    alignment: float
    top_overlap: float | None
    top_k: int
    reference_rank: int
    rank: int
    reference_effective_rank: float
    effective_rank: float
    prediction_gap: float | None = None

    def __str__(self) -> str:
        """One fact per line."""
        return facts(self)


def relative_error(new: Float[Array, "*shape"], reference: Float[Array, "*shape"]) -> float:
    """‖new − reference‖_F / ‖reference‖_F; 0 if both are zero, infinite if only the reference is.

    >>> import jax.numpy as jnp
    >>> relative_error(jnp.array([3.0, 4.5]), jnp.array([3.0, 4.0]))
    0.10000000149011612
    """
    scale = jnp.max(jnp.abs(reference))
    if scale == 0:
        return 0.0 if not jnp.any(new) else float("inf")
    # divided first: squares of large kernels leave float32's range
    return float(jnp.linalg.norm(((new - reference) / scale).ravel()) / jnp.linalg.norm((reference / scale).ravel()))


def as_matrix(kernel: Float[Array, "N M *outputs"]) -> Float[Array, "rows columns"]:
    """A network kernel [N, M, C, D] as the matrix [N·C, M·D] between outputs of examples; a matrix as it is."""
    if kernel.ndim == 2:
        return kernel
    n, m, c, d = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(n * c, m * d)


def _centred(kernel: Float[Array, "N M *outputs"]) -> Float[Array, "N M *outputs"]:
    rows, columns = jnp.mean(kernel, axis=0, keepdims=True), jnp.mean(kernel, axis=1, keepdims=True)
    return kernel - rows - columns + jnp.mean(kernel, axis=(0, 1), keepdims=True)


def centred_alignment(first: Float[Array, "N M *outputs"], second: Float[Array, "N M *outputs"]) -> float:
    """⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖) with H = I − 11ᵀ/N: cosine of the centred kernels, blind to scale and offset.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equation 4. Returns 0 when
    one of the centred kernels vanishes, up to rounding. Network kernels are centred over examples for every pair of
    outputs.
    """
    # scaled first: products of large kernels leave float32's range
    scaled = [kernel / jnp.max(jnp.abs(kernel)) for kernel in (first, second)]
    first, second = (_centred(kernel) for kernel in scaled)
    # what centring leaves of a constant kernel by rounding alone is nothing
    smallest = [64 * float(jnp.finfo(kernel.dtype).eps) * jnp.linalg.norm(kernel) for kernel in scaled]
    sizes = [
        jnp.where(jnp.linalg.norm(kernel) > least, jnp.linalg.norm(kernel), 0)
        for kernel, least in zip((first, second), smallest, strict=True)
    ]
    norms = sizes[0] * sizes[1]
    return float(jnp.where(norms > 0, jnp.sum(first * second) / jnp.where(norms > 0, norms, 1), 0))


def effective_rank(singular_values: Float[Array, " k"]) -> float:
    """exp(−Σ p log p) with p the singular values divided by their sum; 0 if all of them are 0.

    >>> import jax.numpy as jnp
    >>> round(effective_rank(jnp.array([2.0, 2.0, 0.0])), 4)
    2.0
    """
    total = jnp.sum(singular_values)
    if total == 0:
        return 0.0
    p = singular_values / total
    return float(jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))))


def _numerical_rank(sizes: Float[Array, " k"], tolerance: float) -> int:
    """How many singular values are not rounding."""
    return int(jnp.sum(sizes > tolerance * sizes[0]))


def _distinct(sizes: Float[Array, " k"], count: int, tolerance: float) -> bool:
    """Whether rounding does not choose the leading `count` directions: the next singular value is another one."""
    return count == sizes.shape[0] or bool(sizes[count - 1] - sizes[count] > tolerance * sizes[0])


def prediction_gap(
    reference: Float[Array, "N N *outputs"],
    new: Float[Array, "N N *outputs"],
    targets: Float[Array, "N *c"],
    *,
    ridge: float = 1e-3,
) -> float | None:
    """How differently the two kernels predict: ‖p_new − p_reference‖ / ‖p_reference‖ of kernel ridge regressions.

    The examples with even numbers are learned, ``p = K[odd, even] (K[even, even] + ridge·k̄ I)⁻¹ targets[even]`` with k̄
    the mean absolute diagonal of K[even, even], so that the scale of a kernel does not matter. A network kernel learns
    its C outputs together.

    p = K[odd, even] α for the α at which α̇ = targets − (K[even, even] + ridge·k̄ I) α ends, if it ends: an SGD kernel
    is positive semidefinite and learns. A sign kernel is neither symmetric nor definite; where an eigenvalue of that
    matrix has no positive real part, α runs away, and the inverse is one that small changes of the kernel make
    arbitrarily large: a gap would say nothing about the kernels. There is none then.

    Args:
        reference: the original's kernel, [N, N] or [N, N, C, C], N ≥ 2.
        new: the new kernel on the same examples.
        targets: what to learn, one row per example; for network kernels one number per output, [N, C].
        ridge: relative to the mean diagonal.

    Returns:
        The gap; 0 is equal predictions. None if one of the kernels does not learn.

    Raises:
        InputError: if the kernels are not square or too small, targets do not fit, or the ridge is not positive.
    """
    count, outputs = reference.shape[0], reference.shape[3:]
    if reference.shape != (count, count, *2 * outputs) or new.shape != reference.shape or count < 2:
        raise InputError(
            f"predictions need two square kernels of 2 examples or more, got {reference.shape}, {new.shape}"
        )
    fits = targets.shape == (count, *outputs) if outputs else targets.shape[0] == count and targets.ndim <= 2
    if not fits or not bool(jnp.all(jnp.isfinite(targets))):
        expected = f"of {outputs[0]} numbers, " if outputs else ""
        raise InputError(f"targets must be {count} finite rows {expected}one per example, got shape {targets.shape}")
    if not 0 < ridge < float("inf"):
        raise InputError(f"ridge must be positive and finite, got {ridge}")
    learned = targets[::2].astype(reference.dtype)
    learned = learned.reshape(-1, 1) if outputs else learned.reshape(learned.shape[0], -1)

    def predict(kernel: Float[Array, "N N *outputs"]) -> Float[Array, "n c"] | None:
        train = as_matrix(kernel[::2, ::2])
        scale = jnp.mean(jnp.abs(jnp.diagonal(train)))
        scale = jnp.where(scale > 0, scale, 1)  # a kernel of zeros predicts 0
        damped = train / scale + ridge * jnp.eye(train.shape[0], dtype=train.dtype)
        if np.min(np.linalg.eigvals(np.asarray(damped)).real) <= 0:
            return None
        return (as_matrix(kernel[1::2, ::2]) / scale) @ jnp.linalg.solve(damped, learned)

    old, found = predict(reference), predict(new)
    return None if old is None or found is None else relative_error(found, old)


def kernel_distance(
    reference: Float[Array, "N M *outputs"],
    new: Float[Array, "N M *outputs"],
    *,
    top_k: int = 10,
    targets: Float[Array, "N *c"] | None = None,
    ridge: float = 1e-3,
) -> KernelDistance:
    """Compare a traced or network kernel with the original's on the same examples.

    Args:
        reference: the original's kernel, [N, M], or a network kernel [N, M, C, C]. Norms, directions and ranks of a
            network kernel are those of the matrix [N·C, M·C].
        new: the compressed model's kernel.
        top_k: leading directions to compare, at most; `KernelDistance.top_k` says how many were.
        targets: what the two kernels learn to predict, for square kernels; see `prediction_gap`.
        ridge: of those regressions, relative to the mean diagonal.

    Returns:
        The `KernelDistance`; every number without units.

    Raises:
        InputError: if the kernels have different shapes, are not matrices, or are not finite, or top_k is below 1; as
            `prediction_gap`.

    >>> import jax.numpy as jnp
    >>> kernel = jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.0, 0.0]))  # of rank 3: there are no ten directions
    >>> found = kernel_distance(kernel, 1.7 * kernel, top_k=10)
    >>> found.top_k, found.reference_rank, found.rank, round(found.top_overlap, 4)
    (3, 3, 3, 1.0)
    """
    if top_k < 1:
        raise InputError(f"top_k is how many leading directions are compared, at least 1; got {top_k}")
    if reference.shape != new.shape or reference.ndim not in (2, 4):
        raise InputError(
            f"kernels must be two of one shape [N, M] or [N, M, C, C], got {reference.shape} and {new.shape}"
        )
    if not bool(jnp.all(jnp.isfinite(reference)) & jnp.all(jnp.isfinite(new))):
        raise InputError("kernels hold values that are not finite")
    with jax.default_matmul_precision("highest"):
        matrix, new_matrix = as_matrix(reference), as_matrix(new)
        left, sizes, _ = jnp.linalg.svd(matrix, full_matrices=False)
        new_left, new_sizes, _ = jnp.linalg.svd(new_matrix, full_matrices=False)
        tolerance = max(matrix.shape) * float(jnp.finfo(matrix.dtype).eps)
        ranks = [_numerical_rank(each, tolerance) for each in (sizes, new_sizes)]
        counts = range(min(top_k, *ranks), 0, -1)
        both = [count for count in counts if all(_distinct(each, count, tolerance) for each in (sizes, new_sizes))]
        top_k = both[0] if both else 0
        cosines = left[:, :top_k].T @ new_left[:, :top_k]
        spectral, largest = float(jnp.linalg.norm(new_matrix - matrix, ord=2)), float(sizes[0])
        gap = None if targets is None else prediction_gap(reference, new, targets, ridge=ridge)
    return KernelDistance(
        relative_frobenius=relative_error(new, reference),
        relative_spectral=spectral / largest if largest else 0.0 if not spectral else float("inf"),
        alignment=centred_alignment(reference, new),
        top_overlap=float(jnp.sum(cosines**2) / top_k) if top_k else None,
        top_k=top_k,
        reference_rank=ranks[0],
        rank=ranks[1],
        reference_effective_rank=effective_rank(sizes),
        effective_rank=effective_rank(new_sizes),
        prediction_gap=gap,
    )
