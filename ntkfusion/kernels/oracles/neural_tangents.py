"""neural-tangents 0.6.5 on today's JAX: the independent reference for the kernels of this library.

It is imported on first use, with what it misses handed to its own modules (see `neural_tangents_shim`); JAX stays as it
was for everybody else, and TensorFlow is not needed. Nothing else in the library depends on this module.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntkfusion.errors import InputError, NTKFusionError
from ntkfusion.kernels.oracles import neural_tangents_shim as shim
from ntkfusion.kernels.oracles.dense_jacobian import Function

Implementation = Literal["auto", "jacobian-contraction", "ntk-vector-products", "structured-derivatives"]

#: neural-tangents' ways to compute a kernel; "auto" takes the one with the fewest operations by XLA's count.
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

#: What code written for another JAX raises. A function that is wrong in itself fails before it comes to that.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


class NeuralTangentsError(NTKFusionError):
    """neural-tangents is missing, or does not work with the installed JAX."""


@functools.cache
def load_neural_tangents() -> ModuleType:
    """The working ``neural_tangents``: the one that is already imported, else the one this library adapts.

    Returns:
        The module, with `empirical_ntk_fn`, `batch`, `stax` and the rest; without `experimental` (TensorFlow).

    Raises:
        NeuralTangentsError: if it is not installed or cannot be imported with this JAX.
    """
    loaded = sys.modules.get(shim.NAME)
    if hasattr(loaded, "empirical_ntk_fn"):
        return loaded  # pyright: ignore[reportReturnType]
    try:
        return shim.import_neural_tangents()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == shim.NAME:
            raise NeuralTangentsError(
                "neural-tangents is not installed; the reference kernels need it: pip install neural-tangents==0.6.5"
            ) from error
        raise _misfit("cannot be imported", error) from error


def _misfit(what: str, error: Exception) -> NeuralTangentsError:
    try:
        version = metadata.version("neural-tangents")
    except metadata.PackageNotFoundError:
        version = "(unknown version)"
    return NeuralTangentsError(
        f"neural-tangents {version} {what} with JAX {jax.__version__} ({type(error).__name__}: {error}). Only the "
        "reference kernels need it; try a JAX between 0.10 and the newest this library was tested with"
    )


@contextmanager
def _as_it_expects() -> Iterator[None]:
    """The promotions that neural-tangents relies on, full precision, and silence about rules it can do without."""
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.default_matmul_precision("highest"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "No Jacobian rule found", UserWarning)
        yield


def _examples(name: str, x: PyTree, batch_size: int | None) -> tuple[tuple[Array, ...], Any]:
    """The arrays in `x` and their structure, refused if they do not hold the same number of examples."""
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, x))
    counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(counts) != 1 or 0 in counts:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise InputError(f"{name} must hold arrays with the same number of examples as first axis, got {shapes}")
    if batch_size is not None and (batch_size < 1 or counts.pop() % batch_size):
        raise InputError(
            f"batch_size must divide the number of examples in {name}, got {batch_size}: {leaves[0].shape}"
        )
    return tuple(leaves), structure


def _batched(f: Function, structure: Any) -> Callable[[PyTree, tuple[Array, ...]], Array]:
    """`f` as neural-tangents wants it: with a batch axis, on a tuple of arrays, since `batch` takes no dictionaries."""

    def apply(params: PyTree, leaves: tuple[Array, ...]) -> Array:
        if leaves[0].shape[0] == 1:  # it differentiates one example at a time; no batching rules in its way then
            return f(params, structure.unflatten([leaf[0] for leaf in leaves]))[None]
        return jax.vmap(f, (None, 0))(params, structure.unflatten(leaves))

    return apply


def reference_kernel(
    f: Function,
    params: PyTree,
    x: PyTree,
    z: PyTree = None,
    *,
    trace: bool = True,
    implementation: str = "auto",
    batch_size: int | None = None,
) -> Float[Array, "N M *outputs"]:
    """The empirical kernel ⟨∇f(x), ∇f(z)⟩ as neural-tangents computes it.

    Args:
        f: ``f(params, one_example) -> [o]``.
        params: pytree of the differentiated parameters.
        x: evaluated examples, an array or pytree of arrays (token ids too) with N along the first axis.
        z: training examples; by default `x`.
        trace: mean over outputs, else the full [N, M, o, o].
        implementation: one of `IMPLEMENTATIONS`.
        batch_size: compute blocks of this many rows and columns, one after another, to save memory; it must divide N
            and M. By default all at once.

    Returns:
        [N, M], or [N, M, o, o] without trace, as `ntkfusion.kernels.oracles.dense_jacobian.dense_kernel`.

    Raises:
        InputError: for an unknown implementation, a batch size that does not divide, an f that returns no vector.
        NeuralTangentsError: if neural-tangents is missing or does not work with this JAX.

    >>> import jax.numpy as jnp
    >>> reference_kernel(
    ...     lambda params, x: x @ params, jnp.ones((2, 3)), jnp.eye(2), implementation="ntk-vector-products")
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"unknown implementation {implementation!r}; known: {', '.join(IMPLEMENTATIONS)}")
    left, structure = _examples("x", x, batch_size)
    right, other = (None, structure) if z is None else _examples("z", z, batch_size)
    if structure != other:
        raise InputError(f"x and z must have the same structure, got {structure} and {other}")
    output = jax.eval_shape(f, params, structure.unflatten([leaf[0] for leaf in left]))
    if getattr(output, "ndim", None) != 1:
        raise InputError(f"f must return one vector of outputs for one example, got {output}")
    nt = load_neural_tangents()
    try:
        with _as_it_expects():
            kernel = nt.empirical_ntk_fn(
                _batched(f, structure),
                trace_axes=(-1,) if trace else (),
                vmap_axes=0,
                implementation=nt.NtkImplementation[implementation.upper().replace("-", "_")],
            )
            kernel = nt.batch(kernel, batch_size=batch_size, device_count=0) if batch_size else jax.jit(kernel)
            return kernel(left, right, params)
    except _MISFITS as error:
        raise _misfit(f"cannot compute this kernel by {implementation}", error) from error
