"""Eight devices, and two processes, give the numbers of one device."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.utils.devices import cropped, fetch, padded_rows, row_mesh
from tests.helpers.blocks import dense_block, normal

SCRIPT = Path(__file__).parents[1] / "helpers/many_devices.py"
CASES = 16


def start(devices: int, *arguments: int) -> subprocess.Popen:
    """The script in a process of its own, with so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    path = os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parents[2])])
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **settings, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(processes: list[subprocess.Popen]) -> list[str]:
    """What the processes print; all are ended if one takes too long."""
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def check(output: str) -> None:
    """Every case is there, and differs from one device by rounding."""
    cases = re.findall(r"^(block|mixture|network) (.*) (\S+)$", output, re.MULTILINE)
    assert len(cases) == CASES, output
    for *name, difference in cases:
        assert float(difference) <= 1e-13, name


@pytest.mark.slow  # minutes of compilation; two devices in two processes run by default
def test_eight_devices_equal_one():
    (output,) = finished([start(8)])
    assert "devices 8 processes 1" in output
    assert "rows per device {2}" in output
    assert "bytes per device 256" in output  # 16·16 numbers of 8 bytes, an eighth of them
    check(output)


@pytest.mark.wide
def test_two_processes_equal_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for output in finished([start(1, port, 2, index) for index in range(2)]):
        assert "devices 2 processes 2" in output
        check(output)


def test_a_mesh_of_one_device():
    mesh, x = row_mesh(jax.devices()[:1]), normal(7, 6, 5)
    assert fetch(block_kernel(dense_block(), x, mesh=mesh)) == pytest.approx(np.asarray(block_kernel(dense_block(), x)))
    assert padded_rows(x, mesh) is x
    assert cropped(x, None, 4, 2).shape == (4, 2)
