"""Strict JAX, checked shapes, and the models that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

# read when NumPy, scikit-learn and PyTorch are imported: two workers on two cores, one thread each
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import jax
import pytest
from jaxtyping import install_import_hook

# before ntkfusion is imported anywhere: shapes in signatures are checked by beartype, in tests only
install_import_hook("ntkfusion", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


#: Memory maps of a process above which compiled programs are dropped: Linux allows 65530, and XLA crashes there.
MANY_MAPS = 20_000


@pytest.fixture(autouse=True)
def _few_programs(request):
    """Every compiled program takes memory maps; hundreds of tests in one process would run out of them."""
    yield
    request.session.finished_tests = getattr(request.session, "finished_tests", 0) + 1
    maps = Path("/proc/self/maps")
    if request.session.finished_tests % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quick_compilation():
    """Programs that are compiled in a third of the time and run slowly, for one test."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def minilm():
    """The packaged real model in float32."""
    from ntkfusion.checkpoints.load import load_model

    return load_model("minilm")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets; tests that need them are skipped where there are none."""
    folder = os.environ.get("NTKFUSION_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set NTKFUSION_DATA_DIR to the folder with the data sets to run this test")
    return Path(folder)
