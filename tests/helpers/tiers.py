"""Which cases of a parametrised test are in the default tier; CONTRIBUTING.md has the tiers."""

from __future__ import annotations

import pytest


def wide_unless(kept, cases):
    """All cases, those that are not kept with the mark `wide`.

    Args:
        kept: from the values of a case to whether the default tier has it.
        cases: values of one parameter, or tuples of several parameters' values.
    """
    parameters = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        parameters.append(pytest.param(*values, marks=() if kept(*values) else pytest.mark.wide))
    return parameters
