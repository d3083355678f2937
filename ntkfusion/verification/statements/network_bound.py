"""From block errors to a whole network: how far hidden states and logits can be from the original's.

`network_bound` never runs the original network; here it is run. Hidden states behind every layer, and the
pooled vector and logits that `Model.apply` gives, against the bound: a small BERT whose neurons are near-duplicates
with three sizes of residuals, both forms, the block error measured or bounded; with ``--full`` the packaged MiniLM with
planted near-duplicates and at half its width, without the allowance for rounding.
Controls: an attention weight of the original moved behind the bound's back; LayerNorm's constant halved; block errors
left out; the carried direction left out; curvatures left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.compression.compress_model import compress
from ntkfusion.compression.methods.mlp_fusion import MLPFusion
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.model import Model
from ntkfusion.theory.networks.block_change import Gap
from ntkfusion.theory.networks.layer_norm_bound import NormWeights, norm_change, reach
from ntkfusion.theory.networks.layer_step import LAYER_TERMS, LayerTerms
from ntkfusion.theory.networks.network_bounds import NetworkBound, network_bound
from ntkfusion.theory.networks.network_errors import network_errors
from ntkfusion.theory.networks.network_weights import LayerTrace, LayerWeights
from ntkfusion.utils.parameter_paths import with_subtree
from ntkfusion.verification.check import Check, Scope, quick_compilation
from ntkfusion.verification.networks import TINY, Inputs, double_model, planted_networks, tiny_batch
from ntkfusion.verification.outcome import CheckOutcome, CheckRow, Control
from ntkfusion.verification.real_blocks import packaged_network

#: Of z and u, or behind a layer: the whole and the layer's own.
Directions = tuple[jax.Array, jax.Array]

RESIDUALS = (1e-4, 1e-2, 0.3)
FORMS: dict[str, dict[str, Any]] = {
    "first order": {},
    "every part by itself": {"first_order": False},
    "block bound": {"block_error": "bound"},
}


def differences(original: Model, compressed: Model, batch: Inputs) -> dict[str, jax.Array]:
    """What the networks themselves say, by their own modules."""
    old, new = (model.apply(model.params, **batch) for model in (original, compressed))
    gaps = {"last hidden state": jnp.linalg.norm(old.last_hidden_state - new.last_hidden_state, axis=-1)}
    if old.pooler_output is not None and new.pooler_output is not None:
        gaps["pooled"] = jnp.linalg.norm(old.pooler_output - new.pooler_output, axis=-1)
    if old.logits is not None and new.logits is not None:
        gaps["logits"] = jnp.abs(old.logits - new.logits)
    return gaps


def bounds(found: NetworkBound) -> dict[str, jax.Array]:
    """What the bound says of the same."""
    limits = {"last hidden state": found.last_hidden_state, "pooled": found.pooler_output, "logits": found.logits}
    return {name: limit for name, limit in limits.items() if limit is not None}


def rows(name: str, measured: tuple[jax.Array, dict[str, jax.Array]], found: NetworkBound) -> Iterator[CheckRow]:
    """A row per layer, and one for each output."""
    hidden, outputs = measured
    for layer, (gap, bound) in enumerate(zip(hidden, found.hidden, strict=True)):
        yield CheckRow.of_arrays(f"{name}, behind layer {layer}", gap, bound, of="tokens", layer=layer)
    limits = bounds(found)
    for what, gap in outputs.items():
        yield CheckRow.of_arrays(f"{name}, {what}", gap, limits[what], of="numbers")


def measure(models: tuple[Model, Model], batch: Inputs) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Hidden states behind every layer, and outputs."""
    return network_errors(*models, **batch).hidden, differences(*models, batch)


def share(found: NetworkBound, mask: jax.Array) -> str:
    """The bound as a share of the hidden states, layer by layer."""
    keep = np.asarray(mask) > 0
    parts = [np.median((np.asarray(e) / np.asarray(s))[keep]) for e, s in zip(found.hidden, found.size, strict=True)]
    return f"{', '.join(f'{part:.2g}' for part in parts)}; informative layers: {found.informative_layers(mask)}"


def real_pairs(model: Model, seed: int) -> Iterator[tuple[str, tuple[Model, Model]]]:
    """The packaged model with planted near-duplicates, and fused to half its width."""
    for residual in (1e-4, 1e-3):
        yield f"MiniLM in real arithmetic, residual {residual:g}", planted_networks(model, residual, seed)
    yield (
        "MiniLM in real arithmetic, width 1/2",
        (model, compress(model, MLPFusion(keep_ratio=0.5, num_restarts=1), seed=seed)[0]),
    )


