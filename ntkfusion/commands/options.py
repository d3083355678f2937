"""Types of options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

ModelArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]

Format = Literal["hf", "flax", "ntkfusion"]

Dtype = Literal["float16", "bfloat16", "float32", "float64"]
