"""How fast errors shrink with the residuals: output and SGD kernel quadratically, the sign kernel like flipped signs.

Run it: ``uv run theory_checks/shrinkage.py``. Exit code 1 if a statement fails, or if a control passes.
``--full`` checks every case, and the packaged real model if it is installed; ``--seed`` drives random choices.
What is compared, and what must fail: ``ntkfusion/verification/statements/shrinkage.py``.
"""

from __future__ import annotations

import sys

from ntkfusion.verification.script import run_alone
from ntkfusion.verification.statements.shrinkage import CHECK

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
