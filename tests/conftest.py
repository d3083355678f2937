"""Strict JAX, checked shapes, the tiers of tests, and the models that many tests share."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

# read when NumPy, scikit-learn and PyTorch are imported: two workers on two cores, one thread each
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import jax
import pytest
from jaxtyping import install_import_hook

# before ntkfusion is imported anywhere: shapes in signatures are checked by beartype, in tests only
install_import_hook("ntkfusion", "beartype.beartype")

from ntkfusion.utils.allocator import give_back_memory
from ntkfusion.utils.programs import memory_maps
from tests.helpers.oracle import Oracle

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

TESTS = Path(__file__).parent
IMPORTS_TORCH = re.compile(r"^(import torch$|from tests\.helpers\.torch_)", re.MULTILINE)
HAS_TORCH = importlib.util.find_spec("torch") is not None
WITHOUT_TORCH = "PyTorch is not installed; `uv sync --extra test --extra oracle` brings it"


def pytest_addoption(parser):
    """``--record`` writes what PyTorch says to `tests/stored` (see `tests/stored/make.py`)."""
    parser.addoption("--record", action="store_true", help="store what PyTorch answers instead of comparing with it")


def pytest_ignore_collect(collection_path):
    """Files that import PyTorch, or a helper that does, are left out where it is not installed."""
    if HAS_TORCH or collection_path.suffix != ".py" or TESTS not in collection_path.parents:
        return None
    return True if IMPORTS_TORCH.search(collection_path.read_text(encoding="utf-8")) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What needs PyTorch is in the wide tier, or stays among the slow tests; a slow test is in no other tier."""
    for item in items:
        slow = item.get_closest_marker("slow") is not None
        if item.get_closest_marker("oracle") is not None:
            if not slow:
                item.add_marker(pytest.mark.wide)
            if not HAS_TORCH:
                item.add_marker(pytest.mark.skip(reason=WITHOUT_TORCH))
        elif slow and item.get_closest_marker("wide") is not None:
            raise pytest.UsageError(f"{item.nodeid} is marked both slow and wide")


@pytest.fixture(
    params=["stored", pytest.param("torch", marks=(pytest.mark.oracle, pytest.mark.recorded))],
    ids=["stored", "torch"],
)
def oracle(request):
    """What PyTorch says: as stored in the default tier, from PyTorch itself in the wide one."""
    test = request.node.name.replace("[stored-", "[").replace("[torch-", "[")
    test = test.replace("-stored]", "]").replace("-torch]", "]").replace("[stored]", "").replace("[torch]", "")
    torch = pytest.importorskip("torch") if request.param == "torch" else None
    asked = Oracle(request.path, test, torch, request.config.getoption("record"))
    yield asked
    asked.write()


#: Memory maps of a process above which compiled programs are dropped: Linux allows 65530, and XLA crashes there.
MANY_MAPS = 20_000
#: Bytes in memory above which they are dropped too: two workers shall fit beside other things on a small machine.
MUCH_MEMORY = 2.4e9


def resident():
    """Bytes of this process in memory; 0 where there is no /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def pytest_configure(config):
    """Compiled programs are kept in pytest's cache folder (`.pytest_cache/d/jax_compilation`) for the next run."""
    if getattr(config, "cache", None) is not None and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax_compilation")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True)
def _few_programs(request):
    """Every compiled program takes memory and memory maps; hundreds of tests in one process would run out of them."""
    yield
    session = request.session
    session.finished_tests = getattr(session, "finished_tests", 0) + 1
    too_many = session.finished_tests % 20 == 0 and memory_maps() > MANY_MAPS
    if too_many or resident() > getattr(session, "most_memory", MUCH_MEMORY):
        give_back_memory()
        # where something else holds the memory, clearing after every test would only make them slow
        session.most_memory = max(MUCH_MEMORY, resident() + 0.5e9)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Most programs of tests run for milliseconds: they are compiled in a third of the time and run slowly.

    Tests that compute much, or that are about compiled programs, have the mark `optimised`; slow ones are like them.
    Set before fixtures are made: those of a module are compiled like its tests, which may compare with them by bits.
    """
    as_for_users = any(item.get_closest_marker(mark) for mark in ("optimised", "slow"))
    jax.config.update("jax_disable_most_optimizations", not as_for_users)


@pytest.fixture
def quick_compilation():
    """Quick compilation for a slow test too: it compiles much and computes little."""
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
