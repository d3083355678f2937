"""How far the hidden states of a compressed model are from the original's, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block, layout
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import Model
from ntkfusion.training.batches import TokenizedExamples, in_order
from ntkfusion.training.step import NETWORK_INPUTS, Arrays, Loss, network_inputs
from ntkfusion.utils.parameter_paths import Flat, Params, flatten, unflatten


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a program for a student and a teacher depends on.

    Attributes:
        student: its configuration.
        teacher: its configuration.
        shared: paths of the parameters that the teacher has from the student, so that layers in front of the first
            compressed block are computed once.
    """

    student: ModelConfig
    teacher: ModelConfig
    shared: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A student and its teacher as one set of parameters.

    Attributes:
        shapes: what is static.
        trained: parameters of the student's compressed blocks (routers are none of them), as ``student/…``.
        frozen: the student's others, as ``student/…``, and those that the teacher alone has, as ``teacher/…``.
        constants: of both.
    """

    shapes: Shapes
    trained: Flat
    frozen: Flat
    constants: Params

    @classmethod
    def of(cls, student: Model, teacher: Model) -> Pair:
        """Put them together.

        Raises:
            InputError: if the teacher has the same blocks as the student, or another architecture.
        """
        _check_alike(student.config, teacher.config)
        ours, theirs, paths = flatten(student.params), flatten(teacher.params), compressed_paths(student, teacher)
        shared = tuple(path for path, leaf in theirs.items() if path not in paths and _equal(ours.get(path), leaf))
        trained = {f"student/{path}": ours[path] for path in ours if path in paths}
        frozen = {f"student/{path}": leaf for path, leaf in ours.items() if path not in paths}
        frozen |= {f"teacher/{path}": leaf for path, leaf in theirs.items() if path not in shared}
        constants = {"student": student.constants, "teacher": teacher.constants}
        return cls(Shapes(student.config, teacher.config, shared), trained, frozen, constants)


def compressed_paths(student: Model, teacher: Model) -> frozenset[str]:
    """Paths of the parameters of the student's blocks that differ from the teacher's, without routers.

    Raises:
        InputError: if no block differs.
    """
    blocks = zip(student.config.block_paths, student.mlp_blocks(), teacher.mlp_blocks(), strict=True)
    differing = [(path, block) for path, block, original in blocks if not _same(block, original)]
    if not differing:
        raise InputError(
            "teacher equals student: all MLP blocks are the same, so there is nothing to tune; give the model before "
            "compression as teacher"
        )
    return frozenset(f"{path}/{name}" for path, block in differing for name in block.parameters() if name != "router")


def _same(block: Block, original: Block) -> bool:
    if layout(block) != layout(original):
        return False
    pairs = zip(jax.tree.leaves(block), jax.tree.leaves(original), strict=True)
    return all(_equal(new, old) for new, old in pairs)


def _equal(new: Array | None, old: Array) -> bool:
    return new is old or (new is not None and np.array_equal(new, old))


def _check_alike(student: ModelConfig, teacher: ModelConfig) -> None:
    facts = ("architecture", "hidden_size", "vocab_size", "applications", "block_paths")
    for fact in facts:
        ours, theirs = getattr(student, fact), getattr(teacher, fact)
        if ours != theirs:
            raise InputError(
                f"the teacher should be the student before compression, but their {fact} differ: {theirs} and {ours}"
            )


def layer_errors(shapes: Shapes, params: Params, constants: Params, arrays: Mapping[str, Array]) -> Float[Array, " L"]:
    """Σ_t w_t ‖H̃_ℓ(t) − H_ℓ(t)‖² for every layer ℓ, over the tokens t of a batch; no gradient reaches H.

    Args:
        shapes: what is static.
        params: ``student`` and ``teacher``, as `Pair` divides them.
        constants: of both.
        arrays: from `token_batch`.

    Returns:
        One sum per layer.
    """
    inputs = network_inputs(arrays)
    ours = flatten(params["student"])
    theirs = unflatten({path: ours[path] for path in shapes.shared} | flatten(params["teacher"]))
    found = Model(shapes.student, params["student"], constants["student"]).hidden_states(params["student"], **inputs)
    wanted = Model(shapes.teacher, theirs, constants["teacher"]).hidden_states(theirs, **inputs)

    def error(new: Float[Array, "B T d"], original: Float[Array, "B T d"]) -> Float[Array, ""]:
        # squares of half precision would round small errors away
        dtype = jnp.float32 if new.dtype == jnp.bfloat16 else new.dtype
        gap = new.astype(dtype) - jax.lax.stop_gradient(original).astype(dtype)
        # chosen, not multiplied: whatever is at padding stays out
        counted = jnp.where(arrays["weights"] > 0, jnp.sum(gap**2, axis=-1), 0)
        return jnp.sum(counted * arrays["weights"].astype(dtype))

    return jnp.stack([error(new, original) for new, original in zip(found, wanted, strict=True)])


def layer_loss(shapes: Shapes) -> Loss:
    """(1/L) Σ_ℓ Σ_t w_t ‖H̃_ℓ(t) − H_ℓ(t)‖², both models without dropout."""

    def loss(params: Params, constants: Params, arrays: Mapping[str, Array], key: Array | None) -> Float[Array, ""]:
        return jnp.mean(layer_errors(shapes, params, constants, arrays))

    return loss


def token_batch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch whose weights [B, T] are 1 at tokens of examples and 0 elsewhere.

    A decoder's row t, which predicts token t, counts with it.
    """
    inputs = {name: arrays[name] for name in NETWORK_INPUTS if name in arrays}
    return {**inputs, "weights": arrays["attention_mask"].astype(np.float32) * arrays["weights"][:, None]}


def mean_errors(
    pair: Pair, params: Flat, encoded: TokenizedExamples, batch_size: int, buckets: Sequence[int]
) -> tuple[float, ...]:
    """The mean of ‖H̃_ℓ(t) − H_ℓ(t)‖² over all tokens, for every layer.

    Args:
        pair: student and teacher.
        params: all parameters of both, by path.
        encoded: tokenised texts.
        batch_size: examples that are computed at once.
        buckets: padded lengths.

    Returns:
        One number per layer.
    """
    program, tree = _program(pair.shapes), unflatten(params)
    total, tokens = np.zeros(len(pair.shapes.student.applications)), 0.0
    for _, arrays in in_order(encoded, batch_size, buckets):
        batch = token_batch(arrays)
        total += np.asarray(program(tree, pair.constants, batch), np.float64)
        tokens += float(batch["weights"].sum())
    return tuple((total / tokens).tolist())


@lru_cache(maxsize=8)
def _program(shapes: Shapes) -> Callable[[Params, Params, Arrays], Float[Array, " L"]]:
    return jax.jit(partial(layer_errors, shapes))
