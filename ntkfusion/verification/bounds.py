"""What the checks of bounds share: rows from comparisons, and controls that break a bound on purpose.

Small networks with planted near-duplicates, and real ones, for checks of whole networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.sources import DEMO
from ntkfusion.compression.methods.mlp_fusion import fuse
from ntkfusion.data.block_inputs import tokenize
from ntkfusion.data.text import sample_sentences
from ntkfusion.errors import CheckpointError
from ntkfusion.kernels.block.dense import terms
from ntkfusion.kernels.block.terms import evaluate as evaluate_terms
from ntkfusion.kernels.kinds import Kind
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import Model, random_model
from ntkfusion.verification.cases import Case, clusters_of, normal, planted_labels, repeated
from ntkfusion.verification.check import Control, Row, Scope

#: By form of the bound what was measured and what bounds it.
Compared = dict[str, tuple[Array, Array]]

#: A term of a bound, or a constant in it: the module and the name by which it is looked up there.
Term = tuple[ModuleType, str]

#: Arrays of synthetic blocks are small: compiling is what takes time.
FAST = {"xla_backend_optimization_level": 0}

#: Inputs of comparisons that hold o or o² numbers per pair, of synthetic and of real blocks.
FEW, REAL_FEW = 6, 2


def few_inputs(case: Case, scope: Scope) -> Float[Array, "N d"] | None:
    """The inputs of such comparisons; in quick mode only of synthetic blocks of one activation."""
    if scope.quick and (case.is_real or case.original.activation != "gelu"):
        return None
    return case.x[: REAL_FEW if case.is_real else FEW]


def kernel_gap(
    original: MLPBlock, fused: MLPBlock, x: Float[Array, "N d"], z: Float[Array, "M d"], kind: Kind, outputs: Any
) -> Array:
    """|K − K̃| by the closed forms behind `block_kernel`; `outputs` is "trace" (their mean), "diagonal" or "full"."""
    pairs = (x.shape[0], z.shape[0])
    old, new = (sum(evaluate_terms(terms(b, x, z, kind), outputs, pairs).values()) for b in (original, fused))
    return jnp.abs(old - new)


def rows_of(found: Iterable[tuple[Case, Compared]], of: str) -> tuple[Row, ...]:
    """A row per form and kind of case: synthetic blocks of all activations together, real ones one by one.

    Args:
        found: cases with their comparisons.
        of: what is counted.

    Returns:
        The rows, those of one case beside each other.
    """
    groups: dict[tuple[str, str, int | None, float | None], list[tuple[np.ndarray, np.ndarray]]] = {}
    for case, compared in found:
        for form, (measured, bound) in compared.items():
            group = groups.setdefault((case.name, form, case.layer, case.width), [])
            group.append((np.asarray(measured).ravel(), np.asarray(bound).ravel()))
    rows = []
    for (name, form, layer, width), parts in groups.items():
        measured, bound = (np.concatenate(side) for side in zip(*parts, strict=True))
        rows.append(Row(f"{name}, {form}", measured, bound, of, layer, width))
    return tuple(rows)


def violated(compared: Iterable[tuple[Array, Array]]) -> bool:
    """Whether any measured number exceeds its bound."""
    return any(bool(jnp.any(~(measured <= bound))) for measured, bound in compared)


def perturbed(block: MLPBlock) -> MLPBlock:
    """The block with one neuron changed behind a bound's back: 1 is added to its output weights."""
    return block.replace(w2=block.w2.at[0].add(1.0))


def switchboard(bound: Callable[..., Array], switches: Sequence[Term]) -> Callable[..., Array]:
    """A bound whose terms can be scaled: ``f(factors, *arguments)``, compiled once for all factors.

    Args:
        bound: the bound as a function that is not compiled, down to where the terms are looked up.
        switches: what the factors belong to.

    Returns:
        The function; its factors are an array, 1 for a term as it is, 0 for one that is deleted.
    """

    def scaled(factors: Array, *arguments: Any) -> Array:
        with ExitStack() as stack:
            for factor, (module, name) in zip(factors, switches, strict=True):
                stack.enter_context(_multiplied(module, name, factor))
            return bound(*arguments)

    return jax.jit(scaled, compiler_options=FAST)


