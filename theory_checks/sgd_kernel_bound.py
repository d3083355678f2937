"""Theorem 3b: how far the SGD kernel of a fused block can be from the original's.

Run it: ``uv run theory_checks/sgd_kernel_bound.py``. Exit code 1 if a statement fails, or if a control passes.
``--full`` checks every case, and the packaged real model if it is installed; ``--seed`` drives random choices.
What is compared, and what must fail: ``ntkfusion/verification/statements/sgd_kernel_bound.py``.
"""

from __future__ import annotations

import sys

from ntkfusion.verification.script import run_alone
from ntkfusion.verification.statements.sgd_kernel_bound import CHECK

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
