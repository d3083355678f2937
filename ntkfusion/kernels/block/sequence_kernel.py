"""Kernels of scalar readouts of whole sequences, through one block whose tokens are joined by output cotangents.

For ``F_c(x_1 … x_T)`` with ``γ_tc = ∂F_c/∂y_t`` the gradient of every parameter is a sum over tokens of outer products
``Σ_t u_t w_tcᵀ``: for a dense block ``a_t γ_tcᵀ`` (w2) and ``x_t δ_tcᵀ`` (w1) with ``δ_tc = g_t ∘ (W2 γ_tc)``, and for
biases ``Σ_t γ_tc`` and ``Σ_t δ_tc``. The SGD kernel ``Σ_ts (u_t·u'_s)(w_tc·w'_sd)`` is an elementwise product of two
Gram matrices of tokens, or a product of the gradients themselves: whichever takes fewer multiplications. The sign of a
sum over tokens does not factor, so the sign kernel needs the gradients: a few rows of them at a time, of all examples.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels.block import dense, factorized, gated
from ntkfusion.kernels.block.program import PRODUCT_BLOCKS
from ntkfusion.kernels.block.terms import Parts
from ntkfusion.kernels.estimate import Estimate, Shaped, check_result, largest_that_fits, program_bytes
from ntkfusion.kernels.kinds import Kind, Signs, check_kind, check_signs
from ntkfusion.models.blocks.block import Block, layout
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.utils.memory import memory_limit as limit_in_bytes

#: Numbers that a chunk of gradients, or of Gram matrices of tokens, may hold.
CHUNK = 2**25

#: Beside result and factors, what the program takes at most: a few arrays of `CHUNK` numbers in float64.
WORKSPACE = 2**30

#: The two factors of a parameter's gradient; biases have no first one.
Factors: TypeAlias = tuple[Float[Array, "N T p"] | None, Float[Array, "N T C q"]]

#: Shapes without the number of sequences, and types, of both arrays of a side.
Form: TypeAlias = tuple[tuple[tuple[int, ...], jnp.dtype], ...]


class Sequences(NamedTuple):
    """One side of a kernel, or its shapes: what enters the block at every token, and the readouts' cotangents."""

    x: Shaped
    cotangents: Shaped


def sequence_kernel(
    block: Block,
    x: Float[Array, "N T d"],
    cotangents: Float[Array, "N T C o"],
    z: Float[Array, "M S d"] | None = None,
    z_cotangents: Float[Array, "M S C o"] | None = None,
    *,
    kind: Kind = "sgd",
    signs: Signs = "float",
    by_parameter: bool = False,
    memory_limit: int | str | None = None,
) -> Float[Array, "N M C C"] | Parts:
    """The exact kernel of C scalar readouts per sequence with respect to one block's parameters.

    SGD: ``⟨∇F_c(x), ∇F_d(z)⟩``. Sign: ``⟨∇F_c(x), sgn ∇F_d(z)⟩``. Padding tokens have cotangents of 0 and add nothing.
    Signs are those of computed sums over tokens, in the precision of the inputs (signs="float").

    Args:
        block: a dense, factorised or gated block; all tokens pass through it.
        x: what enters the block at each token of the evaluated sequences.
        cotangents: ∂F_c/∂y_t, the gradients of the readouts with respect to the block's output at each token.
        z: the same of the training sequences; by default `x`.
        z_cotangents: cotangents that belong to `z`.
        kind: "sgd" or "sign".
        signs: "float", the only ones a sum over tokens has; `ntkfusion.block_kernel` knows exact ones.
        by_parameter: return {parameter name: kernel}; the kernels add up to the whole.
        memory_limit: bytes, or a text such as "8GiB"; by default a safe share of what the machine has. Sequences are
            taken in chunks that fit; the result changes by rounding only.

    Returns:
        [N, M, C, C], or a dictionary of such arrays.

    Raises:
        InputError: for inputs that do not fit the block or each other, a mixture of experts, an unknown kind, exact
            signs, or if not even two sequences fit into the memory limit.

    >>> import jax.numpy as jnp
    >>> from ntkfusion.models.blocks.dense import MLPBlock
    >>> block = MLPBlock(jnp.eye(2), None, jnp.ones((2, 1)), None, activation="relu")
    >>> tokens, readout = jnp.array([[[1.0, 2.0], [3.0, 0.0]]]), jnp.ones((1, 2, 1, 1))
    >>> sequence_kernel(block, tokens, readout)   # |(4, 2)|² + |(4, 2)|² + |(1, 2)|², the last from neuron 2
    Array([[[[45.]]]], dtype=float32)
    """
    check_kind(kind)
    check_signs(signs, known=False)
    left, right = _checked_sides(block, x, cotangents, z, z_cotangents)
    chunk = _estimate(block, left, right, kind, memory_limit, exactly=False).chunk
    with jax.default_matmul_precision("highest"):
        parts = _in_chunks(block, left, right, kind, chunk)
    return parts if by_parameter else sum(parts.values())  # pyright: ignore[reportReturnType]