def compare(scope: Scope) -> tuple[list[CheckRow], dict[str, str]]:
    """Every network."""
    found, facts, batch = [], {}, tiny_batch(scope.seed)
    for residual in RESIDUALS[1:2] if scope.quick else RESIDUALS:
        models = planted_networks(double_model(TINY, scope.seed), residual, scope.seed)
        measured = measure(models, batch)
        for form, options in list(FORMS.items())[: 2 if scope.quick else None]:
            name = f"tiny BERT, residual {residual:g}, {form}"
            found += rows(name, measured, network_bound(*models, **options, **batch))
    packaged = None if scope.quick else packaged_network()
    if packaged is not None:
        model, inputs = packaged
        for name, models in real_pairs(model, scope.seed):
            # worst cases of rounding, passed on by six layers, would be all that one sees
            bound = network_bound(*models, rounding=False, **inputs)
            found += rows(name, measure(models, inputs), bound)
            facts[f"{name}: bound / hidden state"] = share(bound, inputs["attention_mask"])
    return found, facts


def no_gap(block: MLPBlock, compressed: Block, u: jax.Array) -> Gap:
    """Blocks that are said to be equal."""
    return Gap(jnp.zeros(u.shape[:2], u.dtype), jnp.zeros_like(u))


def straight(_: NormWeights, z: jax.Array, eta: jax.Array) -> jax.Array:
    """No curvature."""
    return jnp.zeros_like(eta)


def halved(norm: NormWeights, z: jax.Array, eta: jax.Array) -> jax.Array:
    """How far LayerNorm carries inputs, from half of √d max|γ|."""
    return norm_change(norm, z, eta, 0.5 * reach(norm, z))


def forgotten(
    weights: LayerWeights, block: MLPBlock, trace: LayerTrace, directions: Directions, gap: Gap
) -> Directions:
    """No direction behind a layer."""
    return jnp.zeros_like(trace.out), jnp.zeros_like(trace.out)


def moved_attention(model: Model) -> Model:
    """One attention weight of the first layer moved by 0.3."""
    kernel = model.params["layer_0"]["attention"]["output"]["kernel"].at[0, 0].add(0.3)
    params = with_subtree(
        model.params, "layer_0/attention/output", {**model.params["layer_0"]["attention"]["output"], "kernel": kernel}
    )
    return Model(model.config, params, model.constants)


def controls(scope: Scope) -> list[Control]:
    """What must violate the bound."""
    batch, model = tiny_batch(scope.seed), double_model(TINY, scope.seed)
    small, large = (planted_networks(model, residual, scope.seed) for residual in (1e-2, 0.3))

    def broken(models: tuple[Model, Model], **options: Any) -> bool:
        limit = network_bound(*models, rounding=False, **options, **batch).hidden
        return bool(jnp.any(network_errors(*models, **batch).hidden > limit))

    def without(name: str, terms: LayerTerms, models: tuple[Model, Model], **options: Any) -> Control:
        with quick_compilation(quick=True):
            return Control(name, broken(models, terms=terms, **options))

    gaps = differences(moved_attention(small[0]), small[1], batch)
    limits = bounds(network_bound(*small, **batch))
    moved = any(bool(jnp.any(gaps[name] > limits[name])) for name in gaps)
    found = [
        Control("an attention weight of the original moved behind the bound's back", moved),
        without("LayerNorm's constant halved", LAYER_TERMS._replace(norm_change=halved), small, first_order=False),
    ]
    # each of the others compiles a layer's Jacobians anew
    return (
        found
        if scope.quick
        else [
            *found,
            without("block errors left out", LAYER_TERMS._replace(gap=no_gap), small),
            without("the carried direction left out", LAYER_TERMS._replace(direction=forgotten), small),
            without("curvature of LayerNorm left out", LAYER_TERMS._replace(norm_curvature=straight), large),
        ]
    )


def run(scope: Scope) -> CheckOutcome:
    """Tiny networks and the packaged one."""
    found, facts = compare(scope)
    return CheckOutcome(tuple(found), tuple(controls(scope)), facts)


CHECK = Check(
    name="network-bound",
    statement=(
        "Block errors at the compressed model's own inputs, carried through attention, LayerNorm and residual "
        "connections, bound the change of every hidden state and logit without running the original."
    ),
    run=run,
)
