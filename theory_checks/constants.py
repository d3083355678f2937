"""The constants L1, osc, L2 and L3 of the activations: every digit proven anew.

Run it: ``uv run theory_checks/constants.py``. Exit code 1 if a statement fails, or if a control passes.
``--full`` checks every case, and the packaged real model if it is installed; ``--seed`` drives random choices.
What is compared, and what must fail: ``ntkfusion/verification/statements/constants.py``.
"""

from __future__ import annotations

import sys

from ntkfusion.verification.script import run_alone
from ntkfusion.verification.statements.constants import CHECK

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