def estimate_sequence_kernel(
    block: Block,
    x: Shaped,
    cotangents: Shaped,
    z: Shaped | None = None,
    z_cotangents: Shaped | None = None,
    *,
    kind: Kind = "sgd",
    signs: Signs = "float",
    memory_limit: int | str | None = None,
) -> Estimate:
    """The memory that `sequence_kernel` takes with the same arguments, by compiling its program; nothing runs.

    Args:
        block: as there, or its shapes.
        x: as there, or its shape (`jax.ShapeDtypeStruct`).
        cotangents: likewise.
        z: likewise.
        z_cotangents: likewise.
        kind: as there.
        signs: as there.
        memory_limit: as there.

    Returns:
        The estimate; `chunk` is the number of sequences that are taken at a time.

    Raises:
        InputError: as `sequence_kernel`.
    """
    check_kind(kind)
    check_signs(signs, known=False)
    left, right = _checked_sides(block, x, cotangents, z, z_cotangents)
    return _estimate(block, left, right, kind, memory_limit, exactly=True)


def _checked_sides(
    block: Block, x: Shaped, cotangents: Shaped, z: Shaped | None, z_cotangents: Shaped | None
) -> tuple[Sequences, Sequences | None]:
    """Both sides of a kernel, None for a second one that is the first."""
    if not isinstance(block, PRODUCT_BLOCKS):
        known = ", ".join(form.__name__ for form in PRODUCT_BLOCKS)
        raise InputError(f"sequence kernels exist for {known}; got a {type(block).__name__}")
    if (z is None) != (z_cotangents is None):
        raise InputError("z and z_cotangents belong together: give both or neither")
    _check(block, "x", x, "cotangents", cotangents)
    if z is None or z_cotangents is None:
        return Sequences(x, cotangents), None
    _check(block, "z", z, "z_cotangents", z_cotangents)
    return Sequences(x, cotangents), Sequences(z, z_cotangents)


def _check(block: Block, name: str, x: Shaped, cotangents_name: str, cotangents: Shaped) -> None:
    if x.ndim != 3 or x.shape[2] != block.model_width or 0 in x.shape:
        raise InputError(f"{name} must be [sequences, tokens, {block.model_width}], got shape {x.shape}")
    expected = (*x.shape[:2], "readouts", block.output_width)
    if cotangents.ndim != 4 or cotangents.shape[:2] != x.shape[:2] or cotangents.shape[3] != block.output_width:
        raise InputError(f"{cotangents_name} must be {list(expected)}, got shape {cotangents.shape}")


