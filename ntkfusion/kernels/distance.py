"""How far one kernel is from another."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """Distances of a kernel from a reference kernel on the same examples.

    Attributes:
        relative_frobenius: ‖new − reference‖_F / ‖reference‖_F. 0 is equal; 1 is as far as the zero kernel.
        relative_spectral: the same with the largest singular value as norm.
        alignment: centred kernel alignment (CKA, Kornblith et al. 2019) in [−1, 1]; 1 is equal up to scale and offset.
        top_overlap: mean squared cosine between the spaces of the leading left singular vectors, in [0, 1]; for a
            symmetric kernel these are its leading eigenvectors.
        top_k: how many leading directions `top_overlap` compares.
    """

    relative_frobenius: float
    relative_spectral: float
    alignment: float
    top_overlap: float
    top_k: int


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


def _centred(kernel: Float[Array, "N M"]) -> Float[Array, "N M"]:
    rows, columns = jnp.mean(kernel, axis=0, keepdims=True), jnp.mean(kernel, axis=1, keepdims=True)
    return kernel - rows - columns + jnp.mean(kernel, keepdims=True)


def centred_alignment(first: Float[Array, "N M"], second: Float[Array, "N M"]) -> float:
    """⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖) with H = I − 11ᵀ/N: cosine of the centred kernels, blind to scale and offset.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equation 4. Returns 0 when
    one of the centred kernels vanishes.
    """
    # scaled first: products of large kernels leave float32's range
    first, second = (_centred(kernel / jnp.max(jnp.abs(kernel))) for kernel in (first, second))
    norms = jnp.linalg.norm(first) * jnp.linalg.norm(second)
    return float(jnp.where(norms > 0, jnp.sum(first * second) / jnp.where(norms > 0, norms, 1), 0))


def kernel_distance(reference: Float[Array, "N M"], new: Float[Array, "N M"], *, top_k: int = 10) -> KernelDistance:
    """Compare a traced or network kernel with the original's on the same examples.

    Args:
        reference: the original's kernel.
        new: the compressed model's kernel.
        top_k: leading directions to compare; at most min(N, M) are used.

    Returns:
        The `KernelDistance`; every number without units.

    Raises:
        InputError: if the kernels have different shapes, are not matrices, or are not finite.
    """
    if reference.shape != new.shape or reference.ndim != 2:
        raise InputError(f"kernels must be two matrices of one shape, got {reference.shape} and {new.shape}")
    if not bool(jnp.all(jnp.isfinite(reference)) & jnp.all(jnp.isfinite(new))):
        raise InputError("kernels hold values that are not finite")
    with jax.default_matmul_precision("highest"):
        left, sizes, _ = jnp.linalg.svd(reference, full_matrices=False)
        new_left, _, _ = jnp.linalg.svd(new, full_matrices=False)
        top_k = min(top_k, *reference.shape)
        cosines = left[:, :top_k].T @ new_left[:, :top_k]
        spectral = jnp.linalg.norm(new - reference, ord=2) / sizes[0]
    return KernelDistance(
        relative_frobenius=relative_error(new, reference),
        relative_spectral=float(spectral),
        alignment=centred_alignment(reference, new),
        top_overlap=float(jnp.sum(cosines**2) / top_k),
        top_k=top_k,
    )
