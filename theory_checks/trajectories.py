"""Theorem 2 and the κ-family: fused blocks that follow the full block through training, step by step.

Run it: ``uv run theory_checks/trajectories.py``. Exit code 1 if a statement fails, or if a control passes.
``--full`` checks every case, and the packaged real model if it is installed; ``--seed`` drives random choices.
What is compared, and what must fail: ``ntkfusion/verification/statements/trajectories.py``.
"""

from __future__ import annotations

import sys

from ntkfusion.verification.script import run_alone
from ntkfusion.verification.statements.trajectories import CHECK

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
