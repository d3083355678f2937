"""Runs test files of a checkout of neural-tangents through the adapter, in a process of their own.

``python -m tests.helpers.neural_tangents_own_tests CHECKOUT empirical_test rules_test [--everything] [-kNAME]``:
the installed neural-tangents as the adapter loads it, and the checkout's `tests` with the same view of JAX, since they
are as old.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import unittest
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import chain, combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax

from ntkfusion.kernels.oracles import neural_tangents_shim as shim
from ntkfusion.kernels.oracles.neural_tangents import load_neural_tangents


def powerset(items: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """All that the tests take from more-itertools, which nothing of ours needs."""
    known = list(items)
    return chain.from_iterable(combinations(known, count) for count in range(len(known) + 1))


def bind_as_then(primitive: Any, inputs: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """Bind a primitive with the parameters that it had then: those that it has got since are None."""
    while True:
        try:
            return primitive.bind(*inputs, **params)
        except TypeError as error:
            missing = re.search(r"missing \d+ required .*arguments?: '(\w+)'", str(error))
            if missing is None or missing[1] in params:
                raise
            params = params | {missing[1]: None}


def adapt_rules_test(module: ModuleType) -> None:
    """Its primitives are bound directly, with the parameters of an old JAX."""
    made_by_function = module._get_f_and_eqn

    def get_f_and_eqn(params: dict[str, Any], primitive: Any, *inputs: Any) -> tuple[Any, Any]:
        if primitive is None or primitive.name in ("pad", "conv_general_dilated"):
            return made_by_function(params, primitive, *inputs)

        def f(*inputs: Any) -> Any:
            return bind_as_then(primitive, inputs, params)

        return jax.make_jaxpr(f)(*inputs).eqns[0], f

    vars(module)["_get_f_and_eqn"] = get_f_and_eqn


class TestsFinder:
    """Finds the checkout's `tests`, to be executed with neural-tangents' view of JAX."""

    def __init__(self, checkout: Path) -> None:
        self.folder, self.view = str(checkout), shim.jax_view()
        # what the tests themselves miss
        vars(self.view).update(tree_map=jax.tree.map)
        vars(self.view)["dtypes"] = SimpleNamespace(
            canonicalize_dtype=jax.dtypes.canonicalize_dtype, bfloat16=jax.numpy.bfloat16, float0=jax.dtypes.float0
        )

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "tests":
            return None
        spec = PathFinder.find_spec(fullname, [self.folder] if "." not in fullname else path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = shim.SourceLoader(spec.loader.name, spec.loader.path)
            spec.loader.view = self.view
        return spec


def main(checkout: str, names: list[str], patterns: list[str] | None = None, *, everything: bool = False) -> bool:
    """Run the test files, with `everything` what they skip on a CPU to save time too; whether all passed."""
    load_neural_tangents()
    if importlib.util.find_spec("more_itertools") is None:
        stand_in = ModuleType("more_itertools")
        vars(stand_in).update(powerset=powerset)
        sys.modules["more_itertools"] = stand_in
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]  # ours: the checkout's folder has the same name
    sys.meta_path.insert(0, TestsFinder(Path(checkout)))
    loader = unittest.TestLoader()
    loader.testNamePatterns = patterns
    utilities = importlib.import_module("tests.test_utils")
    utilities.FLAGS(sys.argv[:1])
    if everything:
        vars(utilities)["skip_test"] = lambda *_, **__: None
    modules = [importlib.import_module(f"tests.{name}") for name in names]
    for module in modules:
        if hasattr(module, "_get_f_and_eqn"):
            adapt_rules_test(module)
    suite = unittest.TestSuite(loader.loadTestsFromModule(module) for module in modules)
    found = unittest.TextTestRunner(verbosity=1).run(suite)
    return found.wasSuccessful() and found.testsRun > 0


if __name__ == "__main__":
    chosen = [f"*{name.removeprefix('-k')}*" for name in sys.argv[2:] if name.startswith("-k")]
    files = [name for name in sys.argv[2:] if not name.startswith("-")]
    sys.exit(0 if main(sys.argv[1], files, chosen or None, everything="--everything" in sys.argv) else 1)