@contextmanager
def _multiplied(module: ModuleType, name: str, factor: Array) -> Iterator[None]:
    true = getattr(module, name)
    with patch.object(module, name, lambda *a, **k: factor * true(*a, **k)):
        yield


def term_controls(
    errors: Sequence[Array],
    arguments: Sequence[tuple[Any, ...]],
    bound: Callable[..., Array],
    switches: dict[Term, tuple[str, float]],
) -> list[Control]:
    """One control per term: with it scaled, some case must violate the bound; with none scaled, no case may.

    Args:
        errors: what was measured, one array per case.
        arguments: what `bound` takes for each.
        bound: as in `switchboard`.
        switches: term → what is wrong in words, and its factor.

    Returns:
        The controls; a single one that passes if the bound is violated as it is, for then they would all fail.
    """
    program = switchboard(bound, tuple(switches))

    def breaks(factors: np.ndarray) -> bool:
        found = (program(jnp.asarray(factors), *given) for given in arguments)
        return violated(zip(errors, found, strict=True))

    whole = np.ones(len(switches))
    if breaks(whole):
        return [Control("terms deleted from a bound that is violated as it is", False)]
    found = []
    for index, (name, factor) in enumerate(switches.values()):
        factors = whole.copy()
        factors[index] = factor
        found.append(Control(name, breaks(factors)))
    return found


TINY = BertConfig(
    vocab_size=50,
    hidden_size=12,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
    initializer_range=0.15,
    num_labels=3,
)


def double_model(config: ModelConfig, seed: int = 0) -> Model:
    """A random model in float64 whose biases and LayerNorms are random too."""
    leaves, tree = jax.tree.flatten(jax.jit(lambda: random_model(config, seed).params, compiler_options=FAST)())
    arrays = [np.asarray(leaf, np.float64) for leaf in leaves]
    wider = [array + 0.1 * normal(100 * seed + i, *array.shape) * (array.ndim == 1) for i, array in enumerate(arrays)]
    return Model(config, jax.tree.unflatten(tree, [jnp.asarray(array) for array in wider]))


def planted_networks(model: Model, residual: float, seed: int = 0) -> tuple[Model, Model]:
    """A model whose neurons come in pairs that differ by `residual` of their size, and its fusion to half (V1).

    Args:
        model: in float64, with dense blocks; the first half of every block's neurons is used.
        residual: root mean square of what is added to weights, as a part of theirs.
        seed: of what is added.

    Returns:
        Original and compressed model.
    """
    originals, fused = {}, {}
    for index, block in enumerate(model.mlp_blocks()):
        assert isinstance(block, MLPBlock)
        sizes = [2] * (block.hidden_width // 2)
        twice = repeated(block.fold(), sizes)
        noisy = {name: _moved(array, residual, 1000 * seed + index) for name, array in twice.parameters().items()}
        originals[index] = twice.replace(**noisy)
        fused[index] = fuse(originals[index], clusters_of(originals[index], planted_labels(sizes)), "v1")
    return model.replace_mlp_blocks(originals), model.replace_mlp_blocks(fused)


def _moved(array: Any, residual: float, seed: int) -> jax.Array:
    size = jnp.sqrt(jnp.mean(array * array))
    return array + residual * size * jnp.asarray(normal(seed + array.size, *array.shape))


def tiny_batch(seed: int = 0, batch: int = 2, length: int = 5) -> dict[str, jax.Array]:
    """Token ids, the last two of the last row being padding."""
    ids = jax.random.randint(jax.random.key(seed), (batch, length), 1, TINY.vocab_size)
    return {"input_ids": ids, "attention_mask": jnp.ones_like(ids).at[-1, -2:].set(0)}


def packaged_network(count: int = 1) -> tuple[Model, dict[str, jax.Array]] | None:
    """The packaged model in float64 and its shortest sentences of one length; None if it is not installed."""
    try:
        model = load_model(DEMO, dtype="float64")
    except CheckpointError:
        return None
    encodings = sorted(tokenize(model, sample_sentences(), max_length=32)[0], key=len)
    alike = [ids for ids in encodings if len(ids) == len(encodings[0])][:count]
    ids = jnp.asarray(alike, jnp.int32)
    return model, {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
