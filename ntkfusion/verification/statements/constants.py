"""The suprema L1, osc, L2 and L3 of the activations' derivatives: every digit proven anew.

By interval arithmetic and branch and bound (`suprema`); ReLU's are read off. Beside the proof a
grid of σ', σ'' and σ''' by automatic differentiation of σ, which shares no formula with it, must stay below.
Controls: every literal lowered by 1e-7 must be refused, and must lie below a value on the grid.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.models.activations import get_activation
from ntkfusion.theory.activations.suprema import CLOSE, SupremumProof, prove_suprema, prove_supremum, suprema
from ntkfusion.verification.check import Check, Scope
from ntkfusion.verification.outcome import CheckOutcome, CheckRow, Control

ORDERS = {"l1": 1, "l2": 2, "l3": 3}
#: Every supremum is attained there, and nowhere is the grid further than 1e-5 from its place.
REACH, POINTS = 6.0, 600_001
LOWERED = 1e-7


def on_grid(name: str) -> dict[str, float]:
    """The largest |σ'|, |σ''|, |σ'''| and the spread of σ' on the grid, by automatic differentiation."""
    h, f, found = jnp.linspace(-REACH, REACH, POINTS), get_activation(name).value, {}
    for which in ORDERS:
        f = jax.grad(f)
        values = jax.jit(jax.vmap(f))(h)
        found[which] = float(jnp.max(jnp.abs(values)))
        if which == "l1":
            found["osc"] = float(jnp.max(values) - jnp.min(values))
    return found


def rows_of(proofs: list[SupremumProof], seen: dict[str, float]) -> list[CheckRow]:
    """One activation's suprema: not below what was seen, and at most 2e-9 above what is attained."""
    name = proofs[0].activation
    claimed = np.array([proof.claimed for proof in proofs])
    grid = np.array([seen[proof.which] for proof in proofs])
    attained = np.array([proof.attained for proof in proofs])
    unproven = np.array([0.0 if proof.is_bound else 1.0 for proof in proofs])
    facts = {"of": "constants", "exact": True}
    which = ", ".join(proof.which for proof in proofs)
    return [
        CheckRow.of_arrays(f"{name}: {which} not proven", unproven, 0.0, **facts),
        CheckRow.of_arrays(f"{name}: {which}, excess over attained values", claimed - attained, CLOSE, **facts),
        CheckRow.of_arrays(f"{name}: {which} on a grid, by automatic differentiation", grid, claimed, of="constants"),
    ]


def controls_of(proofs: list[SupremumProof], seen: dict[str, float]) -> list[Control]:
    """Literals that are too small."""
    found = []
    for proof in proofs:
        low, what = proof.claimed - LOWERED, f"{proof.activation}: {proof.which} lowered by {LOWERED:g}"
        refused = not prove_supremum(proof.activation, proof.which, low).is_bound
        found.append(Control(f"{what}, by proof", refused))
        found.append(Control(f"{what}, on the grid", seen[proof.which] > low))
    return found


def run(_: Scope) -> CheckOutcome:
    """Every smooth activation."""
    rows, controls, proofs = [], [], prove_suprema()
    names = list(dict.fromkeys(proof.activation for proof in proofs))
    for name in names:
        own, seen = [proof for proof in proofs if proof.activation == name], on_grid(name)
        rows += rows_of(own, seen)
        controls += controls_of(own, seen)
    relu, slopes = suprema("relu"), np.asarray(get_activation("relu").derivative(jnp.linspace(-REACH, REACH, POINTS)))
    read = [np.abs(slopes).max(), slopes.max() - slopes.min()]
    rows.append(CheckRow.of_arrays("relu: l1, osc on a grid", read, [relu.l1, relu.osc], of="constants"))
    boxes = sum(proof.boxes for proof in proofs)
    return CheckOutcome(tuple(rows), tuple(controls), {"boxes of the proofs": f"{boxes:,}"})


CHECK = Check(
    name="constants",
    statement=(
        "The constants in the code bound |σ'|, the spread of σ', |σ''| and |σ'''| everywhere, and each is at "
        "most 2e-9 above a value that is attained."
    ),
    run=run,
)
