"""Theorem 1: when the neurons of every cluster coincide, which variant of MLP Fusion keeps what exactly.

Run it: ``uv run theory_checks/zero_residual.py``. Exit code 1 if a statement fails, or if a control passes.
``--full`` checks every case, and the packaged real model if it is installed; ``--seed`` drives random choices.
What is compared, and what must fail: ``ntkfusion/verification/statements/zero_residual.py``.
"""

from __future__ import annotations

import sys

from ntkfusion.verification.script import run_alone
from ntkfusion.verification.statements.zero_residual import CHECK

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