def _estimate(
    block: Block,
    left: Sequences,
    right: Sequences | None,
    kind: Kind,
    memory_limit: int | str | None,
    *,
    exactly: bool,
) -> Estimate:
    """The largest chunk that fits, and the memory that goes with it."""
    (count, _, outputs, _), (others, _, other_outputs, _) = left.cotangents.shape, (right or left).cotangents.shape
    limit, most = limit_in_bytes(memory_limit), max(count, others)
    returned = count * others * outputs * other_outputs * left.x.dtype.itemsize
    result = 2 * len(block.parameters()) * returned  # all parts are kept, and joined
    check_result(result, limit, math.isqrt(limit * count * others // result), "sequences")
    factors = max(_factor_bytes(block, side.cotangents, most) for side in (left, right) if side is not None)
    if not exactly and memory_limit is None and result + factors + WORKSPACE <= limit:
        return Estimate(limit, returned, most, limit)
    forms = tuple(None if side is None else _form(side) for side in (left, right))
    advice = "raise memory_limit or shorten the sequences"

    def needs(chunk: int) -> int:
        alone = right is None and chunk >= most
        return result + _program_bytes(layout(block), forms, kind, chunk, alone)

    chunk, peak = largest_that_fits(needs, most, limit, advice)
    return Estimate(peak, returned, chunk, limit)


def _form(side: Sequences) -> Form:
    return tuple((array.shape[1:], array.dtype) for array in side)


def _factor_bytes(block: Block, cotangents: Shaped, most: int) -> int:
    """More than the factors of all parameters of `most` sequences on both sides take."""
    per_token = 4 * (cotangents.shape[2] + 1) * (block.hidden_width + block.output_width + block.model_width)
    return 4 * most * cotangents.shape[1] * per_token * cotangents.dtype.itemsize


@lru_cache(maxsize=256)
def _program_bytes(block: Block, forms: tuple[Form | None, ...], kind: Kind, chunk: int, alone: bool) -> int:
    """What the program for chunks of that many sequences allocates; `alone` if both sides are the same chunk."""
    left, right = (
        (None, None) if form is None else tuple(jax.ShapeDtypeStruct((chunk, *shape), dtype) for shape, dtype in form)
        for form in forms
    )
    if not alone and forms[1] is None:
        right = left
    with jax.default_matmul_precision("highest"):
        return program_bytes(sequence_program.lower(block, *left, *right, kind=kind).compile())


def _in_chunks(block: Block, left: Sequences, right: Sequences | None, kind: Kind, chunk: int) -> Parts:
    """The kernels of all parameters, so many sequences of each side at a time."""
    other = left if right is None else right
    count, others = left.x.shape[0], other.x.shape[0]
    if chunk >= max(count, others):
        return sequence_program(block, *left, *((None, None) if right is None else right), kind=kind)
    strips = []
    for start in range(0, count, chunk):
        rows = _some(left, start, chunk)
        tiles = []
        for column in range(0, others, chunk):
            columns = _some(other, column, chunk)
            tiles.append(jax.block_until_ready(sequence_program(block, *rows, *columns, kind=kind)))
        strips.append(jax.tree.map(lambda *tiles: jnp.concatenate(tiles, axis=1), *tiles))
    return jax.tree.map(lambda *strips: jnp.concatenate(strips, axis=0), *strips)


def _some(side: Sequences, start: int, count: int) -> Sequences:
    return jax.tree.map(lambda array: array[start : start + count], side)


@partial(jax.jit, static_argnames="kind")
def sequence_program(
    block: Block,
    x: Float[Array, "N T d"],
    cotangents: Float[Array, "N T C o"],
    z: Float[Array, "M S d"] | None,
    z_cotangents: Float[Array, "M S C o"] | None,
    kind: Kind,
) -> Parts:
    """The kernels of all parameters; see `sequence_kernel`."""
    left = gradient_factors(block, x, cotangents)
    right = left if z is None or z_cotangents is None else gradient_factors(block, z, z_cotangents)
    parts = {}
    for name, (u, w) in left.items():
        u_right, w_right = right[name]
        if u is None or u_right is None:
            # a bias: one row of the gradient, whose factor is 1 at every token
            u, u_right = jnp.ones((*w.shape[:2], 1), w.dtype), jnp.ones((*w_right.shape[:2], 1), w.dtype)
        by_tokens = kind == "sgd" and tokens_are_cheaper(u, w, u_right, w_right)
        parts[name] = _through_tokens(u, w, u_right, w_right) if by_tokens else _rows(u, w, u_right, w_right, kind)
    return parts


def gradient_factors(block: Block, x: Float[Array, "N T d"], cotangents: Float[Array, "N T C o"]) -> dict[str, Factors]:
    """The factors u, w of every parameter's gradient ``Σ_t u_t w_tcᵀ``."""
    flat = x.reshape(-1, x.shape[2])

    def tokens(feature: Float[Array, "n p"]) -> Float[Array, "N T p"]:
        return feature.reshape(*x.shape[:2], -1)

    def signals(v: Float[Array, "m o"], *slopes: Float[Array, "n m"]) -> list[Float[Array, "N T C m"]]:
        """What comes back to the neurons, δ_tc, by every kind of slopes."""
        back = cotangents @ v.T
        return [tokens(g)[:, :, None, :] * back for g in slopes]

    found: dict[str, Factors]
    if isinstance(block, MLPBlock):
        rows = dense.left_features(block, flat)
        (delta,) = signals(rows.v, rows.g)
        found = {"w1": (x, delta), "b1": (None, delta), "w2": (tokens(rows.a), cotangents)}
    elif isinstance(block, GatedBlock):
        rows = gated.left_features(block, flat)
        gate, up = signals(rows.v, rows.gate, rows.up)
        found = {"gate": (x, gate), "gate_bias": (None, gate), "up": (x, up), "up_bias": (None, up)}
        found["w2"] = (tokens(rows.a), cotangents)
    else:
        assert isinstance(block, FactorizedBlock)
        rows = factorized.left_features(block, flat)
        (delta,) = signals(rows.v, rows.g)
        found = {"left1": (x, delta @ block.right1.T), "right1": (tokens(rows.p), delta), "b1": (None, delta)}
        found |= {"left2": (tokens(rows.a), cotangents @ block.right2.T), "right2": (tokens(rows.c), cotangents)}
    found["b2"] = (None, cotangents)
    return {name: found[name] for name in block.parameters()}


def tokens_are_cheaper(
    u: Float[Array, "N T p"],
    w: Float[Array, "N T C q"],
    u_right: Float[Array, "M S p"],
    w_right: Float[Array, "M S D q"],
) -> bool:
    """Whether Gram matrices of tokens take fewer multiplications than the gradients and their products."""
    (n, t, c, q), (m, s, d, _), p = w.shape, w_right.shape, u.shape[2]
    return n * m * t * s * (p + c * d * (q + 1)) < p * q * (n * t * c + m * s * d + n * m * c * d)


def _through_tokens(
    u: Float[Array, "N T p"],
    w: Float[Array, "N T C q"],
    u_right: Float[Array, "M S p"],
    w_right: Float[Array, "M S D q"],
) -> Float[Array, "N M C D"]:
    """Σ_ts (u_t·u'_s)(w_tc·w'_sd), one x at a time against a few z."""
    (_, t, c, _), (_, s, d, _) = w.shape, w_right.shape

    def pair(left: tuple[Array, Array], right: tuple[Array, Array]) -> Float[Array, "C D"]:
        joint = jnp.einsum("tcq,sdq->tscd", left[1], right[1])
        return jnp.sum((left[0] @ right[0].T)[:, :, None, None] * joint, axis=(0, 1))

    def row(left: tuple[Array, Array]) -> Float[Array, "M C D"]:
        return jax.lax.map(partial(pair, left), (u_right, w_right), batch_size=max(1, CHUNK // (t * s * c * d)))

    return jax.lax.map(row, (u, w))


def _rows(
    u: Float[Array, "N T p"],
    w: Float[Array, "N T C q"],
    u_right: Float[Array, "M S p"],
    w_right: Float[Array, "M S D q"],
    kind: Kind,
) -> Float[Array, "N M C D"]:
    """Through the gradients G[n, c] = Σ_t u_t w_tcᵀ (training side: their signs), a few of their p rows at a time."""
    (n, _, c, q), (m, _, d, _), p = w.shape, w_right.shape, u.shape[2]
    count = max(1, min(p, CHUNK // ((n * c + m * d) * q)))
    num_chunks = -(-p // count)

    def chunks(factor: Float[Array, "N T p"]) -> Float[Array, "chunks N T rows"]:
        padded = jnp.pad(factor, ((0, 0), (0, 0), (0, num_chunks * count - p)))
        return jnp.moveaxis(padded.reshape(*factor.shape[:2], num_chunks, count), 2, 0)

    def add(total: Float[Array, "n m"], rows: tuple[Array, Array]) -> tuple[Float[Array, "n m"], None]:
        g = jnp.einsum("ntp,ntcq->ncpq", rows[0], w).reshape(n * c, -1)
        same = u_right is u and w_right is w
        h = g if same else jnp.einsum("ntp,ntcq->ncpq", rows[1], w_right).reshape(m * d, -1)
        return total + g @ (jnp.sign(h) if kind == "sign" else h).T, None

    total, _ = jax.lax.scan(add, jnp.zeros((n * c, m * d), w.dtype), (chunks(u), chunks(u_right)))
    return total.reshape(n, c, m, d).transpose(0, 2, 1, 3)
