"""The list of all statements: what `ntkfusion verify` runs, in this order.

A new statement is a module in `ntkfusion.verification.statements` with a `CHECK`, a line here, and a script of the same
name in ``theory_checks/``.
"""

from __future__ import annotations

from ntkfusion.verification.check import Check
from ntkfusion.verification.statements import (
    closed_forms,
    constants,
    mixture,
    network_bound,
    output_bound,
    sandwich,
    sgd_kernel_bound,
    shrinkage,
    sign_kernel_bound,
    signal_bound,
    trajectories,
    zero_residual,
)

#: Name of a check → the check.
STATEMENTS: dict[str, Check] = {
    statement.CHECK.name: statement.CHECK
    for statement in (
        closed_forms,
        constants,
        mixture,
        network_bound,
        output_bound,
        sandwich,
        sgd_kernel_bound,
        shrinkage,
        sign_kernel_bound,
        signal_bound,
        trajectories,
        zero_residual,
    )
}
