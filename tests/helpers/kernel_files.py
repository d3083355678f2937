"""Small kernel files that several tests use."""

from __future__ import annotations

import numpy as np

from ntkfusion.reporting.kernel_file import KernelFile


def kernel_file(kernel=None, groups=None, scope="block:0", kind="sgd", labels=("a", "b")):
    kernel = np.eye(2, dtype=np.float32) if kernel is None else kernel
    inputs = {"tokens": np.array(labels)} if kernel.ndim == 2 else {}
    conditions = {"kind": kind, "scope": scope, "model": {"name": "tiny"}, "seed": 3}
    return KernelFile(kernel, groups or {"w1": kernel}, inputs, tuple(labels), conditions)
