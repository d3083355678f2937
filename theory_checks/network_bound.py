"""From block errors to a whole network: how far hidden states and logits can be from the original's.

Run it: ``uv run theory_checks/network_bound.py [--full]``. Exit code 1 if a statement fails, or if a control passes.

`ntkfusion.network_bound` never runs the original network; here it is run. Hidden states behind every layer, and the
pooled vector and logits that `Model.apply` gives, against the bound: a small BERT whose neurons are near-duplicates
with three sizes of residuals, both forms, the block error measured or bounded; with ``--full`` the packaged MiniLM with
planted near-duplicates and at half its width, without the allowance for rounding.
Controls: an attention weight of the original moved behind the bound's back; LayerNorm's constant halved; block errors
left out; the carried direction left out; curvatures left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.compression.compress_model import compress
from ntkfusion.compression.methods.mlp_fusion import MLPFusion
from ntkfusion.models.model import Model
from ntkfusion.theory.networks import layer_first_order, layer_norm_bound, network_bounds
from ntkfusion.theory.networks.block_change import Gap
from ntkfusion.theory.networks.network_bounds import NetworkBound, network_bound
from ntkfusion.theory.networks.network_errors import network_errors
from ntkfusion.utils.parameter_paths import with_subtree
from ntkfusion.verification.bounds import FAST, TINY, double_model, packaged_network, planted_networks, tiny_batch
from ntkfusion.verification.check import Check, Control, Outcome, Row, Scope, run_alone

RESIDUALS = (1e-4, 1e-2, 0.3)
FORMS: dict[str, dict[str, Any]] = {
    "first order": {},
    "every part by itself": {"first_order": False},
    "block bound": {"block_error": "bound"},
}


def differences(original: Model, compressed: Model, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What the networks themselves say, by their own modules."""
    old, new = (model.apply(model.params, **batch) for model in (original, compressed))
    gaps = {"last hidden state": jnp.linalg.norm(old.last_hidden_state - new.last_hidden_state, axis=-1)}
    if old.pooler_output is not None and new.pooler_output is not None:
        gaps["pooled"] = jnp.linalg.norm(old.pooler_output - new.pooler_output, axis=-1)
    if old.logits is not None and new.logits is not None:
        gaps["logits"] = jnp.abs(old.logits - new.logits)
    return gaps


def bounds(found: NetworkBound) -> dict[str, jax.Array | None]:
    """What the bound says of the same."""
    return {"last hidden state": found.last_hidden_state, "pooled": found.pooler_output, "logits": found.logits}


def rows(name: str, measured: tuple[jax.Array, dict[str, jax.Array]], found: NetworkBound) -> Iterator[Row]:
    """A row per layer, and one for each output."""
    hidden, outputs = measured
    for layer, (gap, bound) in enumerate(zip(hidden, found.hidden, strict=True)):
        yield Row.of_arrays(f"{name}, behind layer {layer}", gap, bound, of="tokens", layer=layer)
    limits = bounds(found)
    for what, gap in outputs.items():
        yield Row.of_arrays(f"{name}, {what}", gap, limits[what], of="numbers")


def measure(models: tuple[Model, Model], batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
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


def compare(scope: Scope) -> tuple[list[Row], dict[str, str]]:
    """Every network."""
    found, facts, batch = [], {}, tiny_batch(scope.seed)
    for residual in RESIDUALS[1:2] if scope.quick else RESIDUALS:
        models = planted_networks(double_model(TINY, scope.seed), residual, scope.seed)
        measured = measure(models, batch)
        for form, options in list(FORMS.items())[: 2 if scope.quick else None]:
            name = f"tiny BERT, residual {residual:g}, {form}"
            found += rows(name, measured, network_bound(*models, **options, **batch))
    packaged = None if scope.quick else packaged_network()
    for name, models in real_pairs(packaged[0], scope.seed) if packaged else ():
        # worst cases of rounding, passed on by six layers, would be all that one sees
        bound = network_bound(*models, rounding=False, **packaged[1])
        found += rows(name, measure(models, packaged[1]), bound)
        facts[f"{name}: bound / hidden state"] = share(bound, packaged[1]["attention_mask"])
    return found, facts


@contextmanager
def exchanged(module: Any, name: str, other: Any) -> Iterator[None]:
    """A function of a module exchanged, and one layer's program compiled anew with it."""
    kept, program = getattr(module, name), network_bounds.layer_program

    def layer(*arguments: Any) -> Any:
        # a function of its own: JAX would find the trace of one that it knows
        return program.__wrapped__(*arguments)

    setattr(module, name, other)
    network_bounds.layer_program = jax.jit(layer, static_argnums=5, compiler_options=FAST)
    try:
        yield
    finally:
        setattr(module, name, kept)
        network_bounds.layer_program = program


def no_gap(block: Any, compressed: Any, u: jax.Array) -> Gap:
    """Blocks that are said to be equal."""
    return Gap(jnp.zeros(u.shape[:2], u.dtype), jnp.zeros_like(u))


def nothing(*arguments: Any) -> jax.Array:
    """No curvature."""
    return jnp.zeros_like(arguments[-1])


def halved(norm: Any, z: jax.Array) -> jax.Array:
    """Half of √d max|γ|."""
    return 0.5 * z.shape[-1] ** 0.5 * jnp.max(jnp.abs(norm.scale))


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

    def without(
        name: str, module: Any, function: str, other: Callable[..., Any], models: Any, **options: Any
    ) -> Control:
        with exchanged(module, function, other):
            return Control(name, broken(models, **options))

    gaps = differences(moved_attention(small[0]), small[1], batch)
    limits = bounds(network_bound(*small, **batch))
    moved = any(bool(jnp.any(gaps[name] > limits[name])) for name in gaps)
    found = [
        Control("an attention weight of the original moved behind the bound's back", moved),
        without("LayerNorm's constant halved", layer_norm_bound, "_radius", halved, small, first_order=False),
    ]
    # each of the others compiles a layer's Jacobians anew
    return (
        found
        if scope.quick
        else [
            *found,
            without("block errors left out", network_bounds, "measured_gap", no_gap, small),
            without("the carried direction left out", layer_first_order, "_behind", _forgets, small),
            without("curvature of LayerNorm left out", layer_first_order, "norm_curvature", nothing, large),
        ]
    )


def _forgets(weights: Any, block: Any, trace: Any, directions: Any, gap: Gap) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(trace.out), jnp.zeros_like(trace.out)


def run(scope: Scope) -> Outcome:
    """Tiny networks and the packaged one."""
    found, facts = compare(scope)
    return Outcome(tuple(found), tuple(controls(scope)), facts)


CHECK = Check(
    name="network-bound",
    statement=(
        "Block errors at the compressed model's own inputs, carried through attention, LayerNorm and residual "
        "connections, bound the change of every hidden state and logit without running the original."
    ),
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
