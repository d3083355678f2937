"""V1's SGD kernel is inflated: it lies between n_min and n_max times the original's, part by part.

Run it: ``uv run theory_checks/sandwich.py``. Exit code 1 if a statement fails, or if a control passes.
``--full`` checks every case, and the packaged real model if it is installed; ``--seed`` drives random choices.
What is compared, and what must fail: ``ntkfusion/verification/statements/sandwich.py``.
"""

from __future__ import annotations

import sys

from ntkfusion.verification.script import run_alone
from ntkfusion.verification.statements.sandwich import CHECK

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
