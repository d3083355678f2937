"""Parity with transformers' PyTorch ALBERT."""

from __future__ import annotations

import dataclasses

import pytest

from tests.helpers.small_encoders import grid, marked
from tests.helpers.torch_encoders import check

pytestmark = pytest.mark.oracle

SHARED = {"embedding_size": 10, "num_hidden_layers": 3, "num_hidden_groups": 2}


CASES = [
    dataclasses.replace(case, changes=SHARED | case.changes | ({"num_hidden_layers": 3} if "two" in case.name else {}))
    for case in grid("Albert", SHARED)
]


#: Cases that are always run, by dtype; all of them with `-m slow`.
ALWAYS = {"float32": {13}, "float64": {16}}


@pytest.mark.parametrize("case", marked(CASES, ALWAYS["float32"]))
def test_small_albert_equals_torch_in_float32(case, tmp_path):
    check(case, tmp_path, "float32")


@pytest.mark.parametrize("case", marked(CASES, ALWAYS["float64"]))
def test_small_albert_equals_torch_in_float64(case, tmp_path, x64):
    check(case, tmp_path, "float64")
